from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pinhole.config import GraftConfig
from pinhole.errors import SpaceMismatch, UsageError
from pinhole.evaluation.answers import blinded, choose
from pinhole.evaluation.seeing_exams import questions
from pinhole.graft.model import Graft
from pinhole.graft.prompt import Message, Soft
from pinhole.graft.seeing import Lesson
from pinhole.graft.talking import talking_lessons
from pinhole.graft.train import fill_rows, new_graft, seeing_lessons, train
from pinhole.graft.warm_start import warm_start
from pinhole.workspace import read_json
from toy_model import OWN, tiny_graft
from toy_world import tiny_world

SETTINGS = GraftConfig(seeing_steps=6, talking_steps=4, row_tokens=384, batch_rows=2, checkpoint_steps=3, lora_rank=4, dtype="float32")


class Stop(Exception):
    pass


def run(out: Path, config: GraftConfig = SETTINGS, stop_at: int | None = None) -> tuple[Graft, dict[str, Any]]:
    graft, world = tiny_graft(), tiny_world()
    warm_start(graft, world)

    def progress(done: int, total: int) -> None:
        if done == stop_at:
            raise Stop

    return graft, train(graft, world, OWN, config, out, progress)


def test_a_base_converted_just_now_trains_like_one_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a model of a package draws random numbers, reading it again does not: neither may show in the graft."""
    made = tiny_graft()

    def load(draws: int) -> dict[str, torch.Tensor]:
        def base(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
            torch.rand(draws)
            return made.lm, made.tokenizer

        monkeypatch.setattr("pinhole.graft.train.load_base", base)
        return new_graft(tiny_world(), SETTINGS).projector.state_dict()

    first, later = load(1000), load(0)
    assert first["inner.weight"].std() > 0
    assert all(torch.equal(tensor, later[name]) for name, tensor in first.items())


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    straight, figures = run(whole)
    for stop in (4, 8):  # between checkpoints, in either stage
        with pytest.raises(Stop):
            run(broken, stop_at=stop)
    resumed, again = run(broken)
    for (name, a), (_, b) in zip(straight.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert figures["graft.lessons"] == again["graft.lessons"] > 100


def test_training_teaches(tmp_path: Path) -> None:
    """The loss of answers never seen in the same words falls by half; the schedule and the masters work."""
    config = SETTINGS.model_copy(
        update={"seeing_steps": 60, "talking_steps": 0, "lora_rank": 16, "lora_learning_rate": 3e-3, "checkpoint_steps": 1000}
    )
    run(tmp_path, config)
    losses = [point["loss"] for point in read_json(tmp_path / "curve.json")]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])


def test_the_second_stage_sees_in_every_step() -> None:
    world, graft = tiny_world(), tiny_graft()
    settings = SETTINGS.model_copy(update={"row_tokens": 384, "batch_rows": 2, "replay": 0.5})
    for seed in range(5):
        rng = random.Random(seed)
        kinds: list[str] = []
        streams = talking_lessons(OWN, settings)(world, rng, 0.0), seeing_lessons(world, rng, 1.0)
        talk, see = (noted(stream, kinds) for stream in streams)
        alone = fill_rows(talk, graft.prompter, settings)
        assert len(alone) == 2 and all(row.lessons and len(row.tokens) <= 384 for row in alone)
        kinds.clear()
        both = fill_rows(talk, graft.prompter, settings, see)
        assert [row.lessons for row in both[:2]] and all(len(row.tokens) <= 384 for row in both[:2])
        assert len(both) == 4 and all(len(row.tokens) <= 192 for row in both[2:]) and {"pick", "odd", "theme", "match"} & set(kinds)


def test_rows_too_short_for_a_lesson_are_said() -> None:
    world, graft = tiny_world(), tiny_graft()
    lessons = seeing_lessons(world, random.Random(0), 1.0)
    with pytest.raises(UsageError, match=r"no lesson fits into 8 tokens \(\[graft\] row_tokens\)"):
        fill_rows(lessons, graft.prompter, SETTINGS.model_copy(update={"row_tokens": 8}))
    settings = SETTINGS.model_copy(update={"replay": 0.01})
    assert len(fill_rows(lessons, graft.prompter, settings, lessons)) == 2, "a replay too short for a lesson has none"


def noted(lessons: Iterator[Lesson], kinds: list[str]) -> Iterator[Lesson]:
    for lesson in lessons:
        kinds.append(lesson.kind)
        yield lesson


def test_rows_weigh_what_their_lessons_weigh() -> None:
    world, graft = tiny_world(), tiny_graft()
    lessons = list(islice(talking_lessons(OWN, SETTINGS)(world, random.Random(0), 0.0), 20))
    assert {lesson.weight for lesson in lessons} > {1.0}, "calls and others"
    (row,) = fill_rows(iter(lessons), graft.prompter, SETTINGS.model_copy(update={"row_tokens": 10_000, "batch_rows": 1}))
    assert row.lessons == 20 and sum(row.learn_weight) == pytest.approx(sum(lesson.weight for lesson in lessons))


def test_a_blinded_question_shows_the_mean_picture_everywhere() -> None:
    world, graft = tiny_world(), tiny_graft()
    asked = questions(world, "pick", 20, seed=1)
    dark = [blinded(lesson, world.mean) for lesson in asked]
    assert {part.key for lesson in dark for message in lesson.messages for part in message.parts if isinstance(part, Soft)} == {"mean"}
    said = choose(graft, asked)
    assert all(answer in lesson.choices for lesson, answer in zip(asked, said, strict=True))


def test_a_soft_token_leans_as_far_as_it_is_told() -> None:
    graft, world = tiny_graft(), tiny_world()
    warm_start(graft, world)
    alone, word = graft.soft_tokens([world.soft(0)])[0], graft.word("red circle")
    half, whole, none = graft.soft_tokens([world.soft(0).leaning("red circle", 0.5), world.soft(0).leaning("red circle", 1.0), world.soft(0)])
    torch.testing.assert_close(half, (alone + word) / 2)
    torch.testing.assert_close(whole, word)
    torch.testing.assert_close(none, alone)
    torch.testing.assert_close(word.pow(2).mean().sqrt(), graft.projector.length.detach())


def test_saved_and_loaded_is_the_same_model(tmp_path: Path) -> None:
    graft, _ = run(tmp_path)
    folder = tmp_path / "saved"
    folder.mkdir()
    graft.save(folder)
    again = Graft.load(folder, torch.float32)
    prompt = graft.prompter.render([Message.of("user", "what is #1", Soft("x", np.ones(24, np.float32)))])
    with torch.no_grad():
        one, two = (model.lm(inputs_embeds=model.embed(prompt)).logits for model in (graft, again))
    assert torch.equal(one, two)
    assert again.space == graft.space and again.card == graft.card
    assert all(path.suffix != ".bin" and path.suffix != ".pt" for path in folder.iterdir())
    assert not any(".lora_" in name for name in load_file(folder / "model.safetensors"))


def test_vectors_of_another_space_are_refused() -> None:
    with pytest.raises(SpaceMismatch, match="0123456789abcdef.*feedfeedfeedfeed"):
        tiny_graft().check_space("feedfeedfeedfeed")
