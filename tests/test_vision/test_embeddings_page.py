"""What docs/embeddings.md says is what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pinhole import config as configuration
from pinhole.benchmarks import signals
from pinhole.cli import run
from pinhole.config import AlignConfig
from pinhole.vision import heads
from pinhole.vision.losses import LOSSES
from pinhole.workspace import Workspace, read_json
from test_vision import tiny
from toy_workspace import make_source, make_workspace

PAGE = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text(encoding="utf-8")


def test_the_command_trains_and_leaves_what_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    tiny.siglip(tmp_path / "see")
    tiny.bert(tmp_path / "read")
    models = {"image_encoder": f"hf:{tmp_path / 'see'}", "text_encoder": f"hf:{tmp_path / 'read'}", "base": "none"}
    shop = make_workspace(tmp_path / "shop", make_source(tmp_path / "source"), models).root
    [command] = re.findall(r"\$ pinhole (build align) -w shop", PAGE)
    assert run([*command.split(), "-w", str(shop)]) == 0
    made = Workspace.open(shop).need("align").path
    assert {"align.png", "README.md", "recall.json"} <= {path.name for path in made.iterdir()}
    curve = read_json(made / "curve.json")
    assert {key for key in curve[0] if key not in ("step", "loss")} <= {"title", "board", "walk", "query"}


def test_the_page_names_what_there_is() -> None:
    shown = tomllib.loads(re.findall(r"```toml\n(.*?)```", PAGE, re.S)[0])
    assert configuration.parse(shown, where="page").align == AlignConfig()
    weights = {name for name in AlignConfig.model_fields if name.startswith("weight_")}
    assert all(f"| `{name}` |" in PAGE for name in weights)
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M)) <= set(AlignConfig.model_fields)
    assert all(f"`{loss}`:" in PAGE for loss in LOSSES)
    assert heads.CHECKPOINT_STEPS == 50 and PAGE.count("fifty steps") == 2
    assert signals.SIZES == {"quick": 1, "long": 5} and "`--quick` one split, `--long` five" in PAGE
