"""Training a graft: warm start → seeing → conversation and tools, with seeing beside them in every step.

The order matters: mixed from the start, seeing stays near chance. Every step's lessons are a pure
function of the seed and the step's number, and the trainer's whole state is checkpointed, so a killed
run resumes on the same path. Knows nothing of serving or of exams.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pinhole.catalogue.split import Split
from pinhole.config import Config, GraftConfig
from pinhole.errors import UsageError
from pinhole.graft.base import load_base
from pinhole.graft.fast import fast_rows
from pinhole.graft.helpers import Helpers
from pinhole.graft.model import Graft, resolve_dtype
from pinhole.graft.packing import Row
from pinhole.graft.projector import Projector
from pinhole.graft.prompt import Prompter, ToolSchema
from pinhole.graft.seeing import Lesson, Seeing
from pinhole.graft.talking import talking_lessons
from pinhole.graft.taught import Taught, teach
from pinhole.graft.tower import tower_at_hand, tower_start
from pinhole.graft.tuning import Trainer
from pinhole.graft.warm_start import warm_start
from pinhole.graft.world import World, build_world
from pinhole.workspace import read_json, write_json

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.vision.align import Space
    from pinhole.vision.features import Features

Progress = Callable[[int, int], None]
Source = Callable[[World, random.Random, float], Iterator[Lesson]]

NESTED = (1, 4, 16)  # soft tokens a picture may be

_MISSES = 4  # lessons in turn that do not fit a row any more, until it counts as full
_TRIES = 100  # … and until it stays empty

# How far pictures may lean on their names (at most this share of the token) by the progress of the stage of seeing.
_LEAN = ((0.08, 0.14, 0.5), (1.0, 0.6, 0.0))

# By what share they look as if the projector had not been fitted to them: first what it knows, then what it will meet.
_STRANGE = ((0.14, 0.5), (0.0, 1.0))

# Of each picture's content, at most this share is not shown: those that were trained on shall not be known by heart.
_DROP = 0.6


def new_graft(world: World, config: GraftConfig) -> Graft:
    """Base model and a projector of the right widths, with no training yet."""
    lm, tokenizer = load_base(config.base, resolve_dtype(config.dtype))
    torch.manual_seed(config.seed)  # after the base: converting one for the first time draws numbers too
    cell_dim = world.cells([0]).shape[-1] if world.cells and config.tokens_per_item > 1 else 0
    projector = Projector(world.vectors.shape[1], lm.config.hidden_size, cell_dim=cell_dim)
    nested = [count for count in NESTED if count <= config.tokens_per_item]
    return Graft(lm, tokenizer, projector, space=world.space, card=config.card, card_words=config.card_words, nested=nested)


def fill_rows(
    lessons: Iterator[Lesson], prompter: Prompter, config: GraftConfig, beside: Iterator[Lesson] | None = None, each: Sequence[int] = (1,)
) -> list[Row]:
    """``batch_rows`` rows full of lessons, then as many of another stream ``beside``, by ``replay`` as long.

    Pictures are of as many soft tokens as ``each`` says, row by row in turn. Raises :class:`UsageError` where the rows are
    too short for ``lessons``.
    """
    counts = itertools.cycle(each)
    rows = [_filled(lessons, prompter, config.row_tokens, next(counts), config.distil_weight) for _ in range(config.batch_rows)]
    if not any(row.lessons for row in rows):
        raise UsageError(f"no lesson fits into {config.row_tokens} tokens", where="[graft] row_tokens", fix="the default is 512")
    if beside is not None:
        size = int(config.row_tokens * config.replay)
        rows += [_filled(beside, prompter, size, next(counts), config.distil_weight) for _ in range(config.batch_rows)]
    return [row for row in rows if row.lessons]


def turns(nested: Sequence[int], step: int, rows: int) -> tuple[int, ...]:
    """The numbers of soft tokens for a step's rows, going on where the step before ended."""
    start = step * rows % len(nested)
    return (*nested[start:], *nested[:start])


def _filled(lessons: Iterator[Lesson], prompter: Prompter, tokens: int, each: int, distil: float) -> Row:
    """Draw lessons until a few in turn did not fit. One that would fit no row is passed over."""
    row, misses = Row(), 0
    for lesson in lessons:
        prompt = lesson.prompt(prompter, each)
        if len(row.tokens) + row.cost(prompt) <= tokens:
            misses = 0
            row.add(prompt, lesson.weight, lesson.said, distil)
            continue
        misses += 1
        if misses == (_MISSES if row.lessons else _TRIES):
            break
    return row


def seeing_lessons(world: World, rng: random.Random, progress: float, taught: Taught | None = None) -> Iterator[Lesson]:
    """The first stage's stream. At its start pictures lean on their names; halfway they stand alone, as if never seen.

    With ``taught``, so large a share of the scenes are those that a teacher answered.
    """
    seeing = Seeing(world, rng, lean=float(np.interp(progress, *_LEAN)), strange=float(np.interp(progress, *_STRANGE)), drop=_DROP)
    while True:
        yield from seeing.again(rng.choice(taught.scenes)) if taught and rng.random() < taught.share else seeing.scene()


def train(
    graft: Graft,
    world: World,
    tools: Sequence[ToolSchema],
    config: GraftConfig,
    out: Path,
    progress: Progress | None = None,
    taught: Taught | None = None,
) -> dict[str, Any]:
    """Both stages; returns figures. ``out`` holds the checkpoint that a killed run resumes from, and the loss curve."""
    with Helpers(graft, config, out) as helpers:
        trainer = Trainer(graft, config, config.seed, helpers)
        with fast_rows(graft.lm):
            figures = _train(trainer, world, tools, config, out, progress, taught)
    trainer.merge()
    return figures


def _train(
    trainer: Trainer, world: World, tools: Sequence[ToolSchema], config: GraftConfig, out: Path, progress: Progress | None, taught: Taught | None
) -> dict[str, Any]:
    seeing, talking = partial(seeing_lessons, taught=taught), talking_lessons(tools, config)
    stages: list[tuple[str, int, Source]] = [("seeing", config.seeing_steps, seeing), ("talking", config.talking_steps, talking)]
    total, curve, start = config.seeing_steps + config.talking_steps, [], 0
    checkpoint, log = out / "checkpoint.safetensors", out / "curve.json"
    if log.exists() and checkpoint.exists():
        curve = read_json(log)
        trainer.load(checkpoint)
        start = len(curve)
    done = 0
    for name, steps, source in stages:
        for at in range(steps):
            done += 1
            if done <= start:
                continue
            rng = random.Random(f"{config.seed}:{name}:{at}")
            began = time.perf_counter()
            beside = seeing(world, rng, 1.0) if source is talking and config.replay else None
            each = turns(trainer.graft.nested, at, config.batch_rows * (1 if beside is None else 2))
            rows = fill_rows(source(world, rng, at / steps), trainer.graft.prompter, config, beside, each)
            loss = trainer.step(rows, (done - 1) / total)
            counts = {
                "lessons": sum(row.lessons for row in rows),
                "tokens": sum(len(row.tokens) for row in rows),
                "plain": sum(row.plain_tokens for row in rows),
            }
            curve.append({"stage": name, "step": at, "loss": loss, "seconds": time.perf_counter() - began, **counts})
            if done % config.checkpoint_steps == 0 and done < total:
                save_checkpoint(trainer, curve, checkpoint, log)
            if progress:
                progress(done, total)
    write_json(log, curve)
    seconds = sum(point["seconds"] for point in curve) or 1.0
    lessons = sum(point["lessons"] for point in curve)
    return {
        "speed.train.samples_per_s": lessons / seconds,
        "speed.train.samples_per_s.n": lessons,
        "graft.lessons": lessons,
        "graft.tokens": sum(point["tokens"] for point in curve),
        "graft.seconds": seconds,
    }


def save_checkpoint(trainer: Trainer, curve: list[Any], checkpoint: Path, log: Path) -> None:
    """Weights first, then the curve whose length says which step they belong to; a kill in between repeats no step wrongly."""
    fresh = checkpoint.with_suffix(".new")
    trainer.save(fresh)
    log.unlink(missing_ok=True)
    fresh.replace(checkpoint)
    write_json(log, curve)


def start(graft: Graft, world: World, config: Config, image: Callable[[str], bytes], progress: Progress | None = None) -> dict[str, float]:
    """Start the projector as ``[graft] warm_start`` says: where the base's own eyes put the pictures, or near their words. Returns figures."""
    folder, seed = tower_at_hand(config.graft), config.graft.seed
    seen = tower_start(graft, world, folder, image, seed, progress, config.vision.max_pixels) if folder else {}
    return seen or warm_start(graft, world, seed)


def build_graft(
    catalogue: Catalogue,
    features: Features,
    space: Space,
    tools: Sequence[ToolSchema],
    config: Config,
    out: Path,
    progress: Progress | None = None,
    before: Path | None = None,
) -> dict[str, Any]:
    """The ``graft`` stage: train on the training part of the catalogue and leave a finished graft in ``out``.

    What a teacher answered for the artefact ``before`` is not asked again.
    """
    settings, each = config.catalogue, config.graft.tokens_per_item
    world = build_world(catalogue, features, space, Split(settings), settings.category, tokens_per_item=each)
    if len(world.train) < 8:
        raise UsageError(
            f"{len(world.train)} items with a readable image: too few to train on", where="graft", fix="ingest more items, then `pinhole build`"
        )
    graft = new_graft(world, config.graft)
    started = start(graft, world, config, catalogue.image, progress)
    taught = _taught(graft, world, catalogue, config, out, before, progress) if config.graft.teacher else None
    figures = train(graft, world, tools, config.graft, out, progress, taught)
    graft.save(out)
    plot_curve(read_json(out / "curve.json"), out / "curve.png")
    (out / "checkpoint.safetensors").unlink(missing_ok=True)
    return figures | started | (taught.figures(graft.tokenizer) if taught else {})


def _taught(graft: Graft, world: World, catalogue: Catalogue, config: Config, out: Path, before: Path | None, progress: Progress | None) -> Taught:
    """What the unmodified base says; it has left memory when training begins."""
    from pinhole.graft.original import OriginalVLM

    teacher = OriginalVLM(config.graft, catalogue.image, config.vision.max_pixels)
    return teach(teacher, world, graft.tokenizer, config.graft, out, before, progress)


def plot_curve(curve: Sequence[dict[str, Any]], path: Path) -> None:
    """The loss of both stages, smoothed, over the lessons seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3), dpi=110)
    seen = np.cumsum([point["lessons"] for point in curve])
    for stage, colour in (("seeing", "#3b6ea5"), ("talking", "#c2703d")):
        at = [i for i, point in enumerate(curve) if point["stage"] == stage]
        if at:
            loss = np.array([curve[i]["loss"] for i in at])
            width = max(1, len(loss) // 40)
            smooth = np.convolve(np.pad(loss, (width - 1, 0), mode="edge"), np.ones(width) / width, mode="valid")
            axes.plot(seen[at], loss, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(seen[at], smooth, color=colour, linewidth=1.8, label=stage)
    axes.set_xlabel("lessons")
    axes.set_ylabel("loss of answer tokens")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
