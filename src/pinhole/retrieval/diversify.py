"""Another order of the same results: near duplicates apart, like ones less often, and every kind that an owner names represented.

Three rules, each by itself. *Spread*: a determinantal point process over pictures and declared attributes, its most likely set found greedily
(Kulesza & Taskar 2012; fast greedy MAP, Chen et al. 2018). *Space*: of pictures that nearly repeat each other one is shown, the others
later. *Represent*: every value of an attribute that is found at all is among the first results (as visual search does for ranges
of skin tones, Silva et al. 2023). Reads scores and vectors; knows nothing of queries, of tables or of who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLOOR = 1e-6  # of a determinant's next factor: below it all that is left repeats what was chosen


@dataclass(frozen=True)
class Results:
    """What is to be put into another order, the best first."""

    scores: np.ndarray
    """(n,) relevance, in deviations of it."""
    vectors: np.ndarray
    """(n, width) of length 1, or 0 where an item has none."""
    kinds: np.ndarray
    """(n,) int: the number of the attribute's value, −1 where an item has none."""

    def take(self, order: np.ndarray) -> Results:
        return Results(self.scores[order], self.vectors[order], self.kinds[order])


def spread(results: Results, count: int, strength: float, attribute: float = 0.0) -> np.ndarray:
    """(count,) positions: greedily the set that maximises (1 − strength) · Σ score + strength · log det of their likeness.

    Likeness is the vectors' product, and ``attribute`` of it whether the kinds are the same. ``strength`` 0 keeps the order;
    at 1 relevance counts nothing. Equal gains: the earlier one. O(n · count · width).
    """
    n = len(results.scores)
    count = min(count, n)
    if strength <= 0 or n < 2:
        return np.arange(count)
    features = _features(results, attribute)  # (n, width): rows' products are their likeness
    left = (features**2).sum(1)  # what is new in each, given what was chosen
    rows = np.zeros((count, n))
    chosen: list[int] = []
    free = np.ones(n, dtype=bool)
    for step in range(count):
        gain = (1 - strength) * results.scores + strength * np.log(np.maximum(left, FLOOR))
        best = int(np.argmax(np.where(free, gain, -np.inf)))
        chosen.append(best)
        free[best] = False
        likeness = features @ features[best] - rows[:step].T @ rows[:step, best]
        rows[step] = likeness / np.sqrt(max(float(left[best]), FLOOR))
        left = left - rows[step] ** 2
    return np.array(chosen, dtype=np.int64)


def space(vectors: np.ndarray, order: Sequence[int] | np.ndarray, twin: float, apart: int) -> np.ndarray:
    """``order`` with every item whose cosine to one of the ``apart`` shown before it is ``twin`` or more put off until there is
    nothing else, or enough lies between. Nobody is left out."""
    waiting = list(order)
    shown: list[int] = []
    while waiting:
        recent = vectors[shown[-apart:]] if shown and apart else vectors[:0]
        fits = (place for place, one in enumerate(waiting) if not len(recent) or float((recent @ vectors[one]).max()) < twin)
        shown.append(waiting.pop(next(fits, 0)))
    return np.array(shown, dtype=np.int64)


def represent(kinds: np.ndarray, order: Sequence[int] | np.ndarray, first: int) -> np.ndarray:
    """``order`` with one of every kind among the ``first`` results, as far as there is room: kinds that come late take the places, from the last
    up, of items whose kind is there already. What gives way comes next."""
    head, tail = list(order[:first]), list(order[first:])
    missing = list(dict.fromkeys(int(kinds[one]) for one in tail if kinds[one] >= 0 and not (kinds[head] == kinds[one]).any()))
    gave_way: list[int] = []
    for kind in missing:
        counts = {int(each): int((kinds[head] == each).sum()) for each in np.unique(kinds[head])}
        spare = [place for place in range(len(head) - 1, -1, -1) if counts[int(kinds[head[place]])] > 1 or kinds[head[place]] < 0]
        if not spare:
            break
        one = next(item for item in tail if kinds[item] == kind)
        tail.remove(one)
        gave_way.insert(0, head.pop(spare[0]))
        head.append(one)
    return np.array([*head, *gave_way, *tail], dtype=np.int64)


def unlikeness(vectors: np.ndarray) -> float:
    """Mean of 1 − cosine over all pairs: how diverse a list is (intra-list distance, Ziegler et al. 2005)."""
    n = len(vectors)
    return 0.0 if n < 2 else float(1 - (np.sum(vectors @ vectors.T) - n) / (n * (n - 1)))


def _features(results: Results, attribute: float) -> np.ndarray:
    """[√(1 − a) · vector ‖ √a · one-hot kind]; an item without a kind is a kind of its own by what it lacks: it repeats nobody."""
    values = np.unique(results.kinds[results.kinds >= 0])
    kinds = (results.kinds[:, None] == values[None, :]).astype(np.float64)
    own = np.sqrt(np.maximum(1 - (results.vectors.astype(np.float64) ** 2).sum(1), 0))  # what a missing vector leaves of length 1
    lone = np.sqrt((results.kinds < 0).astype(np.float64))
    parts = [np.sqrt(1 - attribute) * results.vectors, np.sqrt(attribute) * kinds]
    extra = np.sqrt((1 - attribute) * own**2 + attribute * lone**2)
    keep = extra > 1e-4
    return np.concatenate([*parts, np.diag(extra)[:, keep]], axis=1)
