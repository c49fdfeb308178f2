"""What the owner's tables say belongs together, as row numbers of the features.

A picture and its title, items of one board, a query and the items it led to, a user and the items they met. Split
here once, so that training and exams cannot disagree on who is held out. Private boards are left out, and users of items that
few users met: what is learned from them would show in everybody's results. Knows nothing of vectors or losses, nor of batches.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from pinhole.catalogue.graph import Edges, Graph, read_edges
from pinhole.catalogue.split import Split, held_out, item_key
from pinhole.config import CatalogueConfig, GraphConfig

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.vision.features import Features

AS_IT_IS = GraphConfig()
INNER = 1_000_003  # added to the split's number for the split inside its training part, on which weights are chosen


def inner(config: CatalogueConfig, fold: int = 0) -> CatalogueConfig:
    """The split that is drawn inside a training part."""
    return config.model_copy(update={"split": config.split + INNER * (fold + 1)})


@dataclass(frozen=True)
class Group:
    """Rows that belong together: a board's items, the items a query led to, or those a user met."""

    key: str
    """The board's id, the query's text, or the user."""
    rows: np.ndarray
    """Row numbers, ascending, distinct."""
    strength: np.ndarray | None = None
    """How strongly each is linked, as the graph has it: 1 + log₂ of clicks, or of meetings. None where all are alike."""
    owner: str = ""
    """Whose board it is."""

    def among(self, kept: np.ndarray) -> Group:
        """Only the rows that ``kept`` (a mask over all rows) allows."""
        there = kept[self.rows]
        return replace(self, rows=self.rows[there], strength=None if self.strength is None else self.strength[there])


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
    users: tuple[Group, ...] = ()
    walks: GraphConfig = AS_IT_IS

    def part(self, config: CatalogueConfig) -> tuple[Signals, Signals]:
        """(training part, held-out part). A link is in one only if both its ends are; the rest is in neither.

        What a user met takes no part in training where a held-out board is theirs: it would tell what lies on it.
        """
        split = Split(config)
        drawn = np.array([held_out("item", name, config.held_out_items, config.split) for name in self.names], dtype=bool)
        held = drawn[self.keys]
        inside = np.zeros(len(self.keys), dtype=bool)
        inside[self.items] = True
        outer = [split.board(board.key) for board in self.boards]
        asked = [split.query(query.key) for query in self.queries]
        theirs = {board.owner for board, one in zip(self.boards, outer, strict=True) if one and board.owner}
        known = replace(self, users=tuple(user for user in self.users if user.key not in theirs))
        return known._keep(inside & ~held, [not one for one in outer], [not one for one in asked]), self._keep(inside & held, outer, asked)

    def by_time(self, created: np.ndarray, config: CatalogueConfig) -> tuple[Signals, Signals]:
        """(items made before, the newest) in place of drawn ones: as many as the split holds out. ``created`` (n,) seconds, NaN counts as old."""
        split, when = Split(config), np.where(np.isfinite(created), created, -np.inf)[self.items]
        newest = np.zeros(len(self.keys), dtype=bool)
        newest[self.items[np.argsort(-when, kind="stable")[: int(config.held_out_items * len(self.items))]]] = True
        inside = np.zeros(len(self.keys), dtype=bool)
        inside[self.items] = True
        everything, asked = [True] * len(self.boards), [split.query(query.key) for query in self.queries]
        return self._keep(inside & ~newest, everything, [not one for one in asked]), self._keep(inside & newest, everything, asked)

    def asked_apart(self, config: CatalogueConfig) -> tuple[Group, ...]:
        """The queries that nothing is trained on, with all that they led to."""
        split = Split(config)
        return tuple(query for query in self.queries if split.query(query.key))

    def without(self, texts: Collection[str]) -> Signals:
        """The same without some queries."""
        return replace(self, queries=tuple(query for query in self.queries if query.key not in texts))

    def inner(self, config: CatalogueConfig, fold: int = 0) -> tuple[Signals, Signals]:
        """The same split again inside this part, under another salt: where everything that is *chosen* is chosen."""
        return self.part(inner(config, fold))

    def graph(self) -> Graph:
        """What a walk may go along, over all n rows."""
        kinds = (("board", self.boards), ("query", self.queries), ("user", self.users))
        return Graph.of(len(self.keys), [_edges(kind, groups) for kind, groups in kinds], self.walks)

    def _keep(self, items: np.ndarray, boards: list[bool], queries: list[bool]) -> Signals:
        kept_boards = [board.among(items) for board, keep in zip(self.boards, boards, strict=True) if keep]
        kept_queries = [query.among(items) for query, keep in zip(self.queries, queries, strict=True) if keep]
        return replace(
            self,
            items=np.flatnonzero(items),
            boards=tuple(board for board in kept_boards if len(board.rows) > 1),
            queries=tuple(query for query in kept_queries if len(query.rows)),
            users=tuple(user for user in (user.among(items) for user in self.users) if len(user.rows) > 1),
        )


def read_signals(catalogue: Catalogue, features: Features, graph: GraphConfig = AS_IT_IS) -> Signals:
    """All of a catalogue's signals about the items that have a vector of any kind: the links that ``graph``'s walks go along."""
    ids, usable = features.ids, features.has_image | features.has_text
    numbers: dict[str, int] = {}
    keys = np.array(
        [numbers.setdefault(item_key(title, id), len(numbers)) for id, title in zip(ids, read_titles(catalogue, ids), strict=True)], dtype=np.int64
    )
    boards = catalogue.boards()
    owners = dict(zip(boards["id"].to_pylist(), boards["owner"].to_pylist(), strict=True))
    groups = {edges.kind: _groups(edges) for edges in read_edges(catalogue, ids, graph)}
    kept = {kind: tuple(group.among(usable) for group in found) for kind, found in groups.items()}
    boarded = tuple(replace(board, owner=owners.get(board.key) or "") for board in kept["board"])
    return Signals(np.flatnonzero(usable), keys, tuple(numbers), boarded, kept["query"], kept.get("user", ()), graph)


def read_titles(catalogue: Catalogue, ids: Sequence[str]) -> list[str]:
    """The titles of the features' rows; "" where there is none."""
    rows = catalogue.items(["id", "title"])
    named = dict(zip(rows["id"].to_pylist(), rows["title"].to_pylist(), strict=True))
    return [named.get(id) or "" for id in ids]


def _groups(edges: Edges) -> tuple[Group, ...]:
    """Contexts that hold anything, in the order of their names."""
    names = np.array(edges.names, dtype=object)
    place = np.empty(len(names), dtype=np.int64)
    place[np.argsort(names, kind="stable")] = np.arange(len(names))
    pairs, first = np.unique(np.stack([place[edges.contexts], edges.items]), axis=1, return_index=True)
    if not len(first):
        return ()
    contexts, starts = np.unique(pairs[0], return_index=True)
    strength = None if edges.weights is None else np.split(edges.weights[first], starts[1:])
    listed = np.sort(names)[contexts]
    parts = zip(listed, np.split(pairs[1], starts[1:]), strict=True)
    return tuple(Group(str(name), rows, None if strength is None else strength[number]) for number, (name, rows) in enumerate(parts))


def _edges(kind: str, groups: Sequence[Group]) -> Edges:
    sizes = [len(group.rows) for group in groups]
    rows = np.concatenate([group.rows for group in groups]) if groups else np.zeros(0, np.int64)
    weights = np.concatenate([group.strength for group in groups]) if groups and groups[0].strength is not None else None
    return Edges(kind, np.repeat(np.arange(len(groups)), sizes).astype(np.int32), rows.astype(np.int32), weights)
