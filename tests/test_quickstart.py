"""docs/quickstart.md is run: a catalogue with columns of its own, through every stage, served, asked and reported on."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from built_shop import COMMANDS, PENGUIN, built_shop, headers, inside
from pinhole.catalogue.store import Catalogue
from pinhole.cli import run
from pinhole.evaluation.figures import NAMED, grouped
from pinhole.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_shop(tmp_path_factory)


def test_six_commands() -> None:
    assert [command[0] for command in COMMANDS[:6]] == ["init", "ingest", "ingest", "ingest", "build", "serve"]


def test_the_tables_hold_the_files(folder: Path) -> None:
    assert headers() == [(folder / name).read_text(encoding="utf-8").splitlines()[0] for name in ("products.csv", "searches.csv")]
    catalogue = Catalogue(folder / "shop" / "tables")
    products = (folder / "products.csv").read_text(encoding="utf-8").count("\n") - 1
    assert catalogue.count("items") == products and catalogue.rejected().num_rows == 0
    penguin = catalogue.item(PENGUIN)
    assert penguin["title"] == "A penguin" or penguin["title"]
    assert penguin["attributes"]["category"] == "animals" and catalogue.image(PENGUIN).startswith(b"\x89PNG")
    assert catalogue.count("boards") > 5 and catalogue.count("queries") > 20


def test_a_second_build_has_nothing_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(folder):
        assert run([*COMMANDS[4], "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert {stage: one["action"] for stage, one in value["stages"].items()} == dict.fromkeys(
        ("embed", "align", "index", "tags", "graft", "evaluate"), "fresh"
    )
    figures = Workspace.open(folder / "shop").need("evaluate").manifest["figures"]
    assert {"see.category.accuracy", "tools.valid", "speed.first_token_s", "cost.tokens_per_item"} <= set(figures) & set(NAMED) & set(value)
    assert [row.key for group in grouped(figures) if group.name == "more" for row in group.rows] == [], "describe them in evaluation/figures.py"


def test_serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []

    def ask(app: Any, *_: Any, **__: Any) -> None:
        with TestClient(app) as web:
            answers.append(web.get("/healthz").json())
            answers.append(web.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "find me some birds"}]}).json())

    monkeypatch.setattr("pinhole.server.listen.run", ask)
    with inside(folder):
        assert run(COMMANDS[5]) == 0
    assert answers[0]["status"] == "ok" and answers[1]["choices"][0]["message"]["content"]


@pytest.mark.parametrize("command", COMMANDS[6:], ids=lambda command: command[0])
def test_what_else_it_says(folder: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("find me some birds\n"))
    with inside(folder):
        assert run(command) == 0
    shown = "".join(capsys.readouterr())
    if command[0] in ("search", "related"):
        assert "/" in shown and "nothing found" not in shown
    if command[0] == "report":
        page = (folder / "shop" / "report.html").read_text(encoding="utf-8")
        assert (
            "What kind of thing is it?" in page and "data:image/webp" in page and str(Workspace.open(folder / "shop").latest("align").key) not in page
        )
        assert "evaluate" in page and "seeing" in page
    if command[0] == "lessons":
        assert (folder / "shop" / "lessons.html").read_text(encoding="utf-8").count("<article") == 20
