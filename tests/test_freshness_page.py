"""What docs/freshness.md says is what the code does."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from pinhole import tasks, watch
from pinhole.catalogue.store import Catalogue
from pinhole.cli import run
from pinhole.config import Config
from pinhole.retrieval.extend import TRIED
from pinhole.tasks import Answer
from pinhole.workspace import Workspace
from toy_workspace import draw

PAGE = (Path(__file__).parents[1] / "docs" / "freshness.md").read_text(encoding="utf-8")


def test_limits_and_numbers_are_those_of_the_code() -> None:
    settings = Config()
    limits = settings.align.retrain_at, settings.index.rebuild_at, settings.graft.retrain_at, settings.evaluate.repeat_at
    assert set(limits) == {0.1} and "Each limit is a share, .1 to begin with" in PAGE
    for name in re.findall(r"`\[(\w+)\] (\w+)`", PAGE):
        assert hasattr(getattr(settings, name[0]), name[1])
    assert hasattr(settings.index, "least_recall")
    assert f"after {watch.PATIENCE} looks" in PAGE and f"on {TRIED} of the old and {TRIED} of the new" in PAGE


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "build", lambda workspace, names, console: Answer({"stages": {}}, []))
    workspace: Any = Workspace.create(tmp_path / "shop")
    (tmp_path / "photos").mkdir()
    draw("ring", "red", 0, tmp_path / "photos" / "ring.png")
    (tmp_path / "items.jsonl").write_text('{"id": "a"}\n')
    (tmp_path / "boards.csv").write_text("id,items\nhome,a|ring.png\n")
    commands = [line.removeprefix("$ pinhole ") for line in PAGE.splitlines() if line.startswith("$ ")]
    assert len(commands) == 3
    for command in commands:
        assert run(shlex.split(command)) == 0, command
    found = json.loads(capsys.readouterr().out)
    assert found["added"] == 1 and all(f"`{name}`" in PAGE for name in found)
    catalogue = Catalogue(workspace.tables)
    assert (catalogue.count("items"), catalogue.count("boards")) == (2, 1)
