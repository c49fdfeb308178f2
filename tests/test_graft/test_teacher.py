"""A teacher's answers: what it said and thought is kept whole, survives a kill, and draws the student towards it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pinhole.config import GraftConfig
from pinhole.errors import UsageError
from pinhole.evaluation.eyes import Eyed
from pinhole.graft import teacher as module
from pinhole.graft.distil import divergence, likeliest
from pinhole.graft.fast import fast_rows
from pinhole.graft.helpers import Helpers
from pinhole.graft.learner import Learner
from pinhole.graft.packing import Row
from pinhole.graft.prompt import Prompt, Soft
from pinhole.graft.said import Said
from pinhole.graft.scoring import answer_logits
from pinhole.graft.seeing import Lesson, Seeing
from pinhole.graft.taught import FOLDER, SHARD, Taught, asked, check_tokenizer, drawn, read_shard, teach
from pinhole.graft.teacher import MOST, GraftTeacher, K
from pinhole.graft.train import fill_rows, seeing_lessons, train
from pinhole.graft.tuning import Trainer
from pinhole.vision.grid import apart
from pinhole.workspace import read_json
from toy_model import DIM, tiny_graft
from toy_world import tiny_world

SCENES = SHARD + 6  # two shards, the second one short
SETTINGS = GraftConfig(row_tokens=256, batch_rows=2, lora_rank=4, dtype="float32", taught_scenes=SCENES)


def scenes(n: int, seed: int = 0) -> list[list[Lesson]]:
    source = drawn(tiny_world(), seed)
    return [next(source) for _ in range(n)]


def teacher(seed: int = 0) -> GraftTeacher:
    return GraftTeacher(tiny_graft(seed=seed), tiny_world(), f"tiny {seed}")


class Counting:
    """A teacher that says little, that is remembered, and that may be killed."""

    def __init__(self, identity: str = "counting", dies_after: int = 99) -> None:
        self.identity, self.tokenizer, self.asked, self.left = identity, tiny_graft().tokenizer, 0, dies_after

    def answer(self, lessons: Sequence[Lesson]) -> list[Said]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked += len(lessons)
        found = []
        for lesson in lessons:
            tokens = np.array([len(lesson.answer), 2], np.int32)
            ids = np.stack([tokens, tokens + 1], 1)
            found.append(Said(tokens, ids, np.log(np.array([[0.5, 0.3, 0.2]] * 2, np.float32))))
        return found


@pytest.fixture(scope="module")
def taught() -> Taught:
    lessons = scenes(8)
    said = iter(teacher().answer([lesson for scene in lessons for lesson in scene]))
    return Taught([[replace(lesson, said=next(said)) for lesson in scene] for scene in lessons if scene], share=0.5)


# -- what a teacher says ------------------------------------------------------------------------


def test_what_is_kept_is_what_the_model_gives(taught: Taught) -> None:
    graft, world = tiny_graft(), tiny_world()
    for lesson in [lesson for scene in taught.scenes for lesson in scene][:6]:
        assert lesson.said and lesson.said.ids.shape[1] == K
        (plain,) = Seeing(world, random.Random(0)).again([replace(lesson, said=None)])
        prompt = graft.prompter.render(plain.messages, generate=False).asked()
        tokens: list[int] = []
        for token, ids, logs in zip(lesson.said.tokens, lesson.said.ids, lesson.said.logs, strict=True):
            with torch.no_grad():  # token by token, by the stock class
                logits = graft.lm(inputs_embeds=graft.embed(prompt.then(tokens))).logits[0, -1].float()
            log = torch.log_softmax(logits, -1)
            assert token == ids[0] == int(logits.argmax())
            assert sorted(ids.tolist()) == sorted(logits.topk(K).indices.tolist())
            assert np.allclose(logs[:-1], log[ids.tolist()].numpy(), atol=2e-3)
            assert np.exp(logs).sum() == pytest.approx(1, abs=1e-5)
            tokens.append(int(token))
        assert len(tokens) == MOST or tokens[-1] == graft.prompter.end


def test_a_right_guess_saves_passes_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graft, passes = tiny_graft(), 0
    lessons = [lesson for scene in scenes(3) for lesson in scene][:3]
    before = teacher().answer(lessons)
    words = [graft.tokenizer.decode(said.tokens[:-1]) for said in before]
    real = answer_logits

    def counted(*args: Any) -> Any:
        nonlocal passes
        passes += 1
        return real(*args)

    monkeypatch.setattr(module, "answer_logits", counted)
    monkeypatch.setattr(module._Answer, "begin", classmethod(_knowing(before, module._Answer.begin)))
    again = teacher().answer(lessons)
    assert passes == 1 and words
    for one, other in zip(before, again, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert np.allclose(one.logs, other.logs, atol=2e-3)


def _knowing(said: list[Said], begin: Any) -> Any:
    known = iter(said)

    def told(kind: Any, *prompt: Any) -> Any:
        answer = begin(*prompt)
        answer.guess = next(known).tokens.tolist()
        return answer

    return told


def test_it_may_see_more_than_the_student() -> None:
    """The small model with eyes: its pictures are patches, the student's one token; the lessons are the same."""
    world = tiny_world()
    noise = np.random.default_rng(1).standard_normal((len(world.pictures), 4, DIM)).astype(np.float32)
    world.cells, world.whole = (lambda rows: apart(noise[list(rows)], 2)), (lambda rows: world.vectors[list(rows)])
    eyed = Eyed.of(world)
    lessons = scenes(1)[0]
    shown = Seeing(eyed, random.Random(0)).again(lessons)
    prompts = [tiny_graft().prompter.render(one.messages) for one in (lessons[0], shown[0])]
    assert len(prompts[1].soft) == 4 * len(prompts[0].soft)
    assert len(GraftTeacher(tiny_graft(), eyed, "eyes").answer(lessons)) == len(lessons)
    assert GraftTeacher(tiny_graft(), eyed, "eyes").identity != GraftTeacher(tiny_graft(), tiny_world(), "eyes").identity


# -- lessons, drawn and shown again --------------------------------------------------------------


def test_scenes_are_a_function_of_seed_and_number() -> None:
    def plain(found: list[list[Lesson]]) -> list[Any]:
        return [[message.plain() for message in lesson.messages] for scene in found for lesson in scene]

    assert plain(scenes(5)) == plain(scenes(5)) != plain(scenes(5, seed=1))
    held = {picture.id for picture in tiny_world().pictures if picture.held}
    assert not held & {id for scene in scenes(40) for lesson in scene for id in lesson.expect["items"]}
    assert not any(part.vector.size for scene in scenes(5) for one in scene for m in one.messages for part in m.parts if isinstance(part, Soft))


def test_a_scene_is_shown_again_as_pictures_are_shown_now() -> None:
    world = tiny_world()
    scene = next(one for one in scenes(20) if len(one) > 1)

    def softs(**settings: float) -> list[Soft]:
        found = Seeing(world, random.Random(1), **settings).again(scene)
        assert [one.answer for one in found] == [one.answer for one in scene]
        return [part for lesson in found for message in lesson.messages for part in message.parts if isinstance(part, Soft)]

    plain = softs()
    assert all(np.array_equal(soft.vector, world.vectors[world.at[soft.item]]) and not soft.lean for soft in plain)
    leaning = softs(lean=1.0, drop=0.5)
    assert all(soft.lean and soft.word for soft in leaning)
    for soft in leaning:
        assert soft.key in {other.key for other in leaning if other is not soft and other.item == soft.item} or len(scene) == 1  # shared in the row
        assert not np.array_equal(soft.vector, world.vectors[world.at[soft.item]])


def test_what_is_asked_is_known_by_questions_and_pictures() -> None:
    world, some = tiny_world(), scenes(4)
    before = asked(world, some)
    assert before == asked(tiny_world(), scenes(4)) != asked(world, scenes(3))
    world.vectors[world.at[next(lesson for scene in some for lesson in scene).expect["items"][0]]] += 1
    assert asked(world, some) != before


# -- kept ---------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def told(who: Any, out: Path, before: Path | None = None) -> Taught:
    return teach(who, tiny_world(), tiny_graft().tokenizer, SETTINGS, out, before)


def test_a_killed_run_goes_on_and_ends_equal(tmp_path: Path) -> None:
    whole = told(Counting(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        told(Counting(dies_after=1), tmp_path / "killed")
    assert len(files(tmp_path / "killed")) == 1
    second = Counting()
    resumed = told(second, tmp_path / "killed")
    assert 0 < second.asked < sum(len(scene) for scene in whole.scenes) / 2
    assert files(tmp_path / "killed") == files(tmp_path / "whole") and len(files(tmp_path / "whole")) == 2
    for one, other in zip(whole.scenes, resumed.scenes, strict=True):
        assert [lesson.said.tokens.tolist() for lesson in one if lesson.said] == [lesson.said.tokens.tolist() for lesson in other if lesson.said]
    assert not list(tmp_path.rglob(".*"))


def test_the_artefact_before_is_not_asked_again(tmp_path: Path) -> None:
    told(Counting(), tmp_path / "one")
    nobody = Counting(dies_after=0)
    told(nobody, tmp_path / "two", before=tmp_path / "one")
    assert files(tmp_path / "one") == files(tmp_path / "two") and not nobody.asked
    other = Counting("another")
    told(other, tmp_path / "two", before=tmp_path / "one")
    assert other.asked and len(list((tmp_path / "two" / FOLDER).iterdir())) == 2


def test_a_damaged_shard_is_answered_again(tmp_path: Path) -> None:
    told(Counting(), tmp_path)
    first, kept = next(iter(sorted(tmp_path.rglob("*.safetensors")))), files(tmp_path)
    first.write_bytes(first.read_bytes()[:100])
    assert read_shard(first, "") is None
    who = Counting()
    told(who, tmp_path)
    assert who.asked and files(tmp_path) == kept


def test_another_tokenizer_is_refused_with_what_differs() -> None:
    ours, theirs = tiny_graft().tokenizer, tiny_graft().tokenizer
    check_tokenizer(theirs, ours)
    theirs.add_tokens(["zebra"])
    with pytest.raises(UsageError, match=r"number 1 tokens differently: 'zebra' is \d+ and nothing \(\[graft\] teacher\).* same tokenizer"):
        check_tokenizer(theirs, ours)


# -- the loss -----------------------------------------------------------------------------------


def test_divergence_is_that_of_the_tokens_and_the_rest() -> None:
    torch.manual_seed(0)
    student, master = torch.randn(5, 40) * 3, torch.randn(5, 40) * 3
    ids, logs = likeliest(master, 6)
    p, q = torch.softmax(master.double(), -1), torch.softmax(student.double(), -1)
    for row in range(5):
        kept = ids[row]
        pair = [(torch.cat([x[row, kept], (x[row].sum() - x[row, kept].sum())[None]])) for x in (p, q)]
        wanted = nn.functional.kl_div(pair[1].log(), pair[0], reduction="sum")
        assert float(divergence(student, ids, logs)[row]) == pytest.approx(float(wanted), rel=1e-4)
        assert float(wanted) <= float((p[row] * (p[row].log() - q[row].log())).sum())
    assert divergence(master, ids, logs).abs().max() < 1e-5
    sure = torch.zeros(1, 40)
    sure[0, 3] = 200.0  # nothing is left for the others, and nothing is not a number
    ids, logs = likeliest(sure, 6)
    leaf = torch.randn(1, 40).requires_grad_()
    divergence(leaf, ids, logs).sum().backward()
    assert torch.isfinite(leaf.grad).all()  # type: ignore[arg-type]


def test_the_loss_of_a_row_is_words_and_expectations(taught: Taught) -> None:
    graft, lessons = tiny_graft(seed=3), Seeing(tiny_world(), random.Random(0)).again([one for scene in taught.scenes for one in scene][:7])
    row, weight = Row(), 0.7
    for lesson in [*lessons, lessons[0]]:  # one twice: the same places, twice the weight
        row.add(lesson.prompt(graft.prompter), lesson.weight, lesson.said, weight)
    learner = Learner(graft, 2)
    loss, weights = learner.gradient([row], torch.zeros(sum(learner.lengths)))
    wanted = 0.0
    for lesson in [*lessons, lessons[0]]:
        alone = Row()
        alone.add(lesson.prompt(graft.prompter))
        assert lesson.said
        with torch.no_grad():
            logits, tokens = answer_logits(graft, [alone])
        assert tokens.tolist() == lesson.said.tokens.tolist()
        apart = divergence(logits, torch.from_numpy(lesson.said.ids).long(), torch.from_numpy(lesson.said.logs))
        wanted += lesson.weight * float((nn.functional.cross_entropy(logits, tokens, reduction="none") + weight * apart).mean())
    assert loss == pytest.approx(wanted, rel=1e-3)
    assert weights == pytest.approx(sum(lesson.weight for lesson in [*lessons, lessons[0]]))
    assert len(row.taught_at) == len(set(row.taught_at)) == len(row.taught_ids)


def test_nothing_is_drawn_for_a_teacher_who_is_not_there(taught: Taught) -> None:
    def stream(who: Taught | None) -> list[str]:
        lessons = seeing_lessons(tiny_world(), random.Random(4), 0.3, who)
        return [next(lessons).messages[1].text for _ in range(30)]

    alone = seeing_lessons(tiny_world(), random.Random(4), 0.3)
    assert stream(None) == [next(alone).messages[1].text for _ in range(30)] != stream(taught)


def test_a_share_of_the_scenes_is_taught(taught: Taught) -> None:
    lessons = seeing_lessons(tiny_world(), random.Random(0), 1.0, taught)
    share = np.mean([next(lessons).said is not None for _ in range(600)])
    assert 0.25 < share < 0.6  # of lessons: scenes of groups that lean ask fewer
    always = seeing_lessons(tiny_world(), random.Random(0), 1.0, replace(taught, share=1.0))
    assert all(next(always).said for _ in range(50))


def rows_of(step: int, taught: Taught) -> list[Row]:
    always = replace(taught, share=1.0)
    return fill_rows(seeing_lessons(tiny_world(), random.Random(step), 0.05, always), tiny_graft().prompter, SETTINGS)


def test_the_same_steps_with_and_without_helpers(tmp_path: Path, taught: Taught) -> None:
    def trained(count: int) -> tuple[torch.Tensor, list[float]]:
        graft = tiny_graft(seed=1)
        with Helpers(graft, SETTINGS, tmp_path, count=count) as helpers, fast_rows(graft.lm):
            trainer = Trainer(graft, SETTINGS, 0, helpers)
            losses = [trainer.step(rows_of(step, taught), 0.5) for step in range(2)]
            return trainer.gradient.clone(), losses

    assert len(rows_of(0, taught)) == 2 and all(row.taught_at for row in rows_of(0, taught))
    (alone, losses), (together, others) = trained(0), trained(1)
    assert losses == pytest.approx(others, rel=1e-5)
    assert torch.allclose(alone, together, atol=1e-4 * float(alone.abs().max()))


def apart_from(graft: Any, taught: Taught) -> float:
    """Mean divergence at the places of all taught lessons, pictures as they are."""
    found = []
    for scene in taught.scenes:
        for lesson in Seeing(tiny_world(), random.Random(0)).again(scene):
            row = Row()
            row.add(lesson.prompt(graft.prompter))
            assert lesson.said
            with torch.no_grad():
                logits, _ = answer_logits(graft, [row])
            found.append(divergence(logits, torch.from_numpy(lesson.said.ids).long(), torch.from_numpy(lesson.said.logs)).mean())
    return float(torch.stack(found).mean())


def test_a_copy_has_nothing_to_learn_and_another_comes_nearer(tmp_path: Path, taught: Taught) -> None:
    assert apart_from(tiny_graft(), taught) < 1e-4
    student = tiny_graft()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.lm.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    before = apart_from(student, taught)
    settings = SETTINGS.model_copy(update={"seeing_steps": 16, "talking_steps": 0, "projector_learning_rate": 1e-3, "distil_weight": 4.0})
    train(student, tiny_world(), (), settings, tmp_path, taught=replace(taught, share=1.0))
    assert apart_from(student, taught) < 0.9 * before > 0.05
    assert len(read_json(tmp_path / "curve.json")) == 16


def test_an_answer_that_is_wrong_but_allowed_is_guessed_next() -> None:
    answer = module._Answer(Prompt((1,), (), (False,)), [7, 8, 2], 2, [[7, 8, 2], [5, 6, 2]])
    ids = np.array([[5, 0], [6, 0], [2, 0]], np.int32)
    answer.hear(ids, np.zeros((3, 3), np.float32))
    assert answer.tokens() == [5] and answer.guess == [6, 2]
    answer.hear(ids[1:], np.zeros((2, 3), np.float32))
    assert answer.done and answer.said().tokens.tolist() == [5, 6, 2]


def test_how_often_a_teacher_agrees_with_the_tables(taught: Taught) -> None:
    tokenizer = tiny_graft().tokenizer

    def agreeing(lesson: Lesson) -> Lesson:
        assert lesson.said
        return replace(lesson, said=replace(lesson.said, tokens=np.array([*tokenizer(lesson.answer)["input_ids"], 2], np.int32)))

    lessons = [lesson for scene in taught.scenes for lesson in scene]
    half = len(lessons) // 2
    found = Taught([[agreeing(one) for one in lessons[:half]], lessons[half:]], 1.0).figures(tokenizer)
    assert found == {"graft.taught.right": half / len(lessons), "graft.taught.right.n": len(lessons)}
