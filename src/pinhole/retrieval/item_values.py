"""What the ranker knows of an item beside its vectors: how popular it is, and the declared features.

    popularity.parquet   id, clicks, boards, users

Popularity is counted once, when the ranker is trained, from what no exam asks about; columns and attributes are read as they are
now. One class gives both in training and in serving. Knows nothing of queries' vectors or of grades.
"""

from __future__ import annotations

import io
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.catalogue.records import attributes
from pinhole.catalogue.split import Split, query_key
from pinhole.config import GraphConfig
from pinhole.errors import Corrupt
from pinhole.retrieval.declared import COLUMNS, POPULARITY, Declared, Row
from pinhole.workspace import write_atomic

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue

FILE = "popularity.parquet"
REMEMBERED = 100_000  # items whose numbers are kept in memory
NONE: Mapping[str, int] = {}


def popularity(catalogue: Catalogue, split: Split, graph: GraphConfig) -> dict[str, tuple[int, int, int]]:
    """For each item that has any: clicks of queries, boards that hold it, users who met it.

    Held-out queries and boards do not count, nor private boards, nor users where fewer than ``graph.least_users`` met the item.
    """
    queries, clicks = catalogue.queries(), Counter[str]()
    for text, item, count in zip(*(queries[name].to_pylist() for name in ("text", "item", "count")), strict=True):
        clicks[item] += 0 if split.query(text) else count
    table = catalogue.boards()
    listed = zip(*(table[name].to_pylist() for name in ("id", "items", "private")), strict=True)
    boards = Counter(item for id, items, private in listed if not private and not split.board(id) for item in items)
    events = catalogue.events()
    met = set(zip(*(events[name].to_pylist() for name in ("user", "item", "action")), strict=True))
    people = Counter(item for _, item in {(user, item) for user, item, action in met if action not in graph.ignored_actions})
    users = {item: count for item, count in people.items() if count >= graph.least_users}
    counts = {item: (clicks[item], boards[item], users.get(item, 0)) for item in sorted({*clicks, *boards, *users})}
    return {item: found for item, found in counts.items() if any(found)}


def own_clicks(catalogue: Catalogue) -> dict[str, Counter[str]]:
    """For each query, by its :func:`query_key`, the clicks that are its own, by item."""
    queries, found = catalogue.queries(), defaultdict[str, Counter[str]](Counter)
    for text, item, count in zip(*(queries[name].to_pylist() for name in ("text", "item", "count")), strict=True):
        found[query_key(text)][item] += count
    return dict(found)


def save_popularity(counts: Mapping[str, tuple[int, int, int]], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.array([found[at] for found in counts.values()], pa.int64()) for at, name in enumerate(POPULARITY)}
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": pa.array(list(counts), pa.string()), **columns}), buffer)
    write_atomic(folder / FILE, buffer.getvalue())


def load_popularity(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Raises :class:`Corrupt`."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(folder / FILE)
        columns = [table[name].to_pylist() for name in POPULARITY]
        return {id: (clicks, boards, users) for id, clicks, boards, users in zip(table["id"].to_pylist(), *columns, strict=True)}
    except Exception as error:  # pyarrow's own kinds
        fix = "delete the folder and run `pinhole build ranker`"
        raise Corrupt(f"cannot be read: {error}", where=str(folder / FILE), fix=fix) from None


class ItemValues:
    """``values(ids)``: (items, 3 + features) float32, the logarithm of one more than each count, then the declared features.

    Of an item that changed the values change with the next call. May be called from several threads.
    """

    def __init__(self, catalogue: Catalogue, declared: Declared, counts: Mapping[str, tuple[int, int, int]]) -> None:
        self.catalogue, self.declared, self.counts = catalogue, declared, counts
        self._version, self._known, self._guard = -1, dict[str, tuple[Row, np.ndarray]](), threading.Lock()

    @property
    def width(self) -> int:
        return len(POPULARITY) + len(self.declared.names)

    def __call__(self, ids: Sequence[str], less: Mapping[str, int] = NONE) -> np.ndarray:
        """``less`` clicks of an item are not counted: those of the query that asks, or what it led to could be told by them."""
        if not self.declared.names:
            return np.array([self._popular(id, less) for id in ids], np.float32).reshape(len(ids), len(POPULARITY))
        version = self.catalogue.version("items")
        with self._guard:
            if version != self._version or len(self._known) > REMEMBERED:
                self._version, self._known = version, {}
            known = self._known
        if unknown := [id for id in dict.fromkeys(ids) if id not in known]:
            known.update({id: (row, self._values(id, row)) for id, row in zip(unknown, self._read(unknown), strict=True)})
        found = [self._values(id, known[id][0], less) if id in less else known[id][1] for id in ids]
        return np.stack(found) if found else np.zeros((0, self.width), np.float32)

    def _read(self, ids: Sequence[str]) -> list[Row]:
        table = self.catalogue.items([*COLUMNS, "attributes"], ids=ids)
        columns = [table[name].to_pylist() for name in COLUMNS]
        found: dict[str, dict[str, Any]] = {}
        for values, more in zip(zip(*columns, strict=True), attributes(table), strict=True):
            found[values[0]] = {**dict(zip(COLUMNS, values, strict=True)), "attributes": more}
        return [found.get(id, {}) for id in ids]

    def _values(self, id: str, row: Row, less: Mapping[str, int] = NONE) -> np.ndarray:
        whole = {**row, **dict(zip(POPULARITY, self._counted(id, less), strict=True))}
        return np.concatenate([self._popular(id, less).astype(np.float32), self.declared.values([whole])[0]])

    def _counted(self, id: str, less: Mapping[str, int]) -> tuple[int, int, int]:
        clicks, boards, users = self.counts.get(id, (0, 0, 0))
        return max(clicks - less.get(id, 0), 0), boards, users

    def _popular(self, id: str, less: Mapping[str, int]) -> np.ndarray:
        return np.log1p(np.array(self._counted(id, less), np.float64))
