"""Four soft tokens a picture from the setting to the answer: embedded with a grid, trained, examined, served and chosen by request."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from built_shop import TINY, inside, tiny_base, write_files
from pinhole.benchmarks import tokens
from pinhole.cli import run
from pinhole.errors import ConfigError
from pinhole.evaluation.nested import EXAMS
from pinhole.workspace import Workspace, read_json, write_json
from test_vision import tiny


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("nested")
    write_files(folder)
    tiny.vit(folder / "see")
    tiny.bert(folder / "read")
    encoders = {"vision.image_encoder": f"hf:{folder / 'see'}", "vision.text_encoder": f"hf:{folder / 'read'}"}
    with pytest.MonkeyPatch.context() as patch, inside(folder):
        patch.setenv("PINHOLE_CACHE", str(folder / "cache"))
        assert run(["init", "shop"]) == 0
        workspace = Workspace.open("shop")
        workspace.change({**TINY, **encoders, "graft.base": tiny_base(folder / "base"), "vision.grid": 4, "graft.tokens_per_item": 4})
        renames = ["--map", "id=sku", "--map", "title=name", "--map", "image=photo", "--map", "category=department"]
        assert run(["ingest", "items", "products.csv", *renames, "-w", "shop"]) == 0
        assert run(["ingest", "boards", "collections.jsonl", "-w", "shop"]) == 0
        assert run(["ingest", "queries", "searches.csv", "--map", "text=term", "--map", "item=clicked", "-w", "shop"]) == 0
        assert run(["build", "-w", "shop"]) == 0
        yield Workspace.open("shop")


def test_each_number_of_tokens_is_examined(shop: Workspace) -> None:
    figures = shop.need("evaluate").manifest["figures"]
    assert {f"nested.1.{key}" for key in ("see.category.accuracy", "board.odd_one_out.accuracy")} <= set(figures)
    assert not any(key.startswith("nested.4.see") for key in figures)  # the most is what `see` and `board` are about
    assert figures["nested.1.first_token_s.n"] == figures["nested.4.first_token_s.n"] > 0
    assert figures["cost.tokens_per_item"] == 4
    assert read_json(shop.need("graft").path / "graft.json")["nested"] == [1, 4]


def test_a_request_chooses(shop: Workspace) -> None:
    from pinhole.server.app import create_app
    from pinhole.wiring import open_assistant, open_catalogue

    item = open_catalogue(shop).items(["id"])["id"][0].as_py()
    app = create_app(open_assistant(shop), open_catalogue(shop), config=shop.config)
    with TestClient(app) as client:

        def ask(**more: object) -> httpx.Response:
            content = [{"type": "item", "id": item}, {"type": "text", "text": "what is this?"}]
            return client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], **more})

        tokens = {count: ask(tokens_per_item=count, tool_choice="none").json()["usage"]["prompt_tokens"] for count in (1, 4)}
        assert tokens[4] == tokens[1] + 3 == ask(tool_choice="none").json()["usage"]["prompt_tokens"]
        refused = ask(tokens_per_item=16)
        assert refused.status_code == 400 and "reads 1 or 4" in json.dumps(refused.json())
        assert ask(tokens_per_item="four").status_code == 400


def test_a_grid_too_coarse_is_said_at_once(shop: Workspace) -> None:
    with pytest.raises(ConfigError, match="do not go together"):
        shop.change({"graft.tokens_per_item": 16, "vision.grid": 2})


def test_the_benchmark_asks_every_side_the_same(shop: Workspace, tmp_path: Path) -> None:
    done: list[int] = []
    figures = tokens.run(shop, lambda now, total: done.append(now), steps=1, n=3)
    assert done == [1, 2, 3]
    for side, each in {"alone": 1, "k1": 1, "k4": 4, "k16": 16, "patches": 16}.items():
        assert figures[f"tokens.{side}.per_item"] == each and figures[f"tokens.{side}.first_token_s"] > 0
        assert figures[f"tokens.{side}.see.category.accuracy.n"] == 3
    tokens.plot(figures | {f"tokens.{side}.{key}": 0.5 for side in ("alone", "k1", "k4", "k16", "patches") for key in EXAMS}, tmp_path / "tokens.png")
    assert (tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_shows_the_benchmark_of_its_own_space(shop: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "run", functools.partial(tokens.run, steps=1, n=3))
    assert run(["bench", "tokens", "-w", "shop"]) == run(["report", "-w", "shop"]) == 0
    page, kept = (shop.root / "report.html").read_text(), shop.root / "benchmarks" / "tokens.json"
    section = page[page.index("More tokens a picture") : page.index("How training went")]
    assert section.count("<svg") == 2 and "16 tokens" in section  # this shop's patches are 16
    figures = read_json(kept)["figures"]
    assert section.count("<rect") == sum(f"tokens.patches.{key}" in figures for key in EXAMS) > 0
    assert f"{1000 * figures['tokens.patches.first_token_s']:.0f} ms" in section
    write_json(kept, {"figures": figures, "align": "another"})
    assert run(["report", "-w", "shop"]) == 0
    page = (shop.root / "report.html").read_text()
    assert page[page.index("More tokens a picture") : page.index("How training went")].count("<svg") == 1
