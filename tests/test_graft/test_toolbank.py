"""The invented tools: whole, readable, and what the exam asks appears in no lesson."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from pinhole.graft import talking, toolbank
from pinhole.graft.toolbank import CITIES, EXAM, LESSONS, PEOPLE, Invented

OF_THE_EXAM = """licence license permits allowed rights purpose frame framed framing artwork material mirror flip reflection target wrap
gift present birthday article whom define meaning explain term stock warehouse depot remain blend merge overlay lay base brighten lighten
lighter gloomy percent photo podcast audio episode listen topic train trains departures destination"""
OUR_OWN = {"search", "related", "item", "board"}
ALL = [pytest.param(tool, id=tool.names.split("|")[0]) for tool in (*LESSONS, *EXAM)]


def names(tool: Invented) -> list[str]:
    return tool.names.split("|")


def arguments(tool: Invented) -> list[str]:
    return [name for synonyms in tool.args for name in synonyms.split("|")]


def plain(frame: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9{}' ]", " ", frame.lower()).split())


def texts(tools: Sequence[Invented]) -> Iterator[str]:
    for tool in tools:
        yield from (*names(tool), *arguments(tool), *tool.args.values(), tool.about, *tool.frames)


def words(tools: Sequence[Invented]) -> set[str]:
    return {word for text in texts(tools) for word in re.findall(r"[a-z]+", text.lower())}


def test_there_is_variety() -> None:
    assert len(LESSONS) >= 90 and len(PEOPLE[0]) >= 150 and len(CITIES[0]) >= 150
    assert all(2 <= len(names(tool)) <= 5 and 1 <= len(tool.args) <= 3 and 6 <= len(tool.frames) <= 10 for tool in LESSONS)
    alike = [tool for tool in LESSONS if max(Counter(tool.args.values()).values()) > 1]
    assert len(alike) >= len(LESSONS) / 6, "arguments of one kind, where order matters"
    assert any(frame.index("{1}") < frame.index("{0}") for tool in alike for frame in tool.frames)


def test_the_halves_share_nothing() -> None:
    for of in (names, arguments, lambda tool: [plain(frame) for frame in tool.frames], lambda tool: [tool.about]):
        lessons, exam = ({text for tool in tools for text in of(tool)} for tools in (LESSONS, EXAM))
        assert lessons and exam and not lessons & exam
    for bank in (PEOPLE, CITIES):
        assert not {word for name in bank[1] for word in name.split() if word != "my"} & {word for name in bank[0] for word in name.split()}
        assert all(len(half) == len(set(half)) for half in bank)


def test_no_lesson_has_a_word_that_tells_an_exam_tool() -> None:
    forms = {word + end for word in OF_THE_EXAM.split() for end in ("", "s", "es", "ed", "d", "ing", "ping", "ped")}
    assert not words(LESSONS) & forms
    assert not {word for half in (PEOPLE[0], CITIES[0]) for name in half for word in re.findall("[a-z]+", name)} & forms


def test_names_tell_tools_apart() -> None:
    counted = Counter(name for tool in (*LESSONS, *EXAM) for name in names(tool))
    assert not [name for name, n in counted.items() if n > 1]
    assert not set(counted) & {name for synonyms in talking._NAMES.values() for name in synonyms}
    assert not OUR_OWN & {name for tool in LESSONS for name in (*names(tool), *arguments(tool))}
    frames = Counter(plain(frame) for tool in (*LESSONS, *EXAM) for frame in tool.frames)
    assert not [frame for frame, n in frames.items() if n > 1]


@pytest.mark.parametrize("tool", ALL)
def test_a_tool_is_whole(tool: Invented) -> None:
    assert len(arguments(tool)) == len(set(arguments(tool))), "no two arguments may come out under one name"
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in (*names(tool), *arguments(tool)))
    assert all(kind in ("#", "text", "number", "person", "city") or len(set(kind.split("/"))) > 1 for kind in tool.args.values())
    assert list(tool.args.values())[::2].count("#") < 2, "only two references are drawn, in turn"
    marks = [f"<{k}>" for k in range(len(tool.args))]
    for frame in tool.frames:
        said = frame.format(*marks)
        assert all(said.count(mark) == 1 for mark in marks) and "{" not in said, frame
        assert frame == " ".join(frame.split()) and frame == frame.lower()


@pytest.mark.parametrize("tool", ALL)
@pytest.mark.parametrize("rng", [None, random.Random(0)], ids=["first names", "any names"])
def test_a_schema_is_valid(tool: Invented, rng: random.Random | None) -> None:
    for _ in range(5):
        made = toolbank.schema(tool, rng)
        assert made["name"] in names(tool) and made["description"] == tool.about
        properties = made["parameters"]["properties"]
        assert made["parameters"]["required"] == list(properties) and len(properties) == len(tool.args)
        for (synonyms, kind), (name, given) in zip(tool.args.items(), properties.items(), strict=True):
            assert name in synonyms.split("|")
            assert given["type"] == ("integer" if kind == "number" else "string")
            assert given.get("enum", []) == (kind.split("/") if "/" in kind else [])


@pytest.mark.parametrize("held", [False, True])
def test_values_are_of_their_kind_and_half(held: bool) -> None:
    rng = random.Random(0)

    def drawn(kind: str) -> list[object]:
        return [toolbank.value(kind, rng, held, "red owl", "#3") for _ in range(400)]

    numbers = drawn("number")
    assert all(isinstance(n, int) and 1 <= n <= 2000 for n in numbers)
    assert len(set(numbers)) > 50 or held
    assert held or sum(n <= 20 for n in numbers) > len(numbers) / 2
    assert set(drawn("person")) <= set(PEOPLE[held]) and set(drawn("city")) <= set(CITIES[held])
    assert set(drawn("a/b c")) == {"a", "b c"} and set(drawn("text")) == {"red owl"} and set(drawn("#")) == {"#3"}


def test_the_exam_draws_as_it_always_did() -> None:
    """Figures of models can be compared only while the exam asks the same."""
    rng = random.Random(1)
    assert [toolbank.value(kind, rng, True, "owl", "#1") for kind in ("number", "person", "city", "number", "oak/steel/glass")] == [
        6,
        "grandpa",
        "seoul",
        5,
        "steel",
    ]
    assert [names(tool)[0] for tool in EXAM[:3]] == ["licence_check", "frame_shop", "mirror"]
