"""Other orders of the same results: greedy is what a search of all determinants finds, nobody is lost, kinds are there."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from pinhole.config import DiversifyConfig
from pinhole.retrieval.arrange import POOL, Arranger
from pinhole.retrieval.diversify import Results, represent, space, spread, unlikeness


def results(n: int = 12, seed: int = 0, kinds: list[int] | None = None) -> Results:
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((n, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Results(np.sort(draw.standard_normal(n))[::-1], vectors, np.array(kinds if kinds is not None else [-1] * n))


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.9])
def test_each_step_takes_the_largest_determinant(strength: float) -> None:
    found = results()
    likeness = found.vectors @ found.vectors.T
    chosen: list[int] = []
    for _ in range(5):

        def gain(one: int) -> float:
            with_it = [*chosen, one]
            return (1 - strength) * found.scores[with_it].sum() + strength * np.linalg.slogdet(likeness[np.ix_(with_it, with_it)])[1]

        chosen.append(max((one for one in range(12) if one not in chosen), key=gain))
    assert spread(found, 5, strength).tolist() == chosen


def test_no_strength_keeps_the_order_and_more_of_it_spreads() -> None:
    found = results(80)
    assert spread(found, 10, 0.0).tolist() == list(range(10))
    sets = [spread(found, 6, strength) for strength in (0.0, 0.5, 0.99)]
    far = [float(np.linalg.det(found.vectors[one] @ found.vectors[one].T)) for one in sets]
    near = [float(found.scores[one].sum()) for one in sets]
    assert far[0] < far[1] < far[2] and near[0] > near[1] > near[2]


def test_the_same_picture_twice_comes_last() -> None:
    found = results(5)
    vectors = found.vectors.copy()
    vectors[1] = vectors[0]
    assert spread(Results(found.scores, vectors, found.kinds), 5, 0.5).tolist()[-1] == 1
    assert sorted(spread(Results(found.scores, vectors, found.kinds), 5, 1.0).tolist()) == [0, 1, 2, 3, 4]


def test_an_attribute_spreads_too_and_items_without_one_repeat_nobody() -> None:
    found = results(6, kinds=[0, 0, 0, 1, 2, -1])
    same = Results(np.zeros(6), np.tile(found.vectors[:1], (6, 1)), found.kinds)
    assert set(spread(same, 4, 0.5, attribute=1.0).tolist()) == {0, 3, 4, 5}
    bare = Results(np.zeros(4), np.zeros((4, 6)), np.array([-1] * 4))  # no pictures, nothing declared
    assert spread(bare, 4, 0.5, attribute=0.5).tolist() == [0, 1, 2, 3]


def test_twins_are_put_off_until_enough_lies_between() -> None:
    vectors = np.eye(5)[[0, 0, 1, 2, 0, 3]]
    assert space(vectors, range(6), 0.97, 2).tolist() == [0, 2, 3, 1, 5, 4]
    assert space(vectors, range(6), 0.97, 0).tolist() == list(range(6))
    assert space(vectors[[0, 1, 4]], range(3), 0.97, 5).tolist() == [0, 1, 2]  # there is nothing else


def test_every_kind_is_among_the_first() -> None:
    kinds = np.array([0, 0, 0, -1, 1, 0, 2, 1])
    order = represent(kinds, range(8), 4)
    assert set(kinds[order[:4]].tolist()) == {0, 1, 2} and sorted(order.tolist()) == list(range(8))
    assert order[0] == 0 and order.tolist()[4:6] == [2, 3]  # what gave way comes next
    assert represent(kinds, range(8), 8).tolist() == list(range(8))
    assert represent(np.arange(9), range(9), 3).tolist() == list(range(9))  # more kinds than places: nobody gives way
    assert represent(np.array([-1, -1, 5]), range(3), 2).tolist() == [0, 2, 1]


def test_lists_of_one_or_none() -> None:
    assert unlikeness(np.ones((1, 3))) == 0 and unlikeness(np.eye(2)) == 1
    for n in (0, 1):
        assert spread(results(n), 3, 0.5).tolist() == space(np.zeros((n, 2)), range(n), 0.9, 3).tolist() == list(range(n))
        assert represent(np.zeros(n, int), range(n), 3).tolist() == list(range(n))


# -- on a catalogue -------------------------------------------------------------------------------


class Items:
    """A catalogue of nothing but attributes."""

    def __init__(self, values: list[object]) -> None:
        self.values = values

    def items(self, columns: list[str], ids: list[str]) -> pa.Table:
        return pa.table({"id": ids, "attributes": [json.dumps({"price": self.values[int(id)]}) for id in ids]})


def arranged(values: list[object], n: int, **settings: object) -> list[int]:
    vectors = np.eye(len(values))
    arranger = Arranger(Items(values), [str(row) for row in range(len(values))], lambda rows: vectors[rows], DiversifyConfig(**settings))  # type: ignore[arg-type]
    return arranger(np.arange(len(values)), np.linspace(1, 0, len(values)), n).tolist()


def test_every_band_of_a_number_is_represented() -> None:
    prices: list[object] = [*range(1, 17)]
    assert arranged(prices, 4, represent="price", bands=4) == [0, 4, 8, 12]  # one of each band: the best of it
    assert arranged(prices, 4) == [0, 1, 2, 3]
    assert arranged([5, 5, 5, 9], 2, represent="price") == [0, 3]  # so few numbers are kinds
    assert arranged(["a", "a", None, ["b", "a"], float("nan"), True], 3, represent="price") == [0, 3, 5]


def test_an_attribute_can_spread_results() -> None:
    assert arranged(["a", "a", "a", "b", "c"], 3, attribute="price", strength=0.9, attribute_share=1.0) == [0, 3, 4]
    assert arranged(["a", "b"], 9, strength=0.5) == [0, 1] and arranged([1], 3) == [0]


def test_beyond_the_pool_the_order_stays() -> None:
    many: list[object] = ["a"] * (POOL + 50)
    assert arranged(many, POOL + 50, strength=0.2)[POOL:] == list(range(POOL, POOL + 50))
