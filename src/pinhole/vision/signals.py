"""What the owner's tables say belongs together, as row numbers of the features, and batches of it.

Three signals: a picture and its title, two items of one board, a query and an item it led to. Split
here once, so that training and exams cannot disagree on who is held out. Private boards are left
out: what is learned from them would show in everybody's results. Knows nothing of vectors or losses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from pinhole.catalogue.split import Split, held_out, item_key, query_key
from pinhole.config import CatalogueConfig

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.vision.features import Features

INNER = 1_000_003  # added to the split's number for the split inside its training part, on which weights are chosen


def inner(config: CatalogueConfig, fold: int = 0) -> CatalogueConfig:
    """The split that is drawn inside a training part."""
    return config.model_copy(update={"split": config.split + INNER * (fold + 1)})


@dataclass(frozen=True)
class Group:
    """Rows that belong together: a board's items, or the items a query led to."""

    key: str
    """The board's id, or the query's text."""
    rows: np.ndarray
    """Row numbers, ascending, distinct."""

    def among(self, kept: np.ndarray) -> Group:
        """Only the rows that ``kept`` (a mask over all rows) allows."""
        return Group(self.key, self.rows[kept[self.rows]])


@dataclass(frozen=True)
class Signals:
    """Items with the boards and queries that name them. ``items`` are the rows these may be drawn from."""

    items: np.ndarray
    """(m,) rows, ascending."""
    keys: np.ndarray
    """(n,) int: rows with equal numbers have the same title, or where there is none the same stem of the id."""
    names: tuple[str, ...] = field(repr=False)
    """What ``keys`` number: the split is drawn by these."""
    boards: tuple[Group, ...] = ()
    queries: tuple[Group, ...] = ()

    def part(self, config: CatalogueConfig) -> tuple[Signals, Signals]:
        """(training part, held-out part). A link is in one only if both its ends are; the rest is in neither."""
        split = Split(config)
        drawn = np.array([held_out("item", name, config.held_out_items, config.split) for name in self.names], dtype=bool)
        held = drawn[self.keys]
        inside = np.zeros(len(self.keys), dtype=bool)
        inside[self.items] = True
        outer = [split.board(board.key) for board in self.boards]
        asked = [split.query(query.key) for query in self.queries]
        return self._keep(inside & ~held, [not one for one in outer], [not one for one in asked]), self._keep(inside & held, outer, asked)

    def inner(self, config: CatalogueConfig, fold: int = 0) -> tuple[Signals, Signals]:
        """The same split again inside this part, under another salt: where everything that is *chosen* is chosen."""
        return self.part(inner(config, fold))

    def _keep(self, items: np.ndarray, boards: list[bool], queries: list[bool]) -> Signals:
        kept_boards = [board.among(items) for board, keep in zip(self.boards, boards, strict=True) if keep]
        kept_queries = [query.among(items) for query, keep in zip(self.queries, queries, strict=True) if keep]
        return replace(
            self,
            items=np.flatnonzero(items),
            boards=tuple(board for board in kept_boards if len(board.rows) > 1),
            queries=tuple(query for query in kept_queries if len(query.rows)),
        )


def read_signals(catalogue: Catalogue, features: Features) -> Signals:
    """All of a catalogue's signals about the items that have a vector of any kind."""
    ids, usable = features.ids, features.has_image | features.has_text
    place = {id: row for row, id in enumerate(ids)}
    numbers: dict[str, int] = {}
    keys = np.array(
        [numbers.setdefault(item_key(title, id), len(numbers)) for id, title in zip(ids, read_titles(catalogue, ids), strict=True)], dtype=np.int64
    )

    boards = catalogue.boards()
    members: dict[str, list[int]] = {}
    for id, listed, private in zip(boards["id"].to_pylist(), boards["items"].to_pylist(), boards["private"].to_pylist(), strict=True):
        if not private:
            members[id] = [place[item] for item in listed if item in place]
    queries = catalogue.queries()
    asked: dict[str, list[int]] = defaultdict(list)
    for text, item in zip(queries["text"].to_pylist(), queries["item"].to_pylist(), strict=True):
        if item in place:
            asked[text].append(place[item])
    boarded = tuple(board.among(usable) for board in _groups(members))
    queried = tuple(query.among(usable) for query in _groups(asked))
    return Signals(np.flatnonzero(usable), keys, tuple(numbers), boarded, queried)


def read_titles(catalogue: Catalogue, ids: Sequence[str]) -> list[str]:
    """The titles of the features' rows; "" where there is none."""
    rows = catalogue.items(["id", "title"])
    named = dict(zip(rows["id"].to_pylist(), rows["title"].to_pylist(), strict=True))
    return [named.get(id) or "" for id in ids]


def _groups(rows: dict[str, list[int]]) -> tuple[Group, ...]:
    return tuple(Group(key, np.unique(np.array(found, dtype=np.int64))) for key, found in sorted(rows.items()) if found)


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


@dataclass(frozen=True)
class Pairs:
    """A batch: ``left[i]`` belongs to ``right[i]``; ``alike[i, j]`` where left i belongs to right j too."""

    left: np.ndarray
    right: np.ndarray
    alike: np.ndarray


class Sampler:
    """Draws batches. The caller's generator decides everything, so a resumed run draws what an undisturbed one would.

    Groups are drawn by the square root of their size: neither the largest board nor a thousand
    boards of two decide what is learned.
    """

    def __init__(self, signals: Signals, titled: np.ndarray, pictured: np.ndarray) -> None:
        """``titled``, ``pictured``: (n,) masks of the rows that have a title, a picture."""
        self.keys = signals.keys
        self.titled = signals.items[titled[signals.items] & pictured[signals.items]]
        self.boards, self.queries = _Drawn(signals.boards), _Drawn(signals.queries)
        self._on_board, self._asked = Linked(signals.boards, len(signals.keys)), Linked(signals.queries, len(signals.keys))
        words = {key: number for number, key in enumerate(sorted({query_key(query.key) for query in signals.queries}))}
        self._query_words = np.array([words[query_key(query.key)] for query in signals.queries], dtype=np.int64)

    def titles(self, draw: np.random.Generator, batch: int) -> Pairs | None:
        """Row and row again: its title on the left, its picture on the right."""
        if len(self.titled) < 2:
            return None
        rows = draw.choice(self.titled, min(batch, len(self.titled)), replace=False)
        return Pairs(rows, rows, self.keys[rows][:, None] == self.keys[rows][None, :])

    def mates(self, draw: np.random.Generator, batch: int) -> Pairs | None:
        """Two items of one board."""
        if not len(self.boards):
            return None
        groups = self.boards.groups(draw, batch)
        left, right = self.boards.pairs(draw, groups)
        return Pairs(left, right, self._on_board(groups, right) | (left[:, None] == right[None, :]) | (groups[:, None] == groups[None, :]))

    def asked(self, draw: np.random.Generator, batch: int) -> Pairs | None:
        """A query's number on the left, an item it led to on the right."""
        if not len(self.queries):
            return None
        groups = self.queries.groups(draw, batch)
        rows, _ = self.queries.pairs(draw, groups)
        same = self._query_words[groups][:, None] == self._query_words[groups][None, :]
        return Pairs(groups, rows, self._asked(groups, rows) | same)


class _Drawn:
    """Groups laid end to end, and random members of them without a loop."""

    def __init__(self, groups: tuple[Group, ...]) -> None:
        self.sizes = np.array([len(group.rows) for group in groups], dtype=np.int64)
        self.rows = np.concatenate([group.rows for group in groups]) if groups else np.zeros(0, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64) if groups else np.zeros(0, np.int64)
        share = np.sqrt(self.sizes)
        self.edges = np.cumsum(share / share.sum()) if groups else np.zeros(0)

    def __len__(self) -> int:
        return len(self.sizes)

    def groups(self, draw: np.random.Generator, batch: int) -> np.ndarray:
        return np.minimum(np.searchsorted(self.edges, draw.random(batch)), len(self.sizes) - 1)

    def pairs(self, draw: np.random.Generator, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two different rows of each group (the same one twice where a group has one)."""
        sizes, starts = self.sizes[groups], self.starts[groups]
        first = (draw.random(len(groups)) * sizes).astype(np.int64)
        step = 1 + (draw.random(len(groups)) * (sizes - 1)).astype(np.int64)
        return self.rows[starts + first], self.rows[starts + (first + step) % sizes]
