"""An index that grew: the vectors it was built from, renumbered, and a tail of what came since, which is scanned.

    base.parquet        the features' rows that the vectors are of (id, hashes of picture and title)
    rows.npy            (base items,) int64, the row of now of each of them; −1 where it is gone or has other vectors
    learned.tail.faiss  vectors of the rows that the base does not have
    titles.tail.faiss   the same of titles

Files of the base are linked, not written again, and nothing is learned: an extended index costs what changed. It is made from the base
each time, so it is the same however many builds it took. Knows nothing of when an index is extended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.catalogue.graph import Graph, read_edges
from pinhole.retrieval.nearest import Nearest
from pinhole.vision.align import Space, save_array
from pinhole.vision.features import Features

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.config import Config, IndexConfig

BASE, ROWS = "base.parquet", "rows.npy"
OWN = ("manifest.json", "index.json", "graph.safetensors", ROWS, "learned.tail.faiss", "titles.tail.faiss")  # not taken from the one before
SPARE = 8  # results more than were asked for, where some of the base are gone
TRIED, SLICE = 64, 65_536  # questions that recall is measured by, vectors that are scanned at once


@dataclass(frozen=True)
class Moves:
    """Where the rows of a base are now."""

    now: np.ndarray
    """(base items,) int64, −1 where an item is gone or has another picture or title."""
    fresh: np.ndarray
    """Rows of now that the base has no vectors of, ascending."""
    removed: int
    """Items that are gone."""

    @property
    def tail(self) -> float:
        """Share of all items that lie in the tail."""
        return len(self.fresh) / max(len(self.fresh) + int((self.now >= 0).sum()), 1)

    @classmethod
    def between(cls, base: Any, rows: Any) -> Moves:
        """``base`` and ``rows`` are ``rows.parquet`` of two artefacts of ``embed``."""
        import pyarrow as pa
        import pyarrow.compute as pc

        place = pc.index_in(base["id"].combine_chunks(), value_set=rows["id"].combine_chunks())
        now = pc.fill_null(place, -1).to_numpy().astype(np.int64)
        there = np.flatnonzero(now >= 0)
        same = np.ones(len(there), dtype=bool)
        for name in ("image", "has_image", "title"):
            old, new = base[name].combine_chunks().take(pa.array(there)), rows[name].combine_chunks().take(pa.array(now[there]))
            equal = pc.or_(pc.fill_null(pc.equal(old, new), False), pc.and_(pc.is_null(old), pc.is_null(new)))
            same &= equal.to_numpy(zero_copy_only=False)
        removed = len(now) - len(there)
        now[there[~same]] = -1
        kept = np.zeros(len(rows), dtype=bool)
        kept[now[now >= 0]] = True
        return cls(now, np.flatnonzero(~kept), removed)

    @classmethod
    def since(cls, index: Path, features: Features) -> Moves:
        """Since the base of an index was built."""
        import pyarrow.parquet as pq

        return cls.between(pq.read_table(index / BASE), features.rows)


class Extended:
    """A base and its tail, asked as a :class:`Nearest` is. Rows are those of now."""

    def __init__(self, base: Nearest, now: np.ndarray, tail: Nearest) -> None:
        self.base, self.now, self.tail = base, now, tail
        self.gone = int((now[base.rows] < 0).sum()) if len(base) else 0
        self._was = np.full(int(max(now.max(initial=-1), tail.rows.max(initial=-1))) + 1, -1, np.int64)
        held = base.rows[now[base.rows] >= 0]
        self._was[now[held]] = held

    def __len__(self) -> int:
        return len(self.base) - self.gone + len(self.tail)

    @property
    def width(self) -> int:
        return self.base.width

    def search(self, vector: np.ndarray, count: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`Nearest.search`."""
        if not np.any(vector):
            return np.zeros(0, np.int64)
        found, _ = self.many(vector[None], count, allowed)
        return found[0][found[0] >= 0]

    def many(self, vectors: np.ndarray, count: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`Nearest.many`."""
        count = min(count, len(self))
        parts = [self._based(vectors, count, allowed), self.tail.many(vectors, count, allowed)]
        rows, scores = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        scores = np.where(rows < 0, -np.inf, scores)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)

    def _based(self, vectors: np.ndarray, count: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Of the base, in rows of now: a few more are asked for than are gone among them, and where that was too few, only the others."""
        if allowed is not None:
            was = self._was[allowed[allowed < len(self._was)]]
            rows, scores = self.base.many(vectors, count, np.sort(was[was >= 0]))
            return self._renumbered(rows), scores
        spare = SPARE + 2 * count * self.gone // max(len(self.base), 1) if self.gone else 0
        rows, scores = self.base.many(vectors, count + spare)
        rows = self._renumbered(rows)
        short = np.flatnonzero((rows >= 0).sum(1) < min(count, len(self.base) - self.gone))
        if len(short) and self.gone:
            left = np.sort(self.base.rows[self.now[self.base.rows] >= 0])
            again, scored = self.base.many(vectors[short], count, left)
            rows[short], scores[short] = -1, -np.inf
            rows[short, : again.shape[1]], scores[short, : again.shape[1]] = self._renumbered(again), scored
        return rows, scores

    def _renumbered(self, rows: np.ndarray) -> np.ndarray:
        return np.where(rows >= 0, self.now[np.maximum(rows, 0)], -1) if len(self.now) else rows


def open_nearest(folder: Path, name: str) -> Nearest | Extended:
    """``learned`` or ``titles`` of an artefact of ``index``. Raises what :meth:`Nearest.load` raises."""
    base = Nearest.load(folder / f"{name}.faiss")
    if not (folder / ROWS).exists():
        return base
    return Extended(base, np.load(folder / ROWS, allow_pickle=False), Nearest.load(folder / f"{name}.tail.faiss"))


# -- making -------------------------------------------------------------------------------------


def keep_base(features: Features, out: Path) -> None:
    """Beside an index that is built whole: which rows its vectors are of."""
    link(features.path / "rows.parquet", out / BASE)


def tails(features: Features, space: Space, moves: Moves, config: IndexConfig) -> tuple[Nearest, Nearest]:
    """Learned vectors and titles' vectors of what the base does not have."""
    scanned = config.model_copy(update={"flat_below": 1 << 62, "storage": "float32"})
    rows = moves.fresh[(features.has_image | features.has_text)[moves.fresh]]
    titled = rows[features.has_text[rows]]
    learned = space.item_vectors(features.image[rows], features.has_image[rows], features.text[rows], features.has_text[rows])
    whole = scanned.model_copy(update={"width": 0})
    return Nearest.build(learned, rows, scanned), Nearest.build(np.asarray(features.text[titled]), titled, whole)


def extend(catalogue: Catalogue, features: Features, space: Space, config: Config, before: Path, out: Path) -> Graph:
    """Everything of an extended index but ``index.json``; returns its graph, which is made anew: boards change where no item does."""
    moves = Moves.since(before, features)
    for path in sorted(before.iterdir()):
        if path.is_file() and path.name not in OWN:
            link(path, out / path.name)
    learned, titles = tails(features, space, moves, config.index)
    learned.save(out / "learned.tail.faiss")
    titles.save(out / "titles.tail.faiss")
    save_array(out / ROWS, moves.now)
    graph = Graph.of(len(features), read_edges(catalogue, features.ids, config.graph), config.graph)
    graph.save(out / "graph.safetensors")
    return graph


def link(path: Path, other: Path) -> None:
    """Another name of a finished file; a copy where the disk has no such names. Finished files are never written again, only replaced."""
    with contextlib.suppress(FileNotFoundError):
        other.unlink()
    try:
        os.link(path, other)
    except OSError:
        temporary = other.with_name(f".{other.name}.{os.getpid()}")  # swept where a kill leaves it
        shutil.copyfile(path, temporary)
        os.replace(temporary, other)


# -- measuring ----------------------------------------------------------------------------------


def approximate(nearest: Nearest) -> bool:
    """Not every vector is looked at."""
    return hasattr(nearest.index, "nlist") or hasattr(nearest.index, "hnsw")


def recall(found: Extended, count: int = 10) -> float:
    """recall@``count`` of an extended index against a scan of the same vectors, on some of its own as questions."""
    import faiss

    draw = np.random.default_rng(0)
    places = np.flatnonzero(found.now[found.base.rows] >= 0)
    if not len(places):
        return 1.0
    chosen = np.sort(draw.choice(places, min(TRIED, len(places)), replace=False))
    asked = [found.base.index.reconstruct_batch(chosen)]
    if len(found.tail):
        asked.append(found.tail.index.reconstruct_batch(np.sort(draw.choice(len(found.tail), min(TRIED, len(found.tail)), replace=False))))
    questions = np.concatenate(asked)
    pieces = [(found.base.index, places[start : start + SLICE], found.now[found.base.rows]) for start in range(0, len(places), SLICE)]
    pieces += [(found.tail.index, np.arange(len(found.tail)), found.tail.rows)] if len(found.tail) else []
    best, rows = np.full((len(questions), 0), -np.inf, np.float32), np.zeros((len(questions), 0), np.int64)
    for index, some, numbers in pieces:
        scores, near = faiss.knn(questions, index.reconstruct_batch(some), min(count, len(some)), metric=faiss.METRIC_INNER_PRODUCT)
        best, rows = np.concatenate([best, scores], 1), np.concatenate([rows, numbers[some][near]], 1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    got, _ = found.many(questions, count)
    return float(np.mean([len(np.intersect1d(*pair)) / max(rows.shape[1], 1) for pair in zip(got, rows, strict=True)]))
