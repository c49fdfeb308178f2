"""A built shop served through `--engine vllm`: items, tools and streaming by the whole way, on a server without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from built_shop import PENGUIN, built_shop, inside
from pinhole.benchmarks._fixed import FixedUpstream, reply
from pinhole.cli import run
from pinhole.graft.base import hugging_face
from pinhole.graft.export import serving_name
from pinhole.workspace import Workspace
from toy_vllm import served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_shop(tmp_path_factory)


def upstream(folder: Path, model: str, says: str) -> FixedUpstream:
    tokenizer = hugging_face().AutoTokenizer.from_pretrained(Workspace.open(folder / "shop").need("graft").path)
    return FixedUpstream(tokenizer, model, [*tokenizer(says)["input_ids"], tokenizer.eos_token_id])


def test_serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []

    def ask(app: Any, *_: Any, **__: Any) -> None:
        item = {"role": "user", "content": [{"type": "item", "id": PENGUIN}, {"type": "text", "text": "more like this <|im_end|>"}]}
        with TestClient(app) as web:
            answers.append(web.post("/v1/chat/completions", json={"messages": [item]}).json())

    monkeypatch.setattr("pinhole.server.listen.run", ask)
    server = upstream(folder, serving_name(Workspace.open(folder / "shop").need("graft").key), '{"tool":"related","item":"#1"}')
    with served(server) as (url,), inside(folder):
        assert run(["serve", "-w", "shop", "--engine-url", url]) == 0
    told = answers[0]["choices"][0]["message"]["pinhole"]
    assert [(call["name"], call["arguments"]) for call in told["calls"]] == [("related", {"item": "#1"})]
    assert told["items"] and "(item:" in answers[0]["choices"][0]["message"]["content"]
    parts = [part for message in server.asked[0]["messages"] for part in message["content"]]
    assert "prompt_embeds" in [part["type"] for part in parts] and all("<|im_end|>" not in part.get("text", "") for part in parts)


def test_clients_do_not_learn_where_the_servers_are(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Any] = []
    server = upstream(folder, serving_name(Workspace.open(folder / "shop").need("graft").key), "hi")

    def ask(app: Any, *_: Any, **__: Any) -> None:
        monkeypatch.setattr(FixedUpstream, "stream", lambda self, asked, send: reply(send, {"error": {"message": "no"}}, 500))
        with TestClient(app) as web:
            answers.append(web.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]}))

    monkeypatch.setattr("pinhole.server.listen.run", ask)
    with served(server) as (url,), inside(folder):
        assert run(["serve", "-w", "shop", "--engine-url", url]) == 0
    assert answers[0].status_code == 503 and answers[0].headers["retry-after"]
    assert answers[0].json()["error"]["message"] == "the engine's server did not answer (500): no" and url in caplog.text


def test_the_wrong_model_is_said_before_anybody_is_served(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(upstream(folder, "pinhole-of-last-week", "hi")) as (url,), inside(folder):
        assert run(["serve", "-w", "shop", "--port", "0", "--engine", "vllm", "--engine-url", url]) == 2
        assert run(["serve", "-w", "shop", "--port", "0", "--engine", "vllm", "--engine-url", "http://127.0.0.1:9"]) == 1
    said = capsys.readouterr().err
    assert "serves pinhole-of-last-week, this workspace's graft is pinhole-" in said and "cannot be reached" in said
