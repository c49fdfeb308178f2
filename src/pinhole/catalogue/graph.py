"""The graph of items and what holds them together (boards, queries, users), and biased random walks on it.

Two halves, as in Pixie (Eksombatchai et al. 2018): items on one side, *contexts* on the other, in compressed sparse rows both ways.
A step goes from an item to a context that holds it and on to an item that this one holds. Thousands of walkers step at once, so
a step is a few array operations. Knows row numbers, no ids after reading, and nothing of vectors. Private boards are left out:
whom the walk's results are shown to is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pinhole.config import GraphConfig
from pinhole.errors import Corrupt, MissingArtefact
from pinhole.workspace import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

    from pinhole.catalogue.store import Catalogue

WALKERS = 1000  # that leave one item at once, at most
FULL = 255  # an edge of a node's largest weight, in eight bits
ROUNDS_LEAST = 8  # steps of a walker: with one it would never leave the start's own boards
ROUNDS_BETWEEN = 8  # steps of all walkers between two looks at what was visited
AT_ONCE = 250_000  # walkers of many items that step together


@dataclass(frozen=True)
class Edges:
    """Links of one kind: context ``contexts[e]`` (numbered from 0) holds item row ``items[e]``, as strongly as ``weights[e]`` > 0 says."""

    kind: str
    contexts: np.ndarray
    items: np.ndarray
    weights: np.ndarray | None = None
    names: Sequence[str] = ()
    """The contexts' ids, texts or users."""


@dataclass(frozen=True)
class Half:
    """Compressed sparse rows: node i's ends are ``ends[first[i]:first[i + 1]]``, drawn in proportion to ``share``."""

    first: np.ndarray
    """(nodes + 1,) int64."""
    ends: np.ndarray
    """(edges,) int32."""
    share: np.ndarray
    """(edges,) uint8, at least 1: 255ths of the largest weight of the node."""

    @classmethod
    def of(cls, nodes: np.ndarray, ends: np.ndarray, weights: np.ndarray | None, count: int) -> Half:
        """Edges in any order, sorted stably by node."""
        degree = np.bincount(nodes, minlength=count)
        order = np.argsort(nodes, kind="stable")
        first = np.concatenate([[0], np.cumsum(degree)]).astype(np.int64)
        share = np.full(len(nodes), FULL, np.uint8)
        if weights is not None and len(weights):
            sorted_weights, filled = weights[order], degree > 0
            largest = np.maximum.reduceat(sorted_weights, first[:-1][filled])
            share = np.maximum(np.rint(FULL * sorted_weights / np.repeat(largest, degree[filled])), 1).astype(np.uint8)
        return cls(first, ends[order].astype(np.int32), share)

    @cached_property
    def degree(self) -> np.ndarray:
        return np.diff(self.first)

    @cached_property
    def even(self) -> bool:
        """All edges weigh the same."""
        return bool((self.share == FULL).all())

    def hop(self, nodes: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """An end of each node (w,), all of degree > 0. A drawn edge is taken with its share, else another is drawn: rejection is exact."""
        ends = np.empty(len(nodes), np.int32)
        first, degree = self.first[nodes], self.degree[nodes]
        waiting: np.ndarray | slice = slice(None)
        while True:
            edges = first + (draw.random(len(first)) * degree).astype(np.int64)
            ends[waiting] = self.ends[edges]
            if self.even:
                return ends
            again = np.flatnonzero(draw.integers(0, FULL, len(edges), dtype=np.uint8) >= self.share[edges])
            if not len(again):
                return ends
            waiting = again if isinstance(waiting, slice) else waiting[again]
            first, degree = first[again], degree[again]


@dataclass(frozen=True)
class Visits:
    """How often walks from ``starts[origins[v]]`` came to item ``items[v]``: ``counts[v]`` times. By origin, then item; no start
    visits itself."""

    starts: np.ndarray
    origins: np.ndarray
    items: np.ndarray
    counts: np.ndarray
    steps: int


class Graph:
    """``by_item`` leads from items to contexts, ``by_context`` back. Contexts of all kinds are numbered through."""

    def __init__(self, by_item: Half, by_context: Half) -> None:
        self.by_item, self.by_context = by_item, by_context

    @classmethod
    def of(cls, items: int, edges: Sequence[Edges], config: GraphConfig) -> Graph:
        """From links of several kinds, each weighed as ``[graph]`` says. Contexts of one item, and those that hold very many, are left out:
        the first lead nowhere, the second everywhere (Pixie prunes them likewise)."""
        most = max(config.common_least, config.common * items)
        every = [_pruned(one, most) for one in edges if config.weight(one.kind) > 0 and len(one.items)]
        contexts, rows, weights, start = [], [], [], 0
        uneven = len({config.weight(one.kind) for one in every}) > 1 or any(one.weights is not None for one in every)
        for one in every:
            _, numbers = np.unique(one.contexts, return_inverse=True)
            contexts.append((numbers + start).astype(np.int32))
            rows.append(one.items.astype(np.int32))
            start += int(numbers.max(initial=-1)) + 1
            if uneven:
                weights.append(np.float32(config.weight(one.kind)) * (np.ones(len(one.items), np.float32) if one.weights is None else one.weights))
        none = np.zeros(0, np.int32)
        context, row = (np.concatenate(parts) if parts else none for parts in (contexts, rows))
        weight = np.concatenate(weights) if weights else None
        return cls(Half.of(row, context, weight, items), Half.of(context, row, weight, start))

    @property
    def items(self) -> int:
        return len(self.by_item.first) - 1

    @property
    def contexts(self) -> int:
        return len(self.by_context.first) - 1

    @property
    def edges(self) -> int:
        return len(self.by_item.ends)

    # -- walking --------------------------------------------------------------------------------

    def walk(
        self, starts: np.ndarray, steps: np.ndarray, draw: np.random.Generator, restart: float = 0.5, enough: tuple[int, int] | None = None
    ) -> Visits:
        """Walks of about ``steps[i]`` steps in all from item row ``starts[i]``; before each, with chance ``restart``, a walker is back at its start.

        ``enough`` = (p, v) ends the walks from a start once p items were visited v times each (Pixie's early stop). Starts
        that nothing holds are not walked from.
        """
        starts = np.asarray(starts, dtype=np.int64)
        together = np.clip(np.asarray(steps, dtype=np.int64) // ROUNDS_LEAST, 1, WALKERS)
        walkers = np.where((self.by_item.degree[starts] > 0) & (np.asarray(steps) > 0), together, 0)
        rounds = -(-np.asarray(steps, dtype=np.int64) // np.maximum(walkers, 1))
        origin = np.repeat(np.arange(len(starts)), walkers)
        at, taken, done = starts[origin], 0, 0
        tally = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        fresh: list[np.ndarray] = []
        while len(origin):
            at = np.where(draw.random(len(at), dtype=np.float32) < restart, starts[origin], at)
            at = self.by_context.hop(self.by_item.hop(at, draw), draw).astype(np.int64)
            fresh.append(origin * self.items + at)
            taken, done = taken + len(at), done + 1
            staying = rounds[origin] > done
            if done % ROUNDS_BETWEEN == 0 or not staying.all():
                tally, fresh = _tallied(tally, fresh), []
                if enough:
                    origins = tally[0][tally[1] >= enough[1]] // self.items
                    staying &= (np.bincount(origins, minlength=len(starts)) < enough[0])[origin]
                origin, at = origin[staying], at[staying]
        keys, counts = _tallied(tally, fresh)
        origins, items = keys // max(self.items, 1), keys % max(self.items, 1)
        other = items != starts[origins]
        return Visits(starts, origins[other], items[other], counts[other], taken)

    def shares(self, starts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(q,) how all steps are divided among starts: more for those of higher degree, by less than in proportion (Pixie, equations 1 and 2)."""
        degree = self.by_item.degree[starts].astype(np.float64)
        scale = degree * (np.log(max(float(self.by_item.degree.max(initial=1)), 1.0)) + 1.0 - np.log(np.maximum(degree, 1)))
        part = weights * scale
        return np.asarray(part / max(float(part.sum()), 1e-12))

    def related(
        self, starts: np.ndarray, config: GraphConfig, draw: np.random.Generator, weights: np.ndarray | None = None, keep_starts: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rows, scores), best first, equal ones by row: what walks from all ``starts`` come to. An item reached from several of them counts
        (Σ √visits)², more than their sum (Pixie's multi-hit boost). ``weights`` of the starts default to 1; starts are among
        what is found, reached from each other, where ``keep_starts`` says so."""
        rows = np.asarray(starts, dtype=np.int64)
        parts = self.shares(rows, np.ones(len(rows)) if weights is None else weights)
        visits = self.walk(rows, np.rint(parts * config.steps).astype(np.int64), draw, config.restart, (config.enough_items, config.enough_visits))
        found, place = np.unique(visits.items, return_inverse=True)
        scores = np.bincount(place, weights=np.sqrt(visits.counts), minlength=len(found)) ** 2
        if not keep_starts:
            kept = ~np.isin(found, rows)
            found, scores = found[kept], scores[kept]
        order = np.argsort(-scores, kind="stable")
        return found[order], scores[order]

    def neighbours(
        self, rows: np.ndarray, keep: int, steps: int, seed: int, restart: float = 0.5, progress: Callable[[int, int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """((r, keep) int64, (r, keep) float32): of each of ``rows`` the items most visited from it, −1 where there are fewer, and their shares of all
        visits: walk-mined neighbours and their importance (PinSage, Ying et al. 2018)."""
        found, share = np.full((len(rows), keep), -1, np.int64), np.zeros((len(rows), keep), np.float32)
        size = max(1, AT_ONCE // steps)
        for number, begin in enumerate(range(0, len(rows), size)):
            piece = rows[begin : begin + size]
            visits = self.walk(piece, np.full(len(piece), steps), np.random.default_rng([seed, number]), restart)
            order = np.lexsort((visits.items, -visits.counts, visits.origins))
            origins, total = visits.origins[order], np.bincount(visits.origins, weights=visits.counts, minlength=len(piece))
            first = np.concatenate([[0], np.cumsum(np.bincount(origins, minlength=len(piece)))])
            rank = np.arange(len(origins)) - first[origins]
            top = rank < keep
            found[begin + origins[top], rank[top]] = visits.items[order][top]
            share[begin + origins[top], rank[top]] = (visits.counts[order] / total[origins])[top]
            if progress is not None:
                progress(min(begin + size, len(rows)), len(rows))
        return found, share

    # -- on disk --------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        from safetensors.numpy import save

        halves = {"item": self.by_item, "context": self.by_context}
        write_atomic(path, save({f"{name}.{part}": getattr(half, part) for name, half in halves.items() for part in ("first", "ends", "share")}))

    @classmethod
    def load(cls, path: Path) -> Graph:
        """Raises :class:`MissingArtefact`, :class:`Corrupt`."""
        from safetensors.numpy import load_file

        if not path.exists():
            raise MissingArtefact("no graph", where=str(path), fix="run `pinhole build index`")
        try:
            found = load_file(str(path))
            return cls(*(Half(*(found[f"{name}.{part}"] for part in ("first", "ends", "share"))) for name in ("item", "context")))
        except Exception as error:
            raise Corrupt(f"cannot be read: {error}", where=str(path), fix="delete the folder and run `pinhole build index`") from None


# -- from the tables ----------------------------------------------------------------------------


def read_edges(catalogue: Catalogue, ids: Sequence[str], config: GraphConfig) -> list[Edges]:
    """What the tables say about the items ``ids`` (rows in this order): public boards, queries by their clicks, users by their events.

    An item that fewer than ``[graph] least_users`` users touched has no users here: who they were could be told from where a walk goes.
    """
    import pyarrow as pa

    values = pa.array(ids, pa.string())
    found = [_boards(catalogue.boards(), values), _queries(catalogue.queries(), values)]
    if catalogue.count("events"):
        found.append(_users(catalogue.events(), values, config))
    return found


def _boards(table: pa.Table, ids: pa.Array) -> Edges:
    import pyarrow.compute as pc

    table = table.filter(pc.invert(pc.fill_null(table["private"], False)))
    lists = table["items"].combine_chunks()
    return _linked("board", pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists), ids, table["id"].to_pylist())


def _queries(table: pa.Table, ids: pa.Array) -> Edges:
    import pyarrow.compute as pc

    texts = pc.dictionary_encode(table["text"].combine_chunks())
    weights = 1 + np.log2(np.maximum(pc.fill_null(table["count"], 1).to_numpy(), 1))
    return _linked("query", texts.indices.to_numpy(), table["item"].combine_chunks(), ids, texts.dictionary.to_pylist(), weights)


def _users(table: pa.Table, ids: pa.Array, config: GraphConfig) -> Edges:
    """One edge for each user and item, however often they met."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.filter(pc.invert(pc.is_in(table["action"], value_set=pa.array(config.ignored_actions, pa.string()))))
    users = pc.dictionary_encode(table["user"].combine_chunks())
    names = users.dictionary.to_pylist()
    linked = _linked("user", users.indices.to_numpy(), table["item"].combine_chunks(), ids, names)
    pairs, counts = np.unique(linked.contexts.astype(np.int64) * len(ids) + linked.items, return_counts=True)
    contexts, items = pairs // max(len(ids), 1), pairs % max(len(ids), 1)
    known = (np.bincount(items, minlength=len(ids)) >= config.least_users)[items]
    weights = (1 + np.log2(counts[known])).astype(np.float32)
    return Edges("user", contexts[known].astype(np.int32), items[known].astype(np.int32), weights, names)


def _linked(kind: str, contexts: np.ndarray, items: pa.Array, ids: pa.Array, names: Sequence[str], weights: np.ndarray | None = None) -> Edges:
    """Only links to items that are there."""
    import pyarrow.compute as pc

    rows = pc.fill_null(pc.index_in(items, value_set=ids), -1).to_numpy()
    there = rows >= 0
    kept = None if weights is None else weights[there].astype(np.float32)
    return Edges(kind, contexts[there].astype(np.int32), rows[there].astype(np.int32), kept, names)


def _pruned(edges: Edges, most: float) -> Edges:
    held = np.bincount(edges.contexts)
    kept = ((held > 1) & (held <= most))[edges.contexts]
    return Edges(edges.kind, edges.contexts[kept], edges.items[kept], None if edges.weights is None else edges.weights[kept])


def _tallied(tally: tuple[np.ndarray, np.ndarray], fresh: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(keys ascending, counts) with further visits counted in."""
    if not fresh:
        return tally
    keys, counts = np.unique(np.concatenate(fresh), return_counts=True)
    if not len(tally[0]):
        return keys, counts
    every, place = np.unique(np.concatenate([tally[0], keys]), return_inverse=True)
    return every, np.bincount(place, weights=np.concatenate([tally[1], counts]), minlength=len(every)).astype(np.int64)
