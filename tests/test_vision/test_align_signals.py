"""Who is held out, and what a batch may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pinhole.vision.losses import contrast, drift, nested_contrast
from pinhole.vision.signals import Group, Linked, Sampler, read_signals
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
    assert contrast(left, right, scale, alike) < contrast(left, right, scale, alone)
    assert torch.isclose(nested_contrast(left, right, scale, alone, (8,)), contrast(left, right, scale, alone))
    assert drift([left], [left]) == 0 and drift([left], [left + 1]) == pytest.approx(48)
