"""The benchmark of arranged results, on the toy shop: every strength on the same questions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pinhole.benchmarks import diversify
from pinhole.errors import UsageError
from toy_search import as_workspace, make_toy


def test_relevance_and_difference_at_every_strength(tmp_path: Path) -> None:
    done: list[int] = []
    figures = diversify.run(as_workspace(make_toy(tmp_path / "toy", n=320, align={"steps": 5})), lambda now, total: done.append(now), most=5)
    assert figures["diversify.n"] == len(done) == 5
    for strength in diversify.STRENGTHS:
        key = f"diversify.s{100 * strength:.0f}"
        assert 0 <= figures[f"{key}.recall@10"] <= 1 and 0 < figures[f"{key}.unlikeness"] < 2 and figures[f"{key}.kinds"] >= 1
    assert figures["diversify.s95.unlikeness"] >= figures["diversify.s0.unlikeness"]
    diversify.plot(figures, tmp_path / "diversify.png")
    assert (tmp_path / "diversify.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_ask_is_said(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", n=96, align={"steps": 2})
    workspace = as_workspace(toy)
    toy.catalogue.delete("queries", toy.asked.texts)
    assert isinstance(toy.catalogue.queries(), pa.Table) and not len(toy.catalogue.queries())
    with pytest.raises(UsageError, match="no held-out query"):
        diversify.run(workspace)
