"""Nearest vectors by inner product, in this process (faiss): a scan for few, inverted lists for many; stored whole or in fewer bits.

An index holds the first ``[index] width`` numbers of each vector (learned vectors work when cut) as ``[index] storage`` says: float32, float16,
int8 with a range of its own for each number, or one bit each (RaBitQ, Gao & Long 2024), whose best are scored again in int8. Above
``[index] flat_below`` rows lie in lists around centres (IVF, Sivic & Zisserman 2003; Jégou et al. 2011), of which a search reads as many as the
wanted recall took on queries of the log: at equal recall they were four times as fast as links (HNSW) and are cheap to append to. Knows row
numbers, no ids. An index is one file, read into memory when it is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from pinhole.config import IndexConfig
from pinhole.errors import Corrupt, MissingArtefact
from pinhole.vision.align import Vectors
from pinhole.workspace import write_atomic

Storage = Literal["float32", "float16", "int8", "bit"]
BITS: dict[Storage, int] = {"float32": 32, "float16": 16, "int8": 8, "bit": 9}  # a number; a bit and what scores it again
RESCORED = 8  # times as many as are asked for are found by one bit, and scored again
SCANNED = 2_000  # rows that a filter leaves which are scanned one by one, whatever the lists
PROBES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
TRIED, AT_LEAST = 256, 10  # queries that choose among them, by recall of so many
PIECE = 4096  # vectors that are read at a time while an index is built
A_CENTRE = 40  # rows of a list that its centre is learned from


class Nearest:
    """A faiss index over some rows of the features. ``rows`` (m,) ascending: position in the index → row."""

    def __init__(self, index: Any, rows: np.ndarray) -> None:
        self.index, self.rows = index, np.asarray(rows, dtype=np.int64)

    @classmethod
    def build(cls, vectors: Vectors, rows: np.ndarray, config: IndexConfig, asked: np.ndarray | None = None) -> Nearest:
        """``vectors`` (m, width) float32 of the features' ``rows`` (m,), ascending; queries ``asked`` (q, width) choose how many lists are read.

        Vectors are read a piece at a time, so that what computes them need not hold them all.
        """
        width = min(config.width or vectors.shape[1], vectors.shape[1])
        if config.storage == "bit":
            index = _bits(width)
        elif len(rows) < config.flat_below:
            index = _flat(width, config.storage)
        else:
            index = _lists(width, len(rows), config.storage)
        if len(rows):
            index.train(_cut(vectors[_some(len(rows), A_CENTRE * index.nlist if hasattr(index, "nlist") else len(rows))], width))
            for piece in _pieces(len(rows)):
                index.add(_cut(vectors[piece], width))
        found = cls(index, rows)
        if found.lists:
            found.probe(vectors, asked if asked is not None and len(asked) else vectors, config.recall)
        return found

    def probe(self, vectors: Vectors, asked: Vectors, wanted: float) -> float:
        """Set how many lists a search reads: the fewest whose recall@10 of a scan of ``vectors`` is ``wanted``; what recall that is."""
        few, count = _cut(asked[_some(asked.shape[0], TRIED)], self.width), min(AT_LEAST, len(self))
        exact = self._exact(vectors, few, count)
        reached = 0.0
        for probes in PROBES:
            self.index.nprobe = min(probes, self.lists)
            found = self.index.search(few, count)[1]
            reached = float(np.mean([len(np.intersect1d(*pair)) / count for pair in zip(found, exact, strict=True)]))
            if reached >= wanted or probes >= self.lists:
                break
        return reached

    def _exact(self, vectors: Vectors, asked: np.ndarray, count: int) -> np.ndarray:
        """(q, count) places of the nearest by a scan of all."""
        import faiss

        best, places = np.zeros((len(asked), 0), np.float32), np.zeros((len(asked), 0), np.int64)
        for piece in _pieces(len(self)):
            scores, found = faiss.knn(asked, _cut(vectors[piece], self.width), min(count, len(piece)), metric=faiss.METRIC_INNER_PRODUCT)
            best, places = np.concatenate([best, scores], axis=1), np.concatenate([places, piece[found]], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :count]
            best, places = np.take_along_axis(best, order, 1), np.take_along_axis(places, order, 1)
        return places

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def width(self) -> int:
        """Numbers of a vector that are compared."""
        return int(self.index.d)

    @property
    def lists(self) -> int:
        """Lists that the rows lie in; 0 where all are scanned."""
        return int(getattr(self.index, "nlist", 0))

    def search(self, vector: np.ndarray, count: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Rows nearest to (width,), best first; at most ``count``, only those of ``allowed`` (an array of rows) if given."""
        if not np.any(vector):
            return np.zeros(0, np.int64)
        found, _ = self.many(vector[None], count, allowed)
        return found[0][found[0] >= 0]

    def many(self, vectors: np.ndarray, count: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """((q, count) rows, (q, count) scores) of (q, width or wider), best first; row −1 where there are fewer."""
        count = min(count, len(self))
        if count == 0:
            return np.zeros((len(vectors), 0), np.int64), np.zeros((len(vectors), 0), np.float32)
        asked = np.ascontiguousarray(vectors[:, : self.width], dtype=np.float32)
        scores, found = self.index.search(asked, count) if allowed is None else self._filtered(asked, count, self._held(allowed))
        rows = self.rows[found]
        if found[:, -1].min(initial=0) < 0:  # fewer than were asked for
            rows[found < 0] = -1
        return rows, scores

    def _held(self, allowed: np.ndarray) -> np.ndarray:
        """(m,) whether a place holds a row of ``allowed``."""
        last = int(self.rows[-1]) + 1
        mask = np.zeros(last, dtype=bool)
        mask[allowed[allowed < last]] = True
        return mask if last == len(self.rows) else mask[self.rows]

    def _filtered(self, asked: np.ndarray, count: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        only = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        index = self.index
        if isinstance(index, faiss.IndexRefine):
            return index.search(asked, count, params=_refined(only))  # type: ignore[no-any-return]
        if not self.lists:
            return index.search(asked, count, params=faiss.SearchParameters(sel=only))  # type: ignore[no-any-return]
        places = np.flatnonzero(mask)
        share = np.sqrt(len(places) / len(self))
        if len(places) <= max(SCANNED, count, index.nprobe * share * len(self) / self.lists):
            return _scan(index.reconstruct_batch(places), places, asked, count)
        held = np.bincount(self._list_of()[places], minlength=self.lists) > 0  # a filter may leave one far corner only: the others are passed over
        near = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(np.packbits(held, bitorder="little")))
        probes = min(int(np.ceil(index.nprobe / share)), int(held.sum()))
        return index.search(asked, count, params=faiss.SearchParametersIVF(sel=only, nprobe=probes, quantizer_params=near))  # type: ignore[no-any-return]

    def _list_of(self) -> np.ndarray:
        """(m,) the list that each place lies in."""
        import faiss

        return faiss.vector_to_array(self.index.direct_map.array) >> 32  # type: ignore[no-any-return]

    def save(self, path: Path) -> None:
        """The index and its rows as one file."""
        import faiss

        def write(file: IO[bytes]) -> None:  # a piece at a time: no second copy of the vectors in memory
            file.write(len(self.rows).to_bytes(8, "little") + self.rows.tobytes())
            faiss.write_index(self.index, faiss.PyCallbackIOWriter(file.write))

        write_atomic(path, write)

    @classmethod
    def load(cls, path: Path) -> Nearest:
        """Raises :class:`MissingArtefact`, or :class:`Corrupt` where faiss cannot read the file."""
        import faiss

        if not path.exists():
            raise MissingArtefact("no index", where=str(path), fix="run `pinhole build index`")
        try:
            with open(path, "rb") as file:
                rows = np.fromfile(file, np.int64, int.from_bytes(file.read(8), "little"))
                index = cls(faiss.read_index(faiss.PyCallbackIOReader(file.read)), rows)
            if len(index) != len(index.rows):
                raise RuntimeError(f"{len(index)} vectors of {len(index.rows)} rows")
            return index
        except (RuntimeError, ValueError) as error:
            raise Corrupt(f"cannot be read: {str(error)[:200]}", where=str(path), fix="delete the folder and run `pinhole build index`") from None


def _cut(vectors: np.ndarray, width: int) -> np.ndarray:
    """The first numbers of each vector; of length 1 again where some were cut off, as they are trained to be."""
    kept = np.ascontiguousarray(vectors[:, :width], dtype=np.float32)
    return kept if width == vectors.shape[1] else kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)


def _some(n: int, count: int) -> np.ndarray:
    return np.arange(n) if n <= count else np.sort(np.random.default_rng(0).choice(n, count, replace=False))


def _pieces(n: int) -> Iterator[np.ndarray]:
    return (np.arange(begin, min(begin + PIECE, n)) for begin in range(0, n, PIECE))


def _scan(vectors: np.ndarray, places: np.ndarray, asked: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    if not len(places):
        return np.zeros((len(asked), count), np.float32), np.full((len(asked), count), -1, np.int64)
    scores, found = faiss.knn(asked, vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, np.where(found < 0, -1, places[found])


def _kind(storage: Storage) -> Any:
    import faiss

    return {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}[storage]


def _flat(width: int, storage: Storage) -> Any:
    import faiss

    return faiss.IndexFlatIP(width) if storage == "float32" else faiss.IndexScalarQuantizer(width, _kind(storage), faiss.METRIC_INNER_PRODUCT)


def _lists(width: int, count: int, storage: Storage) -> Any:
    import faiss

    lists, centres = max(1, min(int(4 * np.sqrt(count)), count // A_CENTRE)), faiss.IndexFlatIP(width)
    if storage == "float32":
        index = faiss.IndexIVFFlat(centres, width, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFScalarQuantizer(centres, width, lists, _kind(storage), faiss.METRIC_INNER_PRODUCT, False)
    index.set_direct_map_type(faiss.DirectMap.Array)
    return index


def _bits(width: int) -> Any:
    """A scan whatever the number of items: 32 bytes each at 256 numbers, and a few hundred scored again."""
    import faiss

    turn = faiss.RandomRotationMatrix(width, width)
    turn.init(0)
    signs = faiss.IndexPreTransform(turn, faiss.IndexRaBitQ(width, faiss.METRIC_INNER_PRODUCT))
    again = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index = faiss.IndexRefine(signs, again)
    index.k_factor = RESCORED
    return index


def _refined(only: Any) -> Any:
    import faiss

    signs = faiss.SearchParametersPreTransform(index_params=faiss.SearchParameters(sel=only))
    return faiss.IndexRefineSearchParameters(k_factor=float(RESCORED), base_index_params=signs)
