"""Nearest vectors by inner product, in this process: exact for few, HNSW for many (faiss).

Knows row numbers, no ids. An index is one file, read into memory when it is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pinhole.config import IndexConfig
from pinhole.errors import Corrupt, MissingArtefact
from pinhole.workspace import write_atomic


class Nearest:
    """A faiss index over some rows of the features."""

    def __init__(self, index: Any) -> None:
        self.index = index

    @classmethod
    def build(cls, vectors: np.ndarray, rows: np.ndarray, config: IndexConfig) -> Nearest:
        """``vectors`` (m, width) float32 of the features' ``rows`` (m,)."""
        import faiss

        width = vectors.shape[1]
        if len(rows) < config.flat_below:
            inner: Any = faiss.IndexFlatIP(width)
        else:
            inner = faiss.IndexHNSWFlat(width, config.hnsw_links, faiss.METRIC_INNER_PRODUCT)
            inner.hnsw.efConstruction = max(64, 4 * config.hnsw_links)
            inner.hnsw.efSearch = config.hnsw_search
        index = faiss.IndexIDMap2(inner)
        index.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), np.asarray(rows, dtype=np.int64))
        return cls(index)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, vector: np.ndarray, count: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Rows nearest to (width,), best first; at most ``count``, only those of ``allowed`` (an array of rows) if given."""
        import faiss

        count = min(count, len(self))
        if count == 0 or not np.any(vector):
            return np.zeros(0, np.int64)
        only = {} if allowed is None else {"sel": faiss.IDSelectorBatch(np.asarray(allowed, dtype=np.int64))}
        inner = faiss.downcast_index(self.index.index)
        if isinstance(inner, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW(efSearch=max(inner.hnsw.efSearch, count), **only)  # type: ignore[attr-defined]
        else:
            parameters = faiss.SearchParameters(**only)
        _, found = self.index.search(np.ascontiguousarray(vector[None], dtype=np.float32), count, params=parameters)
        return np.asarray(found[0][found[0] >= 0], dtype=np.int64)

    def save(self, path: Path) -> None:
        import faiss

        write_atomic(path, faiss.serialize_index(self.index).tobytes())

    @classmethod
    def load(cls, path: Path) -> Nearest:
        """Raises :class:`MissingArtefact`, or :class:`Corrupt` where faiss cannot read the file."""
        import faiss

        if not path.exists():
            raise MissingArtefact("no index", where=str(path), fix="run `pinhole build index`")
        try:
            return cls(faiss.deserialize_index(np.fromfile(path, dtype=np.uint8)))
        except RuntimeError as error:
            raise Corrupt(f"cannot be read: {str(error)[:200]}", where=str(path), fix="delete the folder and run `pinhole build index`") from None
