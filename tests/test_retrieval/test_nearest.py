"""The vector indexes agree with a scan, filtered or not, saved or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pinhole.config import IndexConfig
from pinhole.errors import Corrupt, MissingArtefact
from pinhole.retrieval.nearest import Nearest

ROWS = np.arange(600) * 3
VECTORS = np.random.default_rng(0).standard_normal((600, 16)).astype(np.float32)
QUERY = np.random.default_rng(1).standard_normal(16).astype(np.float32)


def scan(allowed: np.ndarray, count: int) -> list[int]:
    scores = np.where(np.isin(ROWS, allowed), VECTORS @ QUERY, -np.inf)
    return ROWS[np.argsort(-scores)[:count]].tolist()


@pytest.mark.parametrize(("flat_below", "least"), [(1000, 20), (10, 18)])
def test_agrees_with_a_scan(flat_below: int, least: int, tmp_path: Path) -> None:
    index = Nearest.build(VECTORS, ROWS, IndexConfig(flat_below=flat_below))
    index.save(tmp_path / "x.faiss")
    for opened in (index, Nearest.load(tmp_path / "x.faiss")):
        assert len(set(opened.search(QUERY, 20).tolist()) & set(scan(ROWS, 20))) >= least
        allowed = ROWS[::4]
        found = opened.search(QUERY, 20, allowed)
        assert set(found.tolist()) <= set(allowed.tolist())
        assert len(set(found.tolist()) & set(scan(allowed, 20))) >= least


def test_nothing_to_find() -> None:
    empty = Nearest.build(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), IndexConfig())
    assert len(empty.search(np.ones(4, np.float32), 5)) == 0
    assert len(Nearest.build(VECTORS, ROWS, IndexConfig()).search(np.zeros(16, np.float32), 5)) == 0


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact):
        Nearest.load(tmp_path / "none.faiss")
    (tmp_path / "bad.faiss").write_bytes(b"not an index")
    with pytest.raises(Corrupt, match=r"bad\.faiss"):
        Nearest.load(tmp_path / "bad.faiss")
