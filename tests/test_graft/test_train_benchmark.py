"""The benchmark steps on a real workspace and prints what it promises. How good the figures are, is for a quiet machine."""

from __future__ import annotations

import pytest

from built_shop import built_shop
from pinhole.benchmarks import train
from pinhole.errors import MissingArtefact
from pinhole.workspace import Workspace


def test_figures(tmp_path_factory: pytest.TempPathFactory) -> None:
    shop = built_shop(tmp_path_factory) / "shop"
    before = sorted(path.name for path in shop.rglob("*"))
    figures = train.run(Workspace.open(shop), steps=2)
    names = {f"train.{name}" for name in ("fraction", "over_stock", "packing", "tokens_per_s", "steps")}
    assert names <= set(figures) <= names | {"train.side_by_side"}
    assert figures["train.packing"] > 1.5 and figures["train.steps"] == 2 and figures["train.fraction"] > 0
    assert sorted(path.name for path in shop.rglob("*")) == before


def test_without_a_learned_space_it_says_what_to_build(workspace: Workspace) -> None:
    with pytest.raises(MissingArtefact, match="pinhole build align"):
        train.run(workspace)
