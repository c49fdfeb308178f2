"""What docs/tuning.md shows is what the code does, and its benchmark measures on a real workspace."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pinhole import config as configuration
from pinhole.benchmarks import tune as bench
from pinhole.cli import run
from pinhole.config import AlignConfig, TuneConfig
from pinhole.errors import MissingArtefact
from pinhole.stages import build
from pinhole.vision import tune
from pinhole.workspace import Workspace, read_json
from test_vision import tiny
from toy_workspace import make_source, make_workspace

PAGE = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy catalogue with tiny encoders, embedded and aligned, whose tuning takes a second."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINHOLE_CACHE", str(folder / "cache"))
        tiny.siglip(folder / "see")
        tiny.bert(folder / "read")
        models = {"image_encoder": f"hf:{folder / 'see'}", "text_encoder": f"hf:{folder / 'read'}", "base": "none"}
        workspace = make_workspace(folder / "shop", make_source(folder / "source"), models)
        shares = {"catalogue.held_out_items": 0.4, "catalogue.held_out_boards": 0.4, "catalogue.held_out_queries": 0.4}
        workspace.change({"tune.steps": 2, "tune.blocks": 1, "tune.batch": 8, **shares})
        build(Workspace.open(workspace.root), ["align"])
        return workspace.root


def test_the_command_tunes_and_writes_the_setting(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(shop.parent / "cache"))
    shutil.copytree(shop.parent / "source", tmp_path / "source")
    shutil.copytree(shop, tmp_path / "shop")
    command = re.findall(r"\$ pinhole (build .*)", PAGE)[0]
    assert run([*command.split(), "-w", str(tmp_path / "shop")]) == 0
    made = Workspace.open(tmp_path / "shop")
    assert made.config.tune.unfreeze == "lora" and (made.need("tune").path / "encoder" / "tuned.json").exists()
    assert run(["build", "align", "--unfreeze", "some", "-w", str(tmp_path / "shop")]) == 2
    assert Workspace.open(tmp_path / "shop").config.tune.unfreeze == "lora"


def test_the_page_names_what_there_is() -> None:
    shown = tomllib.loads(re.findall(r"```toml\n(.*?)```", PAGE, re.S)[0])
    assert configuration.parse(shown, where="page").tune == TuneConfig(unfreeze="full")  # the defaults, but for the one
    assert all(f"weight_{name}`" in PAGE and f"weight_{name}" in AlignConfig.model_fields for name in ("title", "board", "query"))
    assert f"every {tune.CHECKPOINT_STEPS} steps" in PAGE
    assert f"trains {bench.SIZES['quick']} steps, `--long` {bench.SIZES['long']:,}" in PAGE


def test_the_benchmark_measures_and_goes_on_where_it_was(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(shop.parent / "cache"))
    workspace = Workspace.open(shop)
    kept = {stage: workspace.need(stage).key for stage in ("embed", "align")}

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench, "compare", stop)
        with pytest.raises(KeyboardInterrupt):
            bench.run(workspace)
    (place,) = (shop / "benchmarks").glob("tune-*")
    made = read_json(place / "tune" / "made.json")
    with monkeypatch.context() as patch:
        patch.setattr(tune, "build_tune", stop)  # it is not trained again
        figures = bench.run(workspace)
    assert figures["tune.loss.last"] == made["loss.last"] and figures["tune.steps"] == 2
    for name in ("query", "boards", "pictures"):
        assert figures[f"tune.{name}.recall@10.n"] > 0
        assert f"tune.{name}.recall@10" in PAGE
        before, after = (figures[f"tune.{name}.recall@10.{side}"] for side in ("before", "after"))
        assert np.isclose(figures[f"tune.{name}.recall@10.ratio"], after / before)
        assert figures[f"tune.{name}.recall@10.ratio.low"] <= figures[f"tune.{name}.recall@10.ratio.high"]
    assert not list((shop / "benchmarks").glob("tune-*"))
    assert {stage: Workspace.open(shop).need(stage).key for stage in kept} == kept and Workspace.open(shop).latest("tune") is None


def test_without_vectors_it_says_what_to_build(workspace: Workspace) -> None:
    with pytest.raises(MissingArtefact, match="pinhole build embed"):
        bench.run(workspace)
