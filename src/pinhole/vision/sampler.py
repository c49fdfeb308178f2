"""Batches of pairs that belong together, drawn from the signals of a training part.

Each says which of its other pairs belong together as well, so that nothing right is pushed away, and how often what stands in it is drawn,
so that what is popular is not pushed away for that. Knows nothing of vectors or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pinhole.catalogue.graph import Graph
from pinhole.catalogue.split import query_key
from pinhole.vision.signals import Group, Signals

BOARDS_OF = 8  # boards of an item that its walk's neighbours are looked for on
WALK_KEPT = 20  # neighbours of an item, the most visited
WALK_STEPS = 1_000
WALK_SEED = 71


@dataclass(frozen=True)
class Pairs:
    """A batch: ``left[i]`` belongs to ``right[i]``."""

    left: np.ndarray
    """Rows, or a query's numbers."""
    right: np.ndarray
    """Rows."""
    alike: np.ndarray
    """(batch, batch): whether left i belongs to right j too."""
    often: tuple[np.ndarray, np.ndarray]
    """Logarithms of how often each of ``left`` and ``right`` is drawn, up to a constant."""
    others: Callable[[np.ndarray], np.ndarray]
    """(o,) rows to (batch, o): whether each left belongs to each of them too."""


class Sampler:
    """Draws batches. The caller's generator decides everything, so a resumed run draws what an undisturbed one would.

    Groups are drawn by the square root of their size: neither the largest board nor a thousand
    boards of two decide what is learned. A query's items are drawn by their clicks, a walk's neighbours by their visits.
    """

    def __init__(self, signals: Signals, titled: np.ndarray, pictured: np.ndarray, graph: Graph | None = None) -> None:
        """``titled``, ``pictured``: (n,) masks of the rows that have a title, a picture. ``graph`` is walked for neighbours, once."""
        self.keys, n = signals.keys, len(signals.keys)
        self.titled = signals.items[titled[signals.items] & pictured[signals.items]]
        self.boards, self.queries = _Drawn(signals.boards, n), _Drawn(signals.queries, n)
        self._on_board, self._asked = Linked(signals.boards, n), Linked(signals.queries, n)
        words = {key: number for number, key in enumerate(sorted({query_key(query.key) for query in signals.queries}))}
        self._query_words = np.array([words[query_key(query.key)] for query in signals.queries], dtype=np.int64)
        self._near = walked(graph, signals.items) if graph is not None else ()
        self.near, self._is_near = _Drawn(self._near, n), Linked(self._near, n)
        self._boards_of = _boards_of(signals.boards, n) if self._near else np.zeros((0, 0), np.int64)

    def titles(self, draw: np.random.Generator, batch: int) -> Pairs | None:
        """Row and row again: its title on the left, its picture on the right."""
        if len(self.titled) < 2:
            return None
        rows = draw.choice(self.titled, min(batch, len(self.titled)), replace=False)
        even = np.zeros(len(rows))
        return _pairs(rows, rows, (even, even), lambda others: self.keys[rows][:, None] == self.keys[others][None, :])

    def mates(self, draw: np.random.Generator, batch: int) -> Pairs | None:
        """Two items of one board."""
        if not len(self.boards):
            return None
        groups = self.boards.groups(draw, batch)
        left, right = self.boards.pairs(draw, groups)
        often = self.boards.often[left], self.boards.often[right]
        found = _pairs(left, right, often, lambda others: self._on_board(groups, others) | (left[:, None] == others[None, :]))
        return _also(found, groups[:, None] == groups[None, :])

    def asked(self, draw: np.random.Generator, batch: int) -> Pairs | None:
        """A query's number on the left, an item it led to on the right."""
        if not len(self.queries):
            return None
        groups = self.queries.groups(draw, batch)
        rows = self.queries.members(draw, groups)
        found = _pairs(groups, rows, (self.queries.group_often[groups], self.queries.often[rows]), lambda others: self._asked(groups, others))
        return _also(found, self._query_words[groups][:, None] == self._query_words[groups][None, :])

    def walks(self, draw: np.random.Generator, batch: int) -> Pairs | None:
        """An item on the left, one that random walks from it often visit on the right."""
        if not len(self.near):
            return None
        groups = draw.integers(0, len(self.near), batch)
        left, right = np.array([int(self._near[group].key) for group in groups]), self.near.members(draw, groups)

        def others(rows: np.ndarray) -> np.ndarray:
            ours, theirs = self._boards_of[left], self._boards_of[rows]
            mates = ((ours[:, None, :, None] == theirs[None, :, None, :]) & (ours >= 0)[:, None, :, None]).any((2, 3))
            return mates | self._is_near(groups, rows) | (self.keys[left][:, None] == self.keys[rows][None, :])

        return _pairs(left, right, (np.zeros(batch), self.near.often[right]), others)


def walked(graph: Graph, items: np.ndarray) -> tuple[Group, ...]:
    """Of each of ``items`` that is linked to anything, the rows that walks visit most: the item's row is the key (PinSage, Ying et al. 2018)."""
    found, share = graph.neighbours(items, WALK_KEPT, WALK_STEPS, WALK_SEED)
    inside = np.zeros(graph.items, dtype=bool)
    inside[items] = True
    groups = []
    for row, near, visits in zip(items.tolist(), found, share, strict=True):
        kept = near[(near >= 0) & (near != row) & inside[near]]
        if len(kept):
            order = np.argsort(kept)
            groups.append(Group(str(row), kept[order], visits[: len(near)][(near >= 0) & (near != row) & inside[near]][order]))
    return tuple(groups)


def _pairs(left: np.ndarray, right: np.ndarray, often: tuple[np.ndarray, np.ndarray], others: Callable[[np.ndarray], np.ndarray]) -> Pairs:
    return Pairs(left, right, others(right), often, others)


def _also(pairs: Pairs, alike: np.ndarray) -> Pairs:
    return Pairs(pairs.left, pairs.right, pairs.alike | alike, pairs.often, pairs.others)


def _boards_of(boards: tuple[Group, ...], n: int) -> np.ndarray:
    """(n, BOARDS_OF): numbers of each row's boards, the smallest boards first, −1 where there are fewer."""
    found = np.full((n, BOARDS_OF), -1, np.int64)
    held = np.zeros(n, np.int64)
    for number in sorted(range(len(boards)), key=lambda number: len(boards[number].rows)):
        rows = boards[number].rows[held[boards[number].rows] < BOARDS_OF]
        found[rows, held[rows]] = number
        held[rows] += 1
    return found


class Linked:
    """Answers "does group g hold row r?" for whole tables of pairs: a sorted list of g·n + r."""

    def __init__(self, groups: tuple[Group, ...], n: int) -> None:
        self.n = n
        pairs = [number * n + group.rows for number, group in enumerate(groups)]
        self.pairs = np.concatenate(pairs) if pairs else np.zeros(0, np.int64)

    def __call__(self, groups: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(a,) group numbers and (b,) rows to an (a, b) mask."""
        if not len(self.pairs):
            return np.zeros((len(groups), len(rows)), dtype=bool)
        wanted = groups[:, None] * self.n + rows[None, :]
        place = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return np.asarray(self.pairs[place] == wanted)


class _Drawn:
    """Groups laid end to end, and random members of them without a loop."""

    def __init__(self, groups: tuple[Group, ...], n: int) -> None:
        self.sizes = np.array([len(group.rows) for group in groups], dtype=np.int64)
        self.rows = np.concatenate([group.rows for group in groups]) if groups else np.zeros(0, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64) if groups else np.zeros(0, np.int64)
        share = np.sqrt(self.sizes)
        chance = share / max(share.sum(), 1.0)
        self.edges = np.cumsum(chance)
        strength = np.concatenate([np.ones(len(group.rows)) if group.strength is None else group.strength for group in groups]) if groups else share
        self.reached = np.concatenate([[0.0], np.cumsum(strength)])
        self.group_often = np.log(np.maximum(chance, 1e-12))
        self.often = np.log(np.maximum(self._often(chance, strength, n), 1e-12))

    def __len__(self) -> int:
        return len(self.sizes)

    def _often(self, chance: np.ndarray, strength: np.ndarray, n: int) -> np.ndarray:
        """(n,) how often each row is a member that is drawn."""
        whole = np.repeat(self.reached[self.starts + self.sizes] - self.reached[self.starts], self.sizes) if len(self.sizes) else strength
        return np.bincount(self.rows, weights=np.repeat(chance, self.sizes) * strength / whole, minlength=n)

    def groups(self, draw: np.random.Generator, batch: int) -> np.ndarray:
        return np.minimum(np.searchsorted(self.edges, draw.random(batch)), len(self.sizes) - 1)

    def pairs(self, draw: np.random.Generator, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two different rows of each group (the same one twice where a group has one)."""
        sizes, starts = self.sizes[groups], self.starts[groups]
        first = (draw.random(len(groups)) * sizes).astype(np.int64)
        step = 1 + (draw.random(len(groups)) * (sizes - 1)).astype(np.int64)
        return self.rows[starts + first], self.rows[starts + (first + step) % sizes]

    def members(self, draw: np.random.Generator, groups: np.ndarray) -> np.ndarray:
        """A row of each group, by how strongly it is linked."""
        begin, end = self.reached[self.starts[groups]], self.reached[self.starts[groups] + self.sizes[groups]]
        place = np.searchsorted(self.reached, begin + draw.random(len(groups)) * (end - begin), side="right") - 1
        return self.rows[np.clip(place, self.starts[groups], self.starts[groups] + self.sizes[groups] - 1)]
