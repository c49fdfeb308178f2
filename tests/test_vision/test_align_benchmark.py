"""The benchmark trains on a real workspace and prints what it promises. How good the figures are, is for a quiet machine."""

from __future__ import annotations

import pytest

from built_shop import built_shop
from pinhole.benchmarks import align
from pinhole.errors import MissingArtefact
from pinhole.workspace import Workspace


def test_figures(tmp_path_factory: pytest.TempPathFactory) -> None:
    shop = built_shop(tmp_path_factory) / "shop"
    before = sorted(path.name for path in shop.rglob("*"))
    figures = align.run(Workspace.open(shop), steps=2)
    ratios = {"align.one_over_all", "align.one.beside_over_alone", "align.all.beside_over_alone"}
    assert set(figures) == {*ratios, "align.cores", "align.steps"} and figures["align.steps"] == 4
    assert all(figures[name] > 0 for name in ratios)
    assert sorted(path.name for path in shop.rglob("*")) == before


def test_without_vectors_it_says_what_to_build(workspace: Workspace) -> None:
    with pytest.raises(MissingArtefact, match="pinhole build embed"):
        align.run(workspace)
