"""The vector indexes agree with a scan, filtered or not, saved or not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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


@pytest.mark.parametrize("flat_below", [1000, 10])
@pytest.mark.parametrize(("storage", "least"), [("float16", 19), ("int8", 18), ("bit", 14)])
def test_fewer_bits_find_nearly_the_same(storage: Literal["float16", "int8", "bit"], least: int, flat_below: int, tmp_path: Path) -> None:
    index = Nearest.build(VECTORS, ROWS, IndexConfig(flat_below=flat_below, storage=storage))
    index.save(tmp_path / "x.faiss")
    for opened in (index, Nearest.load(tmp_path / "x.faiss")):
        assert len(set(opened.search(QUERY, 20).tolist()) & set(scan(ROWS, 20))) >= least
        few = opened.search(QUERY, 20, ROWS[::4])
        assert set(few.tolist()) <= set(ROWS[::4].tolist()) and len(set(few.tolist()) & set(scan(ROWS[::4], 20))) >= least


def test_a_filter_that_leaves_few_is_answered_by_a_scan_of_them() -> None:
    index = Nearest.build(VECTORS, ROWS, IndexConfig(flat_below=10))
    allowed = ROWS[5::20]
    assert index.search(QUERY, 30, allowed).tolist() == scan(allowed, 30)
    many, scores = index.many(np.tile(QUERY, (9, 1)), 30, allowed)
    assert many.tolist() == [scan(allowed, 30)] * 9 and (np.diff(scores) <= 0).all()
    assert index.search(QUERY, 5, np.array([1, 2, 10**9])).tolist() == []  # rows that it does not hold


def test_lists_reach_the_wanted_recall_also_where_a_filter_leaves_a_far_corner() -> None:
    draw = np.random.default_rng(2)
    centres = draw.standard_normal((40, 32)).astype(np.float32)
    group = np.sort(draw.integers(0, 40, 20_000))
    vectors = centres[group] + 0.7 * draw.standard_normal((20_000, 32), dtype=np.float32)
    asked = centres[draw.integers(0, 20, 64)] + 0.7 * draw.standard_normal((64, 32), dtype=np.float32)
    rows = np.arange(20_000)
    index = Nearest.build(vectors, rows, IndexConfig(flat_below=10, recall=0.95), asked)
    assert 1 <= index.index.nprobe < index.lists > 100

    def recall(allowed: np.ndarray | None) -> float:
        held = rows if allowed is None else allowed
        best = held[np.argsort(-(asked @ vectors[held].T), axis=1)[:, :10]]
        return float(np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(index.many(asked, 10, allowed)[0], best, strict=True)]))

    assert recall(None) >= 0.95
    assert recall(np.sort(draw.choice(rows, 8_000, replace=False))) >= 0.95
    assert recall(np.flatnonzero(group >= 25)) >= 0.9  # far from every query
    assert recall(np.flatnonzero(group == 39)) == 1.0  # few: scanned


def test_cut_vectors_are_cosines_of_what_is_left() -> None:
    index = Nearest.build(VECTORS * np.linspace(1, 9, 600)[:, None].astype(np.float32), ROWS, IndexConfig(width=8))
    cut = VECTORS[:, :8] / np.linalg.norm(VECTORS[:, :8], axis=1, keepdims=True)
    rows, scores = index.many(QUERY[None], 5)
    best = np.argsort(-(cut @ QUERY[:8]))[:5]
    assert index.width == 8 and rows[0].tolist() == ROWS[best].tolist() and scores[0] == pytest.approx((cut @ QUERY[:8])[best], rel=1e-4)


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
