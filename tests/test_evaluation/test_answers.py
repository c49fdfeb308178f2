from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pinhole.evaluation.answers import blinded, choose
from pinhole.evaluation.seeing_exams import questions
from pinhole.graft.prompt import Message, Soft
from pinhole.graft.seeing import Lesson
from toy_model import tiny_graft
from toy_world import tiny_world


@pytest.fixture(scope="module")
def graft() -> Any:
    return tiny_graft(context=2048)


def log_probability(graft: Any, lesson: Lesson, choice: str) -> float:
    """Of one choice with its end of turn, by one plain forward pass."""
    prompt = graft.prompter.render((*lesson.messages[:-1], Message.of("assistant", choice)), generate=False)
    with torch.no_grad():
        logits = torch.log_softmax(graft.lm(inputs_embeds=graft.embed(prompt)).logits[0].float(), -1)
    learned = [i for i, learn in enumerate(prompt.learn) if learn]
    return sum(float(logits[i - 1, prompt.tokens[i]]) for i in learned)


@pytest.mark.parametrize("kind", ["category", "match", "pick", "odd", "theme"])
def test_packed_choices_are_the_choices_one_by_one(graft: Any, kind: str) -> None:
    lessons = questions(tiny_world(), kind, 6, seed=1)
    alone = [max(lesson.choices, key=lambda choice, lesson=lesson: log_probability(graft, lesson, choice)) for lesson in lessons]
    assert choose(graft, lessons) == alone


def test_company_changes_no_answer(graft: Any) -> None:
    lessons = questions(tiny_world(), "pick", 12, seed=2)
    assert choose(graft, lessons) == choose(graft, lessons[::-1])[::-1] == [choose(graft, [lesson])[0] for lesson in lessons]
    assert choose(graft, []) == []


def test_a_longer_choice_is_scored_whole(graft: Any) -> None:
    """A choice that begins like another is another choice."""
    lesson = questions(tiny_world(), "pick", 1, seed=0)[0]
    both = replace(lesson, choices=("#1", "#1 and more of it"))
    assert choose(graft, [both]) == [max(both.choices, key=lambda choice: log_probability(graft, both, choice))]


def test_blinded_changes_pictures_and_nothing_else() -> None:
    world = tiny_world()
    for lesson in questions(world, "odd", 5, seed=0):
        dark = blinded(lesson, world.mean)
        assert [message.text for message in dark.messages] == [message.text for message in lesson.messages]
        assert (dark.choices, dark.answer, dark.expect) == (lesson.choices, lesson.answer, lesson.expect)
        parts = [part for message in dark.messages for part in message.parts if isinstance(part, Soft)]
        assert len(parts) == 4 and all((part.vector == world.mean).all() for part in parts)
