"""The ``evaluate`` stage: every exam once, on held-out data, into one flat table of figures.

Leaves ``figures.json``, ``conversations.json`` (held-out turns with what was said, good and bad), ``machine.json`` and
the loss curve in its artefact; the report draws from these. Knows nothing of how a figure is drawn.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pinhole.config import Config
from pinhole.engines.base import Engine
from pinhole.evaluation.fine_sight import fine_sight
from pinhole.evaluation.flops import Language
from pinhole.evaluation.machine import machine
from pinhole.evaluation.seeing_exams import seeing_exams
from pinhole.evaluation.tool_exams import same_arguments, tool_exams
from pinhole.graft.model import Graft
from pinhole.graft.prompt import Message, Part, ToolSchema, card, parse_call
from pinhole.graft.seeing import Lesson
from pinhole.graft.world import World
from pinhole.workspace import write_json

Progress = Callable[[int, int], None]


def graft_exams(
    graft: Graft, engines: Sequence[Engine], world: World, tools: Sequence[ToolSchema], config: Config, progress: Progress | None = None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Seeing and tools; figures, and conversations for the report."""
    asked, seed = config.evaluate, config.evaluate.seed
    figures, seen = seeing_exams(graft, world, asked.seeing_n, seed)
    figures |= fine_sight(graft, world, asked.seeing_n, seed)
    more, talked = tool_exams(engines, world, tools, config.graft, asked.n, seed, progress, Language.of(graft.lm.config))
    figures |= more | prompt_costs(graft, world)
    return figures, conversations([*seen, *talked], config.evaluate.conversations, seed)


def prompt_costs(graft: Graft, world: World) -> dict[str, float]:
    """Tokens that an item takes in a prompt: its picture alone, and its whole card with number and title."""
    some = world.held[:200] or world.train[:200]
    cards = [card(k % 10, world.soft(i), world.pictures[i].title, graft.card, graft.card_words) for k, i in enumerate(some, 1)]

    def tokens(parts: Sequence[Part]) -> int:
        return len(graft.prompter.render([Message.of("user", *parts, "?")]).tokens)

    nothing, bare = tokens([]), tokens([world.soft(i) for i in some])
    lengths = [tokens(parts) - nothing for parts in cards]
    each = {"cost.tokens_per_item": (bare - nothing) / max(1, len(some)), "cost.tokens_per_card": sum(lengths) / max(1, len(some))}
    return each | {f"{key}.n": len(some) for key in each}


def conversations(answered: Sequence[tuple[Lesson, str]], n: int, seed: int) -> list[dict[str, Any]]:
    """``n`` held-out turns, a fair share of each kind, half of them wrong where so many are."""
    rng = random.Random(f"conversations:{seed}")
    rows = [_turn(lesson, said) for lesson, said in answered]
    rng.shuffle(rows)
    picked: list[dict[str, Any]] = []
    for right in (True, False):
        pool = [row for row in rows if row["right"] == right]
        kinds = list(dict.fromkeys(row["kind"] for row in pool))
        while len(picked) < (n + 1) // 2 * (1 + (not right)) and len(picked) < n and pool:
            kind = kinds[len(picked) % len(kinds)]
            row = next((row for row in pool if row["kind"] == kind), pool[0])
            pool.remove(row)
            picked.append(row)
    return picked


def _turn(lesson: Lesson, said: str) -> dict[str, Any]:
    """A lesson as the report shows it: text parts as strings, pictures as {"item": id}."""
    messages = [message.plain() for message in lesson.messages[1:-1]]
    wanted = lesson.answer
    if "name" in lesson.expect:
        call = parse_call(said)
        right = call is not None and call[0] == lesson.expect["name"] and same_arguments(call[1], lesson.expect["arguments"])
    elif lesson.kind == "chat":
        right, wanted = not said.lstrip().startswith("{"), "(an answer without a tool)"
    else:
        right = said == wanted
    return {"kind": lesson.kind, "messages": messages, "wanted": wanted, "said": said, "right": right}


def build_evaluation(
    graft: Graft,
    engines: AbstractContextManager[Sequence[Engine]],
    world: World,
    tools: Sequence[ToolSchema],
    config: Config,
    out: Path,
    *,
    others: Sequence[Callable[[], dict[str, float]]] = (),
    curves: Sequence[Path] = (),
    progress: Progress | None = None,
) -> dict[str, float]:
    """The ``evaluate`` stage. ``others`` are measurements of other rooms (search, speed), ``curves`` pictures to keep beside."""
    with engines as asked:  # gone before speed is measured
        figures, turns = graft_exams(graft, asked, world, tools, config, progress)
    for measure in others:
        figures |= measure()
    write_json(out / "figures.json", dict(sorted(figures.items())))
    write_json(out / "conversations.json", turns)
    write_json(out / "machine.json", machine())
    for curve in curves:
        if curve.exists():
            shutil.copyfile(curve, out / f"{curve.parent.parent.name}-{curve.name}")
    return figures
