"""The section of docs/graft.md about a teacher: its commands run, its settings and keys exist, and the benchmark prints what it promises."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pinhole import cli
from pinhole.benchmarks import distil
from pinhole.config import GraftConfig
from pinhole.errors import ConfigError
from pinhole.evaluation.seeing_exams import EXAMS
from pinhole.graft.original import _EDGE
from pinhole.graft.taught import FOLDER, SHARD
from pinhole.graft.teacher import MOST, K
from pinhole.workspace import Workspace
from test_graft.test_original import save
from toy_workspace import make_models, make_source, make_workspace

PAGE = (Path(__file__).parents[2] / "docs" / "graft.md").read_text(encoding="utf-8")
SECTION = re.search(r"## Learning from the model's own eyes\n(.*?)\n## ", PAGE, re.DOTALL)[1]  # type: ignore[index]
COMMANDS = [shlex.split(line.removeprefix("$ pinhole "), comments=True) for line in re.findall(r"^\$ pinhole .*", SECTION, re.MULTILINE)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small workspace; its pictures keep a grid of cells."""
    folder = tmp_path_factory.mktemp("distil")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINHOLE_CACHE", str(folder / "cache"))
        root = make_workspace(folder / "shop", make_source(folder / "source", each=3), make_models(folder / "models")).root
        few = {"graft.seeing_steps": 1, "graft.talking_steps": 1, "graft.taught_scenes": 3}
        Workspace.open(root).change({"vision.grid": 4, "graft.dtype": "float32", **few})
        assert cli.run(["build", "align", "-w", str(root)]) == 0
    return root


def test_every_command_runs(shop: Path, tmp_path: Path) -> None:
    save("qwen3_vl", tmp_path / "vlm")
    assert [command[0] for command in COMMANDS] == ["graft", "graft"]
    for command in COMMANDS:
        assert cli.run([str(tmp_path / "vlm") if word.startswith("hf:") else word for word in command] + ["-w", str(shop)]) == 0
    assert Workspace.open(shop).config.graft.teacher == ""


def test_what_the_page_says_of_settings_and_sizes() -> None:
    for setting in ("teacher", "taught_scenes", "taught_share", "distil_weight"):
        assert f"`{setting}`" in SECTION and setting in GraftConfig.model_fields
    for said in (f"{_EDGE} × {_EDGE} pixels", f"most {MOST},", f"the {K} likeliest", f"Shards of {SHARD} scenes", f"`{FOLDER}/`"):
        assert said in " ".join(SECTION.split()), said
    token = 4 * (1 + K + K + 1)  # bytes
    assert token == pytest.approx(256, rel=0.1)


def test_figures(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in shop.rglob("*"))
    done: list[tuple[int, int]] = []
    workspace = Workspace.open(shop).change({"graft.base": str(shop.parent / "models" / "speak")})
    figures = distil.run(workspace, lambda at, total: done.append((at, total)), steps=2, n=4)
    asked = {exam for exam in EXAMS if f"distil.eyes.{exam}" in figures}  # of a catalogue so small not all can be asked
    assert asked and all(f"distil.{side}.{exam}" in figures for side in ("gutted", "lessons", "taught") for exam in asked)
    for exam in asked:
        eyes, taught = figures[f"distil.eyes.{exam}"], figures[f"distil.taught.{exam}"]
        assert figures.get(f"distil.kept.{exam}") == (pytest.approx(taught / eyes) if eyes else None)
    assert figures["distil.steps"] == 2 and figures["distil.n"] == 4 and 0 <= figures["distil.teacher_right"] <= 1
    assert done == [(step, 6) for step in range(1, 7)]
    assert sorted(path.name for path in shop.rglob("*")) == before


def test_too_few_cells_are_said(shop: Path) -> None:
    from types import SimpleNamespace

    from pinhole.vision.features import Features

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Features, "load", classmethod(lambda kind, path: SimpleNamespace(grid=0)))
        with pytest.raises(ConfigError, match=r"`vision\.grid` = 0 .*set \[vision\] grid = 7"):
            distil.run(Workspace.open(shop))
