"""A call is right only when its name and all its arguments are; anybody's file of lessons is marked the same way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pinhole.config import GraftConfig
from pinhole.engines.base import Call
from pinhole.errors import UnknownItem, UsageError
from pinhole.evaluation.tool_exams import (
    Reply,
    core_turns,
    is_valid,
    lessons_file,
    read_lessons,
    right_call,
    right_name,
    tool_exams,
    unseen_turns,
)
from pinhole.graft import toolbank
from pinhole.graft.prompt import Soft, call_text, card, parse_call
from test_evaluation.oracle import Oracle
from toy_model import OWN, vectors
from toy_world import tiny_world

CONFIG = GraftConfig()
N = 40


@pytest.fixture(scope="module")
def world() -> Any:
    return tiny_world()


@pytest.fixture(scope="module")
def turns(world: Any) -> list[Any]:
    return [*core_turns(world, OWN, CONFIG, N, 0), *unseen_turns(world, OWN, CONFIG, N, 0)]


def call(name: str, **arguments: Any) -> Reply:
    return Reply(Call(name, arguments, call_text(name, arguments)), "")


# -- marking --------------------------------------------------------------------------------------

WANTED = {"name": "search", "arguments": {"text": "red boat", "like": "#2"}}


@pytest.mark.parametrize(
    ("reply", "name", "right"),
    [
        (call("search", text="red boat", like="#2"), True, True),
        (call("search", like="#2", text="  The RED  boat "), True, True),
        (call("search", text="red boat", like="#2", unlike=""), True, True),
        (call("search", text="red boat"), True, False),
        (call("search", text="red boat", like="#3"), True, False),
        (call("search", text="red boats", like="#2"), True, False),
        (call("search", text="red boat", like="#2", category="boats"), True, False),
        (call("related", text="red boat", like="#2"), False, False),
        (Reply(None, "here is a red boat"), False, False),
    ],
)
def test_a_call_needs_every_argument(reply: Reply, name: bool, right: bool) -> None:
    assert (right_name(reply, WANTED), right_call(reply, WANTED)) == (name, right)


def test_a_turn_without_a_tool_wants_none() -> None:
    assert right_call(Reply(None, "hello"), {"answer": ""}) and not right_call(call("search", text="hello"), {"answer": ""})


def test_valid_is_what_could_be_run() -> None:
    tools = [*OWN, {"name": "size", "parameters": {"type": "object", "properties": {"to": {"enum": ["s", "l"]}}, "required": ["to"]}}]
    good = [call("search"), call("search", text="x", like="#1"), call("related", item="#1"), call("size", to="l"), Reply(None, "hello")]
    bad = [call("related"), call("search", colour="red"), call("find", text="x"), call("size", to="xl"), Reply(None, '{"tool":"sea')]
    assert [is_valid(reply, tools) for reply in [*good, *bad]] == [True] * 5 + [False] * 5


# -- questions ------------------------------------------------------------------------------------


def test_turns_show_held_out_pictures_and_unseen_tools_only(world: Any, turns: list[Any]) -> None:
    held = {f"{world.space}:{world.pictures[i].id}" for i in world.held}
    assert {part.key for turn in turns for message in turn.messages for part in message.parts if isinstance(part, Soft)} <= held
    lessons = {name for tool in toolbank.LESSONS for name in tool.names.split("|")}
    unseen = [turn for turn in turns if turn.kind == "unseen"]
    assert len(unseen) == N and len(turns) == 2 * N
    assert all(turn.expect["name"] not in lessons and turn.expect["name"] not in {tool["name"] for tool in OWN} for turn in unseen)
    assert all(len(turn.tools) == len(OWN) + 2 and turn.expect["name"] in {tool["name"] for tool in turn.tools} for turn in unseen)


def test_what_is_wanted_can_be_run(turns: list[Any]) -> None:
    for turn in turns:
        if "name" in turn.expect:
            assert is_valid(call(turn.expect["name"], **turn.expect["arguments"]), turn.tools)


# -- figures --------------------------------------------------------------------------------------


def figures(world: Any, turns: list[Any], change: Callable[[str], str]) -> dict[str, float]:
    found, answered = tool_exams([Oracle(turns, change)], world, OWN, CONFIG, N, 0)
    assert len(answered) == 2 * N
    return found


def test_the_right_answers_get_everything(world: Any, turns: list[Any]) -> None:
    found = figures(world, turns, str)
    for key in ("tools.valid", "tools.name", "tools.arguments", "tools.references", "tools.unseen"):
        assert found[key] == 1 and found[f"{key}.low"] < 1 == found[f"{key}.high"]
    calls = [turn for turn in turns[:N] if "name" in turn.expect]
    referring = [turn for turn in calls if "#" in json.dumps(turn.expect["arguments"])]
    assert found["tools.valid.n"] == 2 * N and found["tools.name.n"] == N and found["tools.unseen.n"] == N
    assert found["tools.arguments.n"] == len(calls) < N and found["tools.references.n"] == len(referring)
    assert sum(found[key] for key in found if key.startswith("tools.by_kind.") and key.endswith(".n")) == N


def without_last(answer: str) -> str:
    called = parse_call(answer)
    return call_text(called[0], dict(list(called[1].items())[:-1])) if called else answer


@pytest.mark.parametrize(
    ("change", "name", "arguments"),
    [
        (without_last, 1.0, 0.0),
        (lambda answer: answer.replace('"tool":"', '"tool":"x'), 0.1, 0.0),
        (lambda answer: "no idea", 0.1, 0.0),
    ],
)
def test_nothing_but_the_whole_call_counts(world: Any, turns: list[Any], change: Callable[[str], str], name: float, arguments: float) -> None:
    found = figures(world, turns, change)
    assert found["tools.name"] == pytest.approx(name) and found["tools.arguments"] == arguments == found["tools.unseen"]


def test_a_world_without_names_asks_nothing() -> None:
    world = tiny_world(9)
    world.held = []
    assert tool_exams([Oracle()], world, OWN, CONFIG, N, 0)[0]["tools.valid.n"] == 0


# -- anybody's lessons ----------------------------------------------------------------------------


def show(k: int, id: str) -> Any:
    if id != "a/1":
        raise UnknownItem(f"no item `{id}`", fix="nearest: a/1")
    return card(k, Soft(id, vectors(1)[0]), "a lemon")


TOOL = {"type": "function", "function": {"name": "buy", "description": "buy it", "parameters": {"type": "object", "properties": {"item": {}}}}}
GOOD = {
    "messages": [{"role": "user", "content": [{"type": "item", "id": "a/1"}, {"type": "text", "text": "I'll take #1"}]}],
    "tools": [TOOL],
    "expect": {"name": "buy", "arguments": {"item": "#1"}},
}
TOLD = {"messages": [{"role": "user", "content": "yes or no?"}], "expect": {"answer": "Yes."}}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_a_file_of_anybodys_lessons(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", GOOD, "", TOLD, TOLD | {"expect": {"answer": "no"}})
    lessons = read_lessons(path, show)
    assert [tool["name"] for tool in lessons[0].tools] == ["buy"] and "buy(item)" in lessons[0].messages[0].text
    assert lessons[0].messages[1].text == "#1 a lemon\nI'll take #1" and isinstance(lessons[0].messages[1].parts[1], Soft)

    class Buys(Oracle):
        def chat(self, messages: Any, tools: Any = (), **_: Any) -> Any:
            self.right = dict.fromkeys([None], "")
            self.change = lambda _: '{"tool":"buy","item":"#1"}' if tools else "yes"
            return super().chat(messages, tools)

    found = lessons_file(path, Buys(), show)
    assert found["lessons.right"] == pytest.approx(2 / 3) and found["lessons.name"] == 1
    assert found["lessons.right.n"] == found["lessons.name.n"] == 3 and found["lessons.right.low"] < 2 / 3 < found["lessons.right.high"]


@pytest.mark.parametrize(
    "bad",
    [
        "{half",
        "[1]",
        '"text"',
        {},
        GOOD | {"messages": []},
        GOOD | {"messages": "hello"},
        GOOD | {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        GOOD | {"messages": [{"role": "user", "content": [{"type": "item", "id": "nowhere"}]}]},
        GOOD | {"tools": ["buy"]},
        GOOD | {"expect": {}},
        GOOD | {"expect": {"name": "buy"}},
        GOOD | {"expect": "buy"},
        GOOD | {"expect": {"answer": 3}},
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(UsageError, match=r"mine\.jsonl:3"):
        read_lessons(written(tmp_path / "mine.jsonl", GOOD, TOLD, bad), show)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"cannot read lessons.*mine\.jsonl"):
        read_lessons(tmp_path / "mine.jsonl", show)
    with pytest.raises(UsageError, match="cannot read lessons"):
        read_lessons(tmp_path / "none.jsonl", show)
