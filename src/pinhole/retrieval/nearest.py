"""Nearest vectors by inner product, in this process (faiss): a scan for few, HNSW for many; stored whole or in fewer bits.

An index holds the first ``[index] width`` numbers of each vector (learned vectors work when cut) as ``[index] storage`` says: float32, float16,
int8 with a range of its own for each number, or one bit each (RaBitQ, Gao & Long 2024), whose best are scored again in int8. Knows row
numbers, no ids. An index is one file, read into memory when it is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from pinhole.config import IndexConfig
from pinhole.errors import Corrupt, MissingArtefact
from pinhole.workspace import write_atomic

Storage = Literal["float32", "float16", "int8", "bit"]
BITS: dict[Storage, int] = {"float32": 32, "float16": 16, "int8": 8, "bit": 9}  # a number; a bit and what scores it again
RESCORED = 8  # times as many as are asked for are found by one bit, and scored again
GATHERED = 8  # queries at once from which such rows are gathered and scanned by one product of matrices
SCANNED = 0.2  # share of all rows up to which a filter's rows are scanned, where links would lead to rows that may not be shown


class Nearest:
    """A faiss index over some rows of the features. ``rows`` (m,) ascending: position in the index → row."""

    def __init__(self, index: Any, rows: np.ndarray) -> None:
        self.index, self.rows = index, np.asarray(rows, dtype=np.int64)

    @classmethod
    def build(cls, vectors: np.ndarray, rows: np.ndarray, config: IndexConfig) -> Nearest:
        """``vectors`` (m, width) float32 of the features' ``rows`` (m,), ascending."""
        width = min(config.width or vectors.shape[1], vectors.shape[1])
        kept = np.ascontiguousarray(vectors[:, :width], dtype=np.float32)
        if width < vectors.shape[1]:  # as they are trained to be cut
            kept = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
        few = len(rows) < config.flat_below
        index = _bits(width) if config.storage == "bit" else _whole(width, config, few)
        if len(rows):
            index.train(kept)
            index.add(kept)
        return cls(index, rows)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def width(self) -> int:
        """Numbers of a vector that are compared."""
        return int(self.index.d)

    def search(self, vector: np.ndarray, count: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Rows nearest to (width,), best first; at most ``count``, only those of ``allowed`` (an array of rows) if given."""
        if not np.any(vector):
            return np.zeros(0, np.int64)
        found, _ = self.many(vector[None], count, allowed)
        return found[0][found[0] >= 0]

    def many(self, vectors: np.ndarray, count: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """((q, count) rows, (q, count) scores) of (q, width or wider), best first; row −1 where there are fewer."""
        import faiss

        count = min(count, len(self))
        if count == 0:
            return np.zeros((len(vectors), 0), np.int64), np.zeros((len(vectors), 0), np.float32)
        only: dict[str, Any] = {}
        index, asked = self.index, np.ascontiguousarray(vectors[:, : self.width], dtype=np.float32)
        if allowed is not None:
            places = np.searchsorted(self.rows, allowed)
            places = places[(places < len(self.rows)) & (self.rows[np.minimum(places, len(self.rows) - 1)] == allowed)]
            mask = np.zeros(len(self.rows), dtype=bool)
            mask[places] = True
            only["sel"] = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
            if isinstance(index, faiss.IndexHNSW) and len(places) <= SCANNED * len(self):
                index = faiss.downcast_index(index.storage)
                if len(vectors) >= GATHERED and count <= len(places):  # many queries: the rows are laid side by side once
                    scores, found = faiss.knn(asked, index.reconstruct_batch(places), count, metric=faiss.METRIC_INNER_PRODUCT)
                    return self.rows[places][found], scores
        scores, found = index.search(asked, count, params=_parameters(index, count, only))
        rows = self.rows[found]
        if found[:, -1].min(initial=0) < 0:  # fewer than were asked for
            rows[found < 0] = -1
        return rows, scores

    def save(self, path: Path) -> None:
        """The index and its rows as one file."""
        import faiss

        write_atomic(path, len(self.rows).to_bytes(8, "little") + self.rows.tobytes() + faiss.serialize_index(self.index).tobytes())

    @classmethod
    def load(cls, path: Path) -> Nearest:
        """Raises :class:`MissingArtefact`, or :class:`Corrupt` where faiss cannot read the file."""
        import faiss

        if not path.exists():
            raise MissingArtefact("no index", where=str(path), fix="run `pinhole build index`")
        data = np.fromfile(path, dtype=np.uint8)
        try:
            end = 8 + 8 * int.from_bytes(data[:8].tobytes(), "little")
            index = cls(faiss.deserialize_index(data[end:]), np.frombuffer(data[8:end].tobytes(), dtype=np.int64))
            if len(index) != len(index.rows):
                raise RuntimeError(f"{len(index)} vectors of {len(index.rows)} rows")
            return index
        except (RuntimeError, ValueError) as error:
            raise Corrupt(f"cannot be read: {str(error)[:200]}", where=str(path), fix="delete the folder and run `pinhole build index`") from None


def _whole(width: int, config: IndexConfig, few: bool) -> Any:
    import faiss

    kinds = {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}
    metric = faiss.METRIC_INNER_PRODUCT
    if few:
        return faiss.IndexFlatIP(width) if config.storage == "float32" else faiss.IndexScalarQuantizer(width, kinds[config.storage], metric)
    if config.storage == "float32":
        return _linked(faiss.IndexHNSWFlat(width, config.hnsw_links, metric), config)
    return _linked(faiss.IndexHNSWSQ(width, kinds[config.storage], config.hnsw_links, metric), config)


def _linked(index: Any, config: IndexConfig) -> Any:
    index.hnsw.efConstruction = max(64, 4 * config.hnsw_links)
    index.hnsw.efSearch = config.hnsw_search
    return index


def _bits(width: int) -> Any:
    """A scan whatever the number of items: 32 bytes each at 256 numbers, and a few hundred scored again."""
    import faiss

    turn = faiss.RandomRotationMatrix(width, width)
    turn.init(0)
    signs = faiss.IndexPreTransform(turn, faiss.IndexRaBitQ(width, faiss.METRIC_INNER_PRODUCT))
    again = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexRefine(signs, again)


def _parameters(index: Any, count: int, only: dict[str, Any]) -> Any:
    import faiss

    if isinstance(index, faiss.IndexRefine):
        signs = faiss.SearchParametersPreTransform(index_params=faiss.SearchParameters(**only))
        return faiss.IndexRefineSearchParameters(k_factor=float(RESCORED), base_index_params=signs)
    if isinstance(index, faiss.IndexHNSW):
        if not only and index.hnsw.efSearch >= count:
            return None  # as it is: parameters of a call cost as much as a search
        return faiss.SearchParametersHNSW(efSearch=max(index.hnsw.efSearch, count), **only)
    return faiss.SearchParameters(**only) if only else None
