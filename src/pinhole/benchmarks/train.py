"""The claim: a training step spends at least 90% of its time on the forward and backward pass of its tokens.

Lessons of the workspace, drawn and stepped as the graft stage does, by one process with all threads, against the
bare forward and backward pass of the same model on the same rows; beside it the same pass through the stock modules
of transformers and peft, what packing saves, and what helper processes gain. Tables and artefacts are only read.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pinhole.workspace import Workspace

NEEDS_WORKSPACE = True
Progress = Callable[[int, int], None]


def run(workspace: Workspace, progress: Progress | None = None, steps: int = 12) -> dict[str, float]:
    """``train.fraction`` is bare ÷ whole, ``train.over_stock`` stock ÷ bare, ``train.packing`` tokens unpacked ÷ packed.

    ``train.side_by_side`` is a step by one process ÷ the same step shared with helpers, absent where there are none.
    """
    from pinhole.benchmarks._worlds import open_worlds
    from pinhole.graft.fast import fast_rows
    from pinhole.graft.helpers import Helpers
    from pinhole.graft.train import fill_rows, new_graft, seeing_lessons
    from pinhole.graft.tuning import Trainer
    from pinhole.graft.warm_start import warm_start

    config, [world] = workspace.config.graft, open_worlds(workspace, 1)
    graft = new_graft(world, config)
    warm_start(graft, world)
    clock = _Clock()
    tokens = plain = 0
    with tempfile.TemporaryDirectory() as folder, Helpers(graft, config, Path(folder)) as helpers:
        trainer = Trainer(graft, config, config.seed, helpers)
        for step in range(-1, steps):  # the first is a warm-up
            with fast_rows(graft.lm):
                with clock.of("together"):
                    rows = fill_rows(seeing_lessons(world, random.Random(step), 1.0), graft.prompter, config)
                    trainer.step(rows, 0.5)
                with _alone(trainer, helpers):
                    with clock.of("whole"):
                        fill_rows(seeing_lessons(world, random.Random(step), 1.0), graft.prompter, config)
                        trainer.step(rows, 0.5)
                    with clock.of("bare"):
                        _passes(trainer, rows)
            with _alone(trainer, helpers), clock.of("stock"):
                _passes(trainer, rows)
            if step < 0:
                clock.seconds.clear()
            else:
                tokens, plain = tokens + sum(len(row.tokens) for row in rows), plain + sum(row.plain_tokens for row in rows)
            if progress:
                progress(step + 1, steps)
        spent = clock.seconds
        return {
            "train.fraction": spent["bare"] / spent["whole"],
            "train.over_stock": spent["stock"] / spent["bare"],
            "train.packing": plain / tokens,
            "train.tokens_per_s": tokens / spent["together"],
            "train.steps": float(steps),
            **({"train.side_by_side": spent["whole"] / spent["together"]} if helpers.count else {}),
        }


class _Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@contextlib.contextmanager
def _alone(trainer: Any, helpers: Any) -> Iterator[None]:
    """This process by itself, with every thread it was given."""
    import torch

    shared = torch.get_num_threads()
    trainer.helpers = None
    torch.set_num_threads(helpers.threads)
    try:
        yield
    finally:
        trainer.helpers = helpers
        torch.set_num_threads(shared)


def _passes(trainer: Any, rows: Any) -> None:
    """Forward and backward, and nothing else."""
    import torch

    from pinhole.graft.scoring import answer_logits

    for row in rows:
        logits, wanted = answer_logits(trainer.graft, [row])
        torch.autograd.grad(torch.nn.functional.cross_entropy(logits, wanted), trainer.learner.trained)
