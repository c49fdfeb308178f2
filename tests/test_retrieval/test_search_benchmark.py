"""The benchmark of search, on the built shop at a size for tests: every side finds what a scan finds."""

from __future__ import annotations

import numpy as np
import pytest

from built_shop import built_shop
from pinhole.benchmarks import search
from pinhole.workspace import Workspace


def test_every_side_is_measured(tmp_path_factory: pytest.TempPathFactory) -> None:
    done: list[int] = []
    figures = search.run(Workspace.open(built_shop(tmp_path_factory) / "shop"), lambda now, total: done.append(now), n=3000)
    assert figures["search.n"] == 3000 and done[-1] == len(done) >= 7
    for side in ("ours", "bare", "hnsw", "lance"):
        least = search.WANTED if side != "lance" else 0.5  # vectors of eight bits do not reach it on every catalogue; what they reach is printed
        assert figures[f"search.{side}.recall@10"] >= least and figures[f"search.{side}.qps"] > 0, side
        assert figures[f"search.{side}.p50_ms"] <= figures[f"search.{side}.p99_ms"]
    assert figures["search.filtered.recall@10"] == 1.0 and figures["search.qps_over_faiss"] > 0
    assert figures["search.compute.brute.mflops"] == 2 * 1280 * 3000 / 1e6
    assert figures["search.text.encode_ms"] > 0 and figures["search.text.full_text_ms"] > 0


def test_resampled_vectors_lie_as_the_real_ones_do() -> None:
    real = np.eye(8, dtype=np.float32)[[0, 1, 2]]
    made = search.resampled(np.concatenate([real, np.zeros((1, 8), np.float32)]), 500, np.random.default_rng(0))
    assert np.linalg.norm(made, axis=1) == pytest.approx(np.ones(500), abs=1e-5)
    nearest = (made @ real.T).max(1)
    assert 0.75 < nearest.mean() < 0.999 and (made == search.resampled(real, 500, np.random.default_rng(0))).all()
