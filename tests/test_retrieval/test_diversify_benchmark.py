"""The benchmark of arranged results, on the built shop: every strength on the same questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from built_shop import built_shop
from pinhole.benchmarks import diversify
from pinhole.workspace import Workspace


def test_relevance_and_difference_at_every_strength(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    done: list[int] = []
    figures = diversify.run(Workspace.open(built_shop(tmp_path_factory) / "shop"), lambda now, total: done.append(now), most=5)
    assert figures["diversify.n"] == len(done) > 0
    for strength in diversify.STRENGTHS:
        key = f"diversify.s{100 * strength:.0f}"
        assert 0 <= figures[f"{key}.recall@10"] <= 1 and 0 < figures[f"{key}.unlikeness"] < 2 and figures[f"{key}.kinds"] >= 1
    assert figures["diversify.s95.unlikeness"] >= figures["diversify.s0.unlikeness"]
    diversify.plot(figures, tmp_path / "diversify.png")
    assert (tmp_path / "diversify.png").read_bytes().startswith(b"\x89PNG")
