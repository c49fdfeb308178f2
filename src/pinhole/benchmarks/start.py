"""The claim: a projector that starts near the words of its pictures learns to see in fewer steps than one that starts at random.

The same lessons in the same order on the workspace's base and data, from three starts: the warm start of `pinhole build`
for a base without eyes (ridge regression, then a softmax over all words at once), the ridge regression alone, and random weights, all
of one length. Steps are counted until the loss, smoothed, is as low as the random start's is at its end. Tables and
artefacts are only read.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.workspace import Workspace

NEEDS_WORKSPACE = True
_SMOOTH = 8  # steps whose mean is a point of the curve
Progress = Callable[[int, int], None]
STARTS = ("words", "ridge", "random")


def run(workspace: Workspace, progress: Progress | None = None, steps: int = 120) -> dict[str, float]:
    """``start.<name>.steps`` is how many it takes to ``start.target_loss``, ``.first`` and ``.last`` are the ends of its curve.

    ``start.random_over_words`` and ``start.random_over_ridge`` are ratios of steps; a start that never came so far counts one step
    more than there were.
    """
    width, curves = min(_SMOOTH, steps), {}
    for number, name in enumerate(STARTS):
        losses = []
        for loss in _losses(workspace, name, steps):
            losses.append(loss)
            if progress:
                progress(number * steps + len(losses), len(STARTS) * steps)
        curves[name] = np.convolve(losses, np.ones(width) / width, mode="valid")
    target = float(curves["random"][-1])
    needed = {name: steps_to(curve, target) + width - 1 for name, curve in curves.items()}
    figures = {"start.target_loss": target, "start.of_steps": float(steps)}
    for name, curve in curves.items():
        figures |= {f"start.{name}.steps": float(needed[name]), f"start.{name}.first": float(curve[0]), f"start.{name}.last": float(curve[-1])}
    return figures | {f"start.random_over_{name}": needed["random"] / needed[name] for name in STARTS[:-1]}


def steps_to(curve: np.ndarray, target: float) -> int:
    """The first point, counted from 1, that is at most ``target``; one beyond the last where none is."""
    low = np.flatnonzero(curve <= target)
    return int(low[0]) + 1 if len(low) else len(curve) + 1


def _losses(workspace: Workspace, name: str, steps: int) -> Iterator[float]:
    """The loss of every step of the first stage, its schedule and its rows as the graft stage has them."""
    from pinhole.benchmarks._worlds import open_worlds
    from pinhole.graft.fast import fast_rows
    from pinhole.graft.helpers import Helpers
    from pinhole.graft.train import fill_rows, new_graft, seeing_lessons
    from pinhole.graft.tuning import Trainer

    config, [world] = workspace.config.graft, open_worlds(workspace, 1)
    graft = new_graft(world, config)
    _start(name, graft, world, config.seed)
    with tempfile.TemporaryDirectory() as folder, Helpers(graft, config, Path(folder)) as helpers, fast_rows(graft.lm):
        trainer = Trainer(graft, config, config.seed, helpers)
        for step in range(steps):
            lessons = seeing_lessons(world, random.Random(f"{config.seed}:start:{step}"), step / steps)
            yield trainer.step(fill_rows(lessons, graft.prompter, config), step / steps)


def _start(name: str, graft: Any, world: Any, seed: int) -> None:
    """All three know the spread of the inputs and the length of a token; of what pictures are called, the last knows nothing."""
    import torch
    from torch.nn.functional import linear, normalize

    from pinhole.graft.warm_start import left_out, ridge, warm_start, words_of

    warm_start(graft, world, seed)
    projector, words = graft.projector, words_of(graft, world)
    if name == "words" or words is None:
        return
    vectors = torch.from_numpy(world.vectors[words.pictures])
    x = (vectors - projector.mean.cpu()) * projector.scale.cpu()
    if name == "random":
        world.strange = {}
        torch.manual_seed(seed)
        projector.skip.reset_parameters()
        return
    called = normalize(words.called @ words.directions, dim=-1)

    def fit(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        weight = ridge(x[rows], called[rows])
        stretch = words.spread / linear(x[rows], weight).norm(dim=1).mean().clamp_min(1e-9)
        return stretch * weight, torch.zeros(len(weight))

    weight, bias = fit(list(range(len(x))))
    projector.start(weight, words.middle + bias, graft.token_length())
    moved = left_out(x, weight, bias, fit, seed)
    vectors = ((x + moved) / projector.scale.cpu() + projector.mean.cpu()).numpy()
    world.strange = dict(zip(words.pictures, vectors, strict=True))
