from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pinhole.config import Config, parse
from pinhole.evaluation.exams import build_evaluation, conversations, graft_exams, prompt_costs
from pinhole.evaluation.figures import MARKS, NAMED
from pinhole.evaluation.seeing_exams import questions
from pinhole.evaluation.tool_exams import core_turns, unseen_turns
from pinhole.workspace import read_json
from test_evaluation.oracle import Oracle
from toy_model import OWN, tiny_graft
from toy_world import tiny_world

CONFIG = parse({"evaluate": {"n": 6, "conversations": 6}}, where="test")


@pytest.fixture(scope="module")
def world() -> Any:
    return tiny_world()


@pytest.fixture(scope="module")
def graft() -> Any:
    return tiny_graft(context=2048)


def test_every_figure_of_the_exams_is_named(graft: Any, world: Any) -> None:
    figures, _ = graft_exams(graft, [Oracle()], world, OWN, CONFIG)
    for key, value in figures.items():
        whole, _, part = key.rpartition(".")
        assert key in NAMED or (whole in NAMED and part in ("n", "low", "high", "clusters", *MARKS)), key
        assert isinstance(value, (int, float)) and value == value
        if key.endswith(".low"):
            assert value <= figures[whole] <= figures[f"{whole}.high"]
    json.dumps(figures, allow_nan=False)


def test_tokens_of_a_card_are_what_the_prompter_makes(graft: Any, world: Any) -> None:
    costs = prompt_costs(graft, world)
    assert costs["cost.tokens_per_item"] == 1 and costs["cost.tokens_per_card.n"] == len(world.held)
    assert costs["cost.tokens_per_card"] > 3


def test_conversations_are_good_and_bad_and_of_many_kinds(world: Any) -> None:
    turns = [*core_turns(world, OWN, Config().graft, 40, 0), *unseen_turns(world, OWN, Config().graft, 10, 0)]
    turns += [lesson for kind in ("pick", "match", "category", "odd") for lesson in questions(world, kind, 10, 0)]
    answered = [(turn, turn.answer if i % 3 else "something else") for i, turn in enumerate(turns)]
    shown = conversations(answered, 10, seed=0)
    assert shown == conversations(answered, 10, seed=0) != conversations(answered, 10, seed=1)
    assert Counter(one["right"] for one in shown) == {True: 5, False: 5}
    assert max(Counter((one["kind"], one["right"]) for one in shown).values()) == 1
    held = {world.pictures[i].id for i in world.held}
    for one in shown:
        assert (one["said"] == one["wanted"]) == one["right"] or one["kind"] == "chat"
        assert [message["role"] for message in one["messages"]][-1] == "user" and "system" not in {message["role"] for message in one["messages"]}
        assert {part["item"] for message in one["messages"] for part in message["parts"] if isinstance(part, dict)} <= held
    json.dumps(shown)


@pytest.mark.parametrize(("right", "expected"), [(1, {True: 10}), (0, {False: 10})])
def test_where_all_are_right_or_wrong(world: Any, right: int, expected: dict[bool, int]) -> None:
    """As many as were asked for are shown, whichever way they went."""
    answered = [(lesson, lesson.answer if right else "?") for lesson in questions(world, "pick", 30, 0)]
    found = Counter(one["right"] for one in conversations(answered, 10, 0))
    assert set(found) == set(expected) and found.total() <= 10
    assert conversations([], 10, 0) == [] == conversations(answered, 0, 0)


def test_the_stage_leaves_what_the_report_needs(graft: Any, world: Any, tmp_path: Path) -> None:
    curve = tmp_path / "graft" / "key" / "curve.png"
    curve.parent.mkdir(parents=True)
    curve.write_bytes(b"\x89PNG")
    out = tmp_path / "out"
    out.mkdir()
    seen: list[tuple[int, int]] = []
    figures = build_evaluation(
        graft,
        nullcontext([Oracle()]),
        world,
        OWN,
        CONFIG,
        out,
        others=[lambda: {"speed.x": 1.5}],
        curves=[curve, tmp_path / "none.png"],
        progress=lambda *at: seen.append(at),
    )
    assert read_json(out / "figures.json") == figures and figures["speed.x"] == 1.5
    assert len(read_json(out / "conversations.json")) == 6 and read_json(out / "machine.json")["cores"]
    assert sorted(path.name for path in out.iterdir()) == ["conversations.json", "figures.json", "graft-curve.png", "machine.json"]
    assert seen and seen[-1][0] == seen[-1][1]
