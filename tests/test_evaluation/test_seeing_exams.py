"""The exams of seeing cannot flatter: held-out pictures, hidden titles, an honest n, and the floor beside the score."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pinhole.evaluation import seeing_exams as exams
from pinhole.evaluation.answers import blinded
from pinhole.evaluation.seeing_exams import EXAMS, probe, questions, seeing_exams
from pinhole.graft.prompt import Soft
from pinhole.graft.seeing import Lesson
from toy_model import tiny_graft
from toy_world import tiny_world

KINDS = [kind for kind, _ in EXAMS.values()]


@pytest.fixture(scope="module")
def world() -> Any:
    return tiny_world()


@pytest.mark.parametrize("kind", KINDS)
def test_only_held_out_pictures_without_their_titles(world: Any, kind: str) -> None:
    held = {f"{world.space}:{world.pictures[i].id}" for i in world.held}
    for lesson in questions(world, kind, 60, seed=0):
        softs = [part for message in lesson.messages for part in message.parts if isinstance(part, Soft)]
        assert softs and {part.key for part in softs} <= held
        assert all(re.fullmatch(r"#\d", line) for line in lesson.messages[1].text.split("\n")[:-1])
        assert lesson.answer in lesson.choices


@pytest.mark.parametrize("kind", KINDS)
def test_questions_differ_and_come_from_the_seed_alone(world: Any, kind: str) -> None:
    def keys(seed: int) -> list[Any]:
        return [(lesson.expect["items"], lesson.messages[1].text, lesson.answer) for lesson in questions(world, kind, 40, seed)]

    assert keys(0) == keys(0) != keys(1)
    assert len({str(key) for key in keys(0)}) == len(keys(0))


def test_fewer_questions_only_where_there_are_no_more(world: Any) -> None:
    assert len(questions(world, "category", 20, 0)) == 20
    assert len(questions(world, "category", 10_000, 0)) == len(world.held)  # each picture once, all of them
    assert len(questions(world, "pick", 300, 0)) == 300
    assert questions(tiny_world(9), "theme", 300, 0) == []


def test_figures_have_n_interval_chance_and_blind(world: Any) -> None:
    figures, answered = seeing_exams(tiny_graft(context=2048), world, 12, seed=0)
    for key, (_, chance) in EXAMS.items():
        assert figures[f"{key}.n"] == 12
        assert 0 <= figures[f"{key}.low"] <= figures[key] <= figures[f"{key}.high"] <= 1
        assert 0 <= figures[f"{key}.blind"] <= 1
        assert figures[f"{key}.chance"] == chance or not chance and 1 / 12 <= figures[f"{key}.chance"] < 1
    asked = [lesson for lesson, _ in answered if lesson.kind == "category"]
    assert figures["see.category.accuracy.chance"] == max(sum(one.answer == kind for one in asked) for kind in world.categories) / 12
    assert len(answered) == 12 * len(EXAMS) and all(said in lesson.choices for lesson, said in answered)
    assert figures["board.theme.accuracy.new.n"] == sum(
        lesson.kind == "theme" and lesson.expect["board"] == "board/owl" for lesson, _ in answered
    ) or (figures["board.theme.accuracy.new.n"] <= 12)


def test_a_model_that_knows_everything_gets_all_and_blind_gets_less(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blind score is of what the model says of mean pictures, and never of the pictures themselves."""

    def knows(graft: Any, lessons: list[Lesson], progress: Any = None) -> list[str]:
        dark = [any(isinstance(part, Soft) and part.key == "mean" for message in lesson.messages for part in message.parts) for lesson in lessons]
        return [lesson.choices[0] if blind else lesson.answer for lesson, blind in zip(lessons, dark, strict=True)]

    monkeypatch.setattr(exams, "choose", knows)
    figures, _ = seeing_exams(SimpleNamespace(nested=(1,)), world, 40, seed=0)  # type: ignore[arg-type]
    for key in EXAMS:
        assert figures[key] == 1 and figures[f"{key}.blind"] < 0.8


def test_the_probe_reads_the_same_vectors(world: Any) -> None:
    asked = questions(world, "category", 45, 0)
    assert probe(world, asked) > 0.9
    scrambled = tiny_world()
    scrambled.vectors = np.random.default_rng(0).permutation(scrambled.vectors)
    assert probe(scrambled, asked) < 0.65
    assert probe(world, []) == 0.0
    assert blinded(asked[0], world.mean).expect == asked[0].expect
