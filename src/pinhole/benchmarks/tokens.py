"""The claim: more soft tokens a picture buy accuracy, one graft serves every number of them, and each has its price.

Trains on the workspace's catalogue, the same number of steps and tokens each: a graft of one token, a nested one of 1, 4 and 16,
and a small vision-language model with eyes, to which every patch is a token at every turn. Then all answer the same held-out
questions. The cost of a turn is the time to the first token of a question about four pictures, in rounds that take turns. Needs
``[vision] grid = 7`` or as many cells as the encoder has. Tables and artefacts are only read.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pinhole.workspace import Workspace

if TYPE_CHECKING:
    from pinhole.config import GraftConfig
    from pinhole.graft.model import Graft
    from pinhole.graft.world import World

NEEDS_WORKSPACE = True
Progress = Callable[[int, int], None]
PICTURES, ROUNDS = 4, 12


@dataclass(frozen=True)
class Side:
    """One model to ask: ``count`` soft tokens a picture, ``name`` in the figures' keys."""

    name: str
    graft: Graft
    world: World
    count: int | None


def run(workspace: Workspace, progress: Progress | None = None, steps: int = 0, n: int = 500) -> dict[str, float]:
    """``tokens.SIDE.EXAM`` (sides: alone, k1, k4, k16, patches), ``tokens.SIDE.first_token_s`` and ``.per_item``.

    ``steps`` 0 is those of ``[graft] seeing_steps``.
    """
    from pinhole.benchmarks._worlds import ALL, open_worlds

    worlds = open_worlds(workspace, 1, 16, ALL)
    config = workspace.config.graft.model_copy(update={"seeing_steps": steps or workspace.config.graft.seeing_steps, "talking_steps": 0})
    sides = _trained(worlds, config, progress)
    figures = _asked(sides, n) | _timed(sides)
    return figures | {"tokens.steps": float(config.seeing_steps), "tokens.n": float(n)}


def plot(figures: Mapping[str, float], path: Path) -> None:
    """Scores over the time to the first token: the nested graft as a line, the others as points."""
    from matplotlib.figure import Figure

    from pinhole.evaluation.nested import EXAMS

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    ends = {side: 1000 * figures[f"tokens.{side}.first_token_s"] for side in ("k1", "k4", "k16", "alone", "patches")}
    for number, (key, label) in enumerate(EXAMS.items()):
        colour = f"C{number}"
        axes.plot([ends[side] for side in ("k1", "k4", "k16")], [figures[f"tokens.{side}.{key}"] for side in ("k1", "k4", "k16")], "o-", color=colour)
        axes.plot(ends["alone"], figures[f"tokens.alone.{key}"], "D", color=colour, mfc="white")
        axes.plot(ends["patches"], figures[f"tokens.patches.{key}"], "s", color=colour, label=label)
    for side, words in (("k1", "1"), ("k4", "4"), ("k16", "16"), ("patches", f"{figures['tokens.patches.per_item']:.0f} tokens a picture")):
        axes.annotate(
            words, (ends[side], 0.02), xycoords=("data", "axes fraction"), ha="right" if side == "patches" else "center", color="#555", fontsize=9
        )
    axes.set(ylim=(0, 1), xlim=(0, 1.08 * max(ends.values())))
    axes.set(xlabel="ms to the first token of a question about four pictures", ylabel="share of held-out questions")
    axes.set_title("line: one nested graft; diamond: a graft of one token; square: a small VLM with eyes, same steps", fontsize=9)
    axes.grid(color="#ddd", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)


def _trained(worlds: list[World], config: GraftConfig, progress: Progress | None) -> list[Side]:
    """Three trainings, one after the other."""
    from pinhole.evaluation.eyes import Eyed

    total = 3 * config.seeing_steps

    def model(number: int, world: World, most: int) -> Graft:
        from pinhole.graft.train import new_graft, train
        from pinhole.graft.warm_start import warm_start

        own = config.model_copy(update={"tokens_per_item": most})
        graft = new_graft(world, own)
        warm_start(graft, world, config.seed)
        with tempfile.TemporaryDirectory() as folder:
            train(graft, world, (), own, Path(folder), lambda done, _: progress(number * config.seeing_steps + done, total) if progress else None)
        return graft

    plain, celled, all_cells = worlds
    patches = Eyed.of(all_cells)
    alone, nested = model(0, plain, 1), model(1, celled, 16)
    return [
        Side("alone", alone, plain, None),
        *(Side(f"k{count}", nested, celled, count) for count in (1, 4, 16)),
        Side("patches", model(2, patches, 1), patches, None),
    ]


def _asked(sides: list[Side], n: int) -> dict[str, float]:
    """Every exam of seeing: the same draws of pictures, names and words for all sides."""
    from pinhole.evaluation.answers import choose
    from pinhole.evaluation.intervals import share
    from pinhole.evaluation.seeing_exams import EXAMS, questions

    figures: dict[str, float] = {}
    for side in sides:
        for key, (kind, _) in EXAMS.items():
            asked = questions(side.world, kind, n, 0)
            said = choose(side.graft, asked, tokens_per_item=side.count)
            figures |= share(f"tokens.{side.name}.{key}", [lesson.answer == answer for lesson, answer in zip(asked, said, strict=True)])
    return figures


def _timed(sides: list[Side]) -> dict[str, float]:
    """Time to the first token of a question about four pictures never shown before, by itself; tokens that a picture takes."""
    from pinhole.engines.local import LocalEngine
    from pinhole.graft.prompt import Message, card, lines

    figures: dict[str, float] = {}
    spent: dict[str, list[float]] = {side.name: [] for side in sides}
    engines = [LocalEngine(side.graft, cache_bytes=1 << 20) for side in sides]
    try:
        for round in range(ROUNDS + 1):
            for side, engine in zip(sides, engines, strict=True):
                pictures = [side.world.soft(i % len(side.world.pictures)) for i in range(round * PICTURES, (round + 1) * PICTURES)]
                shown = lines([card(k, soft, "") for k, soft in enumerate(pictures, 1)])
                question = [Message.of("user", *shown, f"\nwhich of them is red? {round}")]
                began = time.perf_counter()
                for _ in engine.chat(question, tokens_per_item=side.count, max_tokens=1):
                    pass
                if round:  # the first warms up
                    spent[side.name].append(time.perf_counter() - began)
                figures[f"tokens.{side.name}.per_item"] = float(len(pictures[0].tokens(side.count or 1)))
    finally:
        for engine in engines:
            engine.close()
    return figures | {f"tokens.{name}.first_token_s": statistics.median(seconds) for name, seconds in spent.items()}
