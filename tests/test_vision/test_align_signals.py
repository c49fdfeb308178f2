"""Who is held out, and what a batch may hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pinhole.catalogue.split import Split
from pinhole.vision.losses import LOSSES, Batch, Loss, contrast, drift, nested, sigmoid
from pinhole.vision.sampler import Linked, Sampler
from pinhole.vision.signals import Group, Signals, read_signals
from toy_search import Toy, make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


def test_nothing_held_out_is_in_the_training_part(toy: Toy) -> None:
    from pinhole.catalogue.split import Split

    split = Split(toy.config.catalogue)
    rows = toy.catalogue.items(["id", "title"]).to_pylist()
    held_items = {row["id"] for row in rows if split.item(row)}
    signals = read_signals(toy.catalogue, toy.features)
    part, held = signals.part(toy.config.catalogue)
    ids = toy.features.ids
    assert {ids[row] for row in held.items} == {id for id in held_items if id in {ids[row] for row in signals.items}}
    assert not set(part.items) & set(held.items)
    for one, other, inside in ((part, held, False), (held, part, True)):
        assert one.boards and one.queries
        assert all(split.board(board.key) == inside for board in one.boards)
        assert all(split.query(query.key) == inside for query in one.queries)
        named = np.concatenate([group.rows for group in (*one.boards, *one.queries)])
        assert set(named) <= set(one.items) and not set(named) & set(other.items)


def test_the_inner_split_stays_inside(toy: Toy) -> None:
    part, held = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    inside, outside = part.inner(toy.config.catalogue)
    assert set(inside.items) | set(outside.items) == set(part.items)
    assert len(outside.items) and not set(outside.items) & set(held.items)
    assert {query.key for query in outside.queries} <= {query.key for query in part.queries}
    assert set(part.inner(toy.config.catalogue, 1)[1].items) != set(outside.items)


def test_private_boards_teach_nothing(tmp_path: Path) -> None:
    toy = make_toy(tmp_path, n=96)
    toy.catalogue.upsert("boards", pa.table({"id": ["secret"], "title": ["mine"], "items": [toy.features.ids[:9]], "private": [True]}))
    assert "secret" not in {board.key for board in read_signals(toy.catalogue, toy.features).boards}


def test_pairs_belong_together_and_false_negatives_are_marked(toy: Toy) -> None:
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    sampler = Sampler(part, toy.features.has_text, toy.features.has_image)
    draw = np.random.default_rng(0)
    on = {board.key: set(board.rows) for board in part.boards}
    pairs = sampler.mates(draw, 64)
    assert pairs is not None and (pairs.left != pairs.right).all()
    assert all(any({left, right} <= rows for rows in on.values()) for left, right in zip(pairs.left, pairs.right, strict=True))
    asked = sampler.asked(draw, 64)
    assert asked is not None
    for i, query in enumerate(asked.left):
        rows = set(part.queries[query].rows)
        assert asked.right[i] in rows
        assert all(asked.alike[i, j] for j, row in enumerate(asked.right) if row in rows)
    titles = sampler.titles(draw, 10_000)
    assert titles is not None and toy.features.has_text[titles.left].all() and toy.features.has_image[titles.left].all()


def test_one_generator_one_batch(toy: Toy) -> None:
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    sampler = Sampler(part, toy.features.has_text, toy.features.has_image)
    first, second = (sampler.mates(np.random.default_rng([3, 7]), 32) for _ in range(2))
    assert first is not None and second is not None
    assert np.array_equal(first.left, second.left) and np.array_equal(first.right, second.right)


def test_linked_answers_for_tables_of_pairs() -> None:
    linked = Linked((Group("a", np.array([1, 4])), Group("b", np.array([2]))), 5)
    assert linked(np.array([0, 1]), np.array([1, 2, 4])).tolist() == [[True, False, True], [False, True, False]]
    assert not Linked((), 5)(np.array([0]), np.array([1])).any()


def test_the_loss_leaves_false_negatives_out() -> None:
    torch.manual_seed(0)
    left, right, scale = torch.randn(6, 8), torch.randn(6, 8), torch.tensor(5.0)
    alone = torch.eye(6, dtype=torch.bool)
    alike = alone.clone()
    alike[0, 1] = alike[1, 0] = True
    kept = [0, 2, 3, 4, 5]
    logits = scale * torch.nn.functional.normalize(left, dim=1) @ torch.nn.functional.normalize(right, dim=1).T
    by_hand = -torch.log_softmax(logits[0, kept], 0)[0]
    rows = torch.nn.functional.cross_entropy(logits.masked_fill(alike & ~alone, -1e4), torch.arange(6), reduction="none")
    assert torch.isclose(rows[0], by_hand, atol=1e-5)
    bias = torch.tensor(0.0)
    assert contrast(left, right, scale, bias, Batch(alike)) < contrast(left, right, scale, bias, Batch(alone))
    whole = nested(contrast, left, right, scale, bias, Batch(alone), (8,))
    assert torch.isclose(whole, contrast(left, right, scale, bias, Batch(alone)))
    assert drift([left], [left]) == 0 and drift([left], [left + 1]) == pytest.approx(48)


def test_the_sigmoid_loss_judges_each_pair_by_itself() -> None:
    torch.manual_seed(0)
    left, right, scale, bias = torch.randn(5, 8), torch.randn(5, 8), torch.tensor(5.0), torch.tensor(-2.0)
    alone = torch.eye(5, dtype=torch.bool)
    alike = alone.clone()
    alike[0, 1] = True
    cosines = torch.nn.functional.normalize(left, dim=1) @ torch.nn.functional.normalize(right, dim=1).T
    by_hand = 0.0
    for i in range(5):
        for j in range(5):
            if (i, j) != (0, 1):
                by_hand -= float(torch.log(torch.sigmoid((1 if i == j else -1) * (scale * cosines[i, j] + bias)))) / 5
    assert float(sigmoid(left, right, scale, bias, Batch(alike))) == pytest.approx(by_hand, rel=1e-5)


def test_what_is_drawn_often_is_pushed_away_less() -> None:
    torch.manual_seed(0)
    left, right, scale, bias = torch.randn(4, 8), torch.randn(4, 8), torch.tensor(5.0), torch.tensor(0.0)
    alone, popular = torch.eye(4, dtype=torch.bool), torch.randn(1, 8)

    def pushed(loss: Loss, often: float | None) -> float:
        negative = popular.clone().requires_grad_()
        drawn = None if often is None else (torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, 0.0, often]))
        loss(left, right, scale, bias, Batch(alone, drawn, negative, torch.zeros(4, 1, dtype=torch.bool))).backward()
        assert negative.grad is not None
        return float(negative.grad.norm())

    for loss in LOSSES.values():
        assert pushed(loss, 3.0) < pushed(loss, 0.0) < pushed(loss, -3.0)
    assert pushed(contrast, 0.0) == pushed(contrast, None)


def test_mined_negatives_count_unless_they_belong() -> None:
    torch.manual_seed(0)
    left, right, mined, scale, bias = torch.randn(4, 8), torch.randn(4, 8), torch.randn(3, 8), torch.tensor(5.0), torch.tensor(0.0)
    alone, nothing = torch.eye(4, dtype=torch.bool), torch.zeros(4, 3, dtype=torch.bool)
    for loss in (contrast, sigmoid):
        plain = loss(left, right, scale, bias, Batch(alone))
        assert loss(left, right, scale, bias, Batch(alone, None, mined, nothing)) > plain
        assert torch.isclose(loss(left, right, scale, bias, Batch(alone, None, mined, ~nothing)), plain)


def test_a_query_draws_its_items_by_their_clicks() -> None:
    none = np.zeros(4, dtype=bool)
    query = Group("cat", np.array([0, 2, 3]), np.array([1.0, 6.0, 1.0]))
    sampler = Sampler(Signals(np.arange(4), np.arange(4), ("a", "b", "c", "d"), queries=(query,)), none, none)
    pairs = sampler.asked(np.random.default_rng(0), 4000)
    assert pairs is not None
    assert np.bincount(pairs.right, minlength=4) / 4000 == pytest.approx([0.125, 0, 0.75, 0.125], abs=0.02)
    assert np.exp(pairs.often[1] - pairs.often[1].max()).min() == pytest.approx(1 / 6)


def test_walks_find_who_shares_boards_and_mark_who_else_does() -> None:
    none, rows = np.zeros(9, dtype=bool), np.arange(9)
    boards = (Group("a", np.array([0, 1, 2])), Group("b", np.array([2, 3, 4])), Group("c", np.array([6, 7])))
    signals = Signals(rows, rows, tuple("abcdefghi"), boards)
    sampler = Sampler(signals, none, none, signals.graph())
    pairs = sampler.walks(np.random.default_rng(0), 600)
    assert pairs is not None
    met = {one: set(pairs.right[pairs.left == one].tolist()) for one in range(9)}
    assert met[0] == {1, 2, 3, 4} and met[6] == {7} and not met[5] and not met[8]
    near = pairs.right[pairs.left == 0]
    assert (near == 2).sum() > (near == 4).sum()  # 4 is two boards away
    assert pairs.alike[pairs.left == 0][:, pairs.right == 1].all() and not pairs.alike[pairs.left == 0][:, pairs.right == 7].any()


def test_what_the_owner_of_a_held_out_board_met_is_not_walked(toy: Toy) -> None:
    signals = read_signals(toy.catalogue, toy.features)
    split = Split(toy.config.catalogue)
    held, known = (next(board for board in signals.boards if split.board(board.key) == one) for one in (True, False))
    boards = tuple(replace(board, owner="ann" if board is held else "bob" if board is known else "") for board in signals.boards)
    users = (Group("ann", held.rows), Group("bob", known.rows))
    part, _ = replace(signals, boards=boards, users=users).part(toy.config.catalogue)
    assert [user.key for user in part.users] == ["bob"]
