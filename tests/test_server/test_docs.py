"""What docs/serving.md says is run: its Python, its curl lines, and the names in its tables."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pinhole.server.app import create_app, running
from toy_server import Scripted

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
WRITTEN = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def address(catalogue: Any) -> Iterator[str]:
    with running(create_app(Scripted(), catalogue)) as address:
        yield address


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block: str, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block.replace(WRITTEN, address), "serving.md", "exec"), {})
    assert "fruit%2Flemon" in (out := capsys.readouterr().out) or "fruit/lemon" in out


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
@pytest.mark.parametrize("line", [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")])
def test_curl(line: str, address: str, tmp_path: Path) -> None:
    words = shlex.split(line.removeprefix("$ ").replace(WRITTEN, address))
    done = subprocess.run([words[0], "--fail", "--max-time", "20", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout or next(tmp_path.iterdir()).read_bytes()[:4] == b"RIFF"


def test_every_path_is_described(catalogue: Any) -> None:
    paths = {getattr(route, "path", "") for route in create_app(Scripted(), catalogue).routes}
    assert paths == {
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{model_id:path}",
        "/items/{rest:path}",
        "/v1/pinhole/about",
        "/healthz",
        "/",
        "/web/{name}",
    }
    for path in ("/v1/chat/completions", "/v1/models", "/items/ID/image", "/v1/pinhole/about", "/healthz"):
        assert path in PAGE


def test_the_flags_and_settings_of_vllm_are_those_there_are() -> None:
    from pinhole.config import EngineConfig
    from pinhole.engines.upstream import KEY
    from pinhole.graft.export import FLAGS

    assert FLAGS in PAGE and KEY in PAGE
    rows = re.search(r"\| `\[engine\]` \|.*?\n\n", PAGE, re.DOTALL)
    assert rows and set(re.findall(r"`([a-z_]+)`", rows[0].split("|---|---|")[1].replace("`local` or `vllm`", ""))) == set(EngineConfig.model_fields)


@pytest.mark.parametrize("command", re.findall(r"^pinhole (?:export|serve --engine|chat --engine).*$", PAGE, re.MULTILINE))
def test_commands_on_vllm_are_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As far as a workspace without a graft lets them come."""
    from pinhole.cli import run
    from pinhole.workspace import Workspace

    monkeypatch.chdir(Workspace.create(tmp_path / "shop").root)
    monkeypatch.setattr("pinhole.wiring.check_place", lambda *_: ("127.0.0.1", 0))
    assert run(shlex.split(command, comments=True)[1:]) == 1
    assert "`graft` has not been built" in capsys.readouterr().err
