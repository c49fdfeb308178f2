"""docs/scale-out.md: its commands and its Python are run on a cluster, and what it says is refused is refused."""

from __future__ import annotations

import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest

from built_shop import inside
from pinhole import cluster
from pinhole.benchmarks import memory
from pinhole.cli import run
from pinhole.workspace import Workspace
from toy_workspace import make_models, make_source, make_workspace

PAGE = (Path(__file__).parents[2] / "docs" / "scale-out.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line.removeprefix("$ pinhole ")) for line in PAGE.splitlines() if line.startswith("$ pinhole ")]
ADDRESS = "10.0.0.1:6379"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scale")
    make_workspace(made / "shop", make_source(made / "source", 2), make_models(made / "models"))
    return made


def test_the_commands_and_the_python(nodes: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builds = [command for command in COMMANDS if command[0] == "build"]
    assert [command[1] for command in builds] == ["embed", "align"] and f"ray:{ADDRESS}" in builds[0]
    with inside(folder):
        for command in builds:
            assert run([*(part.replace(ADDRESS, nodes.address) for part in command), "--json"]) == 0, capsys.readouterr().err
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 2 and '"embed": {"action": "built"' in printed[0] and '"embed": {"action": "fresh"' in printed[1]
        (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
        exec(compile(code.replace(ADDRESS, nodes.address).replace("yourpackage", "toy_cluster"), "docs/scale-out.md", "exec"), {})
    assert sorted(capsys.readouterr().out.split()) == ["101", "102"]
    assert Workspace.open(folder / "shop").need("embed").manifest["figures"]["rejected"] == 1


def test_what_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(on: str) -> tuple[int, str]:
        return run(["build", "-w", str(folder / "shop"), "--on", on]), capsys.readouterr().err

    assert refused("spark") == (2, "error: nothing to build on is called `spark` (--on). ray (this machine, or RAY_ADDRESS), or ray:HOST:PORT\n")
    with monkeypatch.context() as patch:
        patch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
        assert refused("ray") == (1, 'error: Ray is not installed (--on). pip install "pinhole-vlm[ray]"\n')
    code, said = refused("ray:nowhere")
    assert (code, "`nowhere` is no address" in said or "not installed" in said) in ((2, True), (1, True))
    assert run(["init", "s3://bucket/shop"]) == 1 and "object-store workspaces are not built yet" in capsys.readouterr().err


def test_nobody_there_is_said_soon(nodes: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        port = held.getsockname()[1]
        Workspace.open(folder / "shop").change({"vision.max_pixels": 99_000_000})
        assert run(["build", "embed", "-w", str(folder / "shop"), "--on", f"ray:127.0.0.1:{port}"]) == 1
    assert f"no cluster can be reached: Connection refused (127.0.0.1:{port}). see that `ray status`" in capsys.readouterr().err
    Workspace.open(folder / "shop").change({"vision.max_pixels": 100_000_000})


@pytest.mark.slow
def test_the_benchmark_of_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path))
    monkeypatch.setattr(memory, "STAGES", ("embed",))
    assert ["bench", "memory", "--n", "100000"] in COMMANDS and ["bench", "embed", "-w", "shop"] in COMMANDS
    seen: list[tuple[int, int]] = []
    figures = memory.run(None, lambda done, total: seen.append((done, total)), 200)
    assert set(figures) == {"memory.items", "memory.embed.gb", "memory.embed.tenth_gb", "memory.embed.ratio"}
    assert 0.05 < figures["memory.embed.gb"] < 3 and seen == [(1, 2), (2, 2)]
