"""A packed row must say of every lesson exactly what the lesson says by itself."""

from __future__ import annotations

import random

import pytest
import torch

from pinhole.config import GraftConfig
from pinhole.graft import fast
from pinhole.graft.fast import fast_rows
from pinhole.graft.packing import Row, batches, pack
from pinhole.graft.scoring import answer_logits, answer_scores
from pinhole.graft.seeing import Lesson, Seeing
from pinhole.graft.tuning import Trainer
from toy_model import tiny_graft
from toy_world import tiny_world


@pytest.fixture(scope="module")
def graft() -> object:
    return tiny_graft()


def lessons(n: int = 12) -> list[object]:
    seeing = Seeing(tiny_world(), random.Random(1))
    found: list[object] = []
    while len(found) < n:
        found += list(seeing.scene())
    return found[:n]


def logits_of(graft, rows):  # type: ignore[no-untyped-def]
    with torch.no_grad():
        return answer_logits(graft, rows)


def test_packed_equals_alone(graft) -> None:  # type: ignore[no-untyped-def]
    prompts = [graft.prompter.render(lesson.messages, generate=False) for lesson in lessons()]
    row = Row()
    places = [row.add(prompt) for prompt in prompts]
    packed, wanted = logits_of(graft, [row])
    assert len(row.tokens) < 0.7 * row.plain_tokens
    for prompt, place in zip(prompts, places, strict=True):
        alone = Row()
        alone.add(prompt)
        by_itself, token = logits_of(graft, [alone])
        assert wanted[place].tolist() == token.tolist()
        torch.testing.assert_close(packed[place], by_itself, atol=2e-4, rtol=2e-4)


def test_nothing_is_read_after_the_last_place_of_an_answer(graft) -> None:  # type: ignore[no-untyped-def]
    prompt = graft.prompter.render(lessons(1)[0].messages, generate=False)
    last = max(i for i, learn in enumerate(prompt.learn) if learn)
    row = Row()
    assert row.cost(prompt) == last < len(prompt.tokens)
    answer = row.add(prompt)
    assert len(row.tokens) == last and row.cost(prompt) == 0
    assert [row.learn_token[place] for place in answer] == [token for token, learn in zip(prompt.tokens, prompt.learn, strict=True) if learn]
    assert row.add(prompt) == answer and len(row.tokens) == last  # once more weighs twice
    assert sum(row.learn_weight) == pytest.approx(2)


def test_padding_changes_nothing(graft) -> None:  # type: ignore[no-untyped-def]
    prompts = [graft.prompter.render(lesson.messages, generate=False) for lesson in lessons(8)]
    rows = [Row(), Row()]
    rows[0].add(prompts[0])
    for prompt in prompts[1:]:
        rows[1].add(prompt)
    together, _ = logits_of(graft, rows)
    apart = torch.cat([logits_of(graft, [row])[0] for row in rows])
    torch.testing.assert_close(together, apart, atol=2e-4, rtol=2e-4)


def test_the_fast_forward_is_the_same_function(graft) -> None:  # type: ignore[no-untyped-def]
    rows = [Row(), Row()]
    for n, lesson in enumerate(lessons(60)):
        rows[n > 40].add(graft.prompter.render(lesson.messages, generate=False))
    long, short = (len(row.tokens) for row in rows)
    assert long > short > 2 * fast.QUERIES and long % fast.QUERIES  # several pieces, the last one not whole, and padding
    for parameter in graft.lm.parameters():
        parameter.requires_grad = False

    def gradient() -> tuple[torch.Tensor, torch.Tensor]:
        graft.projector.zero_grad()
        logits, wanted = answer_logits(graft, rows)
        torch.nn.functional.cross_entropy(logits, wanted).backward()
        return logits.detach(), graft.projector.skip.weight.grad.clone()

    stock, stock_gradient = gradient()
    with fast_rows(graft.lm):
        quick, quick_gradient = gradient()
    again, _ = gradient()
    torch.testing.assert_close(quick, stock, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(quick_gradient, stock_gradient, atol=1e-4, rtol=1e-3)
    assert torch.equal(again, stock)  # the stock forward is back


def test_scenes_do_not_look_at_each_other(graft) -> None:  # type: ignore[no-untyped-def]
    row = Row()
    for lesson in lessons(60):
        row.add(graft.prompter.render(lesson.messages, generate=False))
    allowed = torch.from_numpy(row.mask())
    mask = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)[None, None]
    found = fast.looks(mask, repeat=2)
    assert sum(len(look.keys) * (look.stop - look.start) for look in found) < allowed.numel() / 3
    for look in found:
        seen = torch.zeros(look.stop - look.start, len(allowed), dtype=torch.bool)
        for i, key in enumerate(look.keys):  # a key that only pads is masked for everybody
            seen[:, key] |= look.mask[: len(seen), i] == 0
        assert torch.equal(seen, allowed[look.start : look.stop])


def test_the_fast_lora_is_the_same_function() -> None:
    graft = tiny_graft()
    row = Row()
    for lesson in lessons():
        row.add(graft.prompter.render(lesson.messages, generate=False))
    trainer = Trainer(graft, GraftConfig(lora_rank=4), seed=0)
    torch.manual_seed(0)
    for parameter in trainer.learner.trained:  # LoRA's B starts at zero, and A's gradient with it
        torch.nn.init.normal_(parameter.data, std=0.05)

    def gradients() -> list[torch.Tensor]:
        logits, wanted = answer_logits(graft, [row])
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        return [logits.detach(), *torch.autograd.grad(loss, trainer.learner.trained)]

    stock = gradients()
    with fast_rows(graft.lm):
        assert len([m for m in graft.lm.modules() if "forward" in vars(m) and hasattr(m, "lora_A")]) == 7 * graft.lm.config.num_hidden_layers
        fast = gradients()
    again = gradients()
    assert all(gradient.abs().max() > 0 for gradient in stock)
    for was, now in zip(stock, fast, strict=True):
        torch.testing.assert_close(now, was, atol=2e-4 * float(was.abs().max()) + 1e-5, rtol=2e-3)
    assert torch.equal(again[0], stock[0])


def test_rows_are_filled_in_order_and_a_long_lesson_stands_alone(graft) -> None:  # type: ignore[no-untyped-def]
    prompts = [graft.prompter.render(lesson.messages, generate=False) for lesson in lessons(20)]
    rows = pack(prompts, tokens=120)
    assert sum(row.lessons for row in rows) == 20
    assert all(len(row.tokens) <= 120 or row.lessons == 1 for row in rows)
    spread = [row for batch in batches(rows, 3) for row in batch]
    assert {id(row) for row in spread} == {id(row) for row in rows}


def test_scores_are_log_probabilities(graft) -> None:  # type: ignore[no-untyped-def]
    row = Row()
    for lesson in lessons():
        row.add(graft.prompter.render(lesson.messages, generate=False))
    logits, wanted = logits_of(graft, [row, row])
    with torch.no_grad():
        scores = answer_scores(graft, [row, row])
    torch.testing.assert_close(scores, torch.log_softmax(logits, -1).gather(1, wanted[:, None])[:, 0], atol=2e-4, rtol=2e-4)


def test_a_call_weighs_as_its_decisions_do(graft) -> None:  # type: ignore[no-untyped-def]
    plain, call = lessons(1)[0], Lesson("like", lessons(1)[0].messages, expect={"name": "search", "arguments": {}})
    assert call.weight > plain.weight
    row = Row()
    for lesson in (plain, call):
        row.add(graft.prompter.render(lesson.messages, generate=False), lesson.weight)
    assert sum(row.learn_weight) == pytest.approx(plain.weight + call.weight)
    assert len(set(row.learn_weight)) == 1, "spread evenly over the answer"
