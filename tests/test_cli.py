"""The command line as a newcomer meets it: fast help, one clear line for a mistake, JSON and nothing else on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pinhole import cli, console, demo, doctor
from pinhole.cli import run
from pinhole.config import parse
from pinhole.errors import PinholeError
from pinhole.workspace import Workspace

COMMANDS = {
    *("demo", "doctor", "init", "ingest", "sample", "watch", "build", "graft", "evaluate", "lessons"),
    *("search", "related", "chat", "serve", "report", "bench", "export"),
}
HEAVY = {"torch", "transformers", "lancedb", "pyarrow", "faiss", "onnxruntime", "numpy", "rich", "fastapi", "PIL", "pydantic"}
ITEMS = '{"id": "a", "title": "Red boat"}\n{"id": "b", "title": "Blue car", "attributes": {"category": "cars"}}\n'


def pinhole(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pinhole.cli", *arguments], capture_output=True, text=True, check=False, **options)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace that is the current folder."""
    root = Workspace.create(tmp_path / "shop").root
    monkeypatch.chdir(root)
    return root


# -- help ---------------------------------------------------------------------------------------


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    probe = f"""
import sys, time
from pinhole import cli
code = cli.run(["--help"])
print(code, time.process_time(), sorted(set(sys.modules) & {HEAVY}))
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    code, took, heavy = done.stdout.splitlines()[-1].split(" ", 2)
    assert (code, heavy) == ("0", "[]")
    assert float(took) < 0.4  # of one core, so that a busy machine does not count


def test_every_command_is_there_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback} == COMMANDS
    for name in sorted(COMMANDS):
        assert run([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"Usage: pinhole {name}")
        if name not in ("doctor", "init"):
            assert "--workspace" in text
        if name not in ("chat", "serve"):
            assert "--json" in text


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["serch"], 2, ["no such command 'serch'", "search"]),
        (["search", "x", "-n", "0"], 2, ["-n", "pinhole search --help"]),
        (["search", "x", "--frobnicate"], 2, ["--frobnicate"]),
        (["init"], 2, ["missing argument 'DIR'"]),
        (["search"], 2, ["nothing to search for", "--like"]),
        (["ingest", "itemz", "x.jsonl"], 2, ["itemz", "items, boards, queries, events, judgements"]),
        (["ingest", "items", "absent.jsonl"], 2, ["absent.jsonl"]),
        (["ingest", "items", "absent.jsonl", "--map", "title"], 2, ["OURS=THEIRS"]),
        (["sample", "openclipärt"], 2, ["openclipart, tuxpaint, openmoji"]),
        (["build"], 1, ["the catalogue is empty", "pinhole ingest items"]),
        (["build", "grfat"], 2, ["no stage `grfat`", "graft"]),
        (["graft", "--base", "gpt-9"], 2, ["unknown base `gpt-9`", "hf:NAME"]),
        (["evaluate", "--lessons", "absent.jsonl"], 2, ["absent.jsonl"]),
        (["demo", "--quick", "--full"], 2, ["--quick and --full"]),
        (["search", "x", "-w", "nowhere"], 1, ["not a workspace", "nowhere", "pinhole init"]),
        (["serve", "--engine", "llama"], 2, ["no engine `llama`", "local, or vllm"]),
        (["serve", "--engine", "vllm"], 2, ["no server is named", "--engine-url http"]),
        (["chat", "--engine-url", "localhost"], 2, ["not an address of a server", "localhost"]),
        (["serve", "--engine", "local", "--engine-url", "http://a"], 2, ["has no address"]),
        (["serve", "--engine-url", "http://127.0.0.1:9"], 1, ["`graft` has not been built"]),
        (["bench", "nothing"], 2, ["no benchmark `nothing`"]),
        (["bench", "turn", "--quick", "--long"], 2, ["--quick and --long"]),
        (["bench", "--quick"], 2, ["for one benchmark", "pinhole bench turn --quick"]),
        (["bench", "align", "--quick"], 2, ["`align` has one size only"]),
        (["bench", "align", "--plot", "x.png"], 2, ["`align` draws no plot"]),
        (["bench", "turn", "--plot", "x.pdf"], 2, ["x.pdf", "name a .png"]),
        (["bench", "turn", "--plot", "nowhere/x.png"], 2, ["nowhere/x.png", "folder that exists"]),
        (["related", "nothing"], 1, ["pinhole"]),
        (["bench", "turn", "--n", "5"], 2, ["counts nothing"]),
        (["bench", "search", "--n", "0"], 2, ["--n"]),
    ],
)
def test_a_mistake_is_one_clear_line(shop: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: list[str]) -> None:
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("[align]\nsteps = 'many'\n", 2, "align.steps"),
        ("[align]\nstops = 3\n", 2, "align.stops"),
        ("[align\n", 2, "not valid TOML"),
        ("[vision]\nimage_encoder = 'pypi:nothing'\n", 2, "nothing"),
        ("[vision]\nimage_encoder = 'nothing'\n", 2, "nothing"),
        ("[graft]\nbase = 'pypi:nothing'\n", 2, "pypi:nothing"),
    ],
)
def test_wrong_settings(shop: Path, capsys: pytest.CaptureFixture[str], text: str, code: int, words: str) -> None:
    (shop / "items.jsonl").write_text(ITEMS)
    assert run(["ingest", "items", "items.jsonl"]) == 0
    capsys.readouterr()
    (shop / "pinhole.toml").write_text(text)
    assert run(["build", "graft"]) == code
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ") and words in err[-1]


def test_a_workspace_of_a_newer_pinhole(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "workspace.json").write_text('{"layout": 99}')
    assert run(["build"]) == 1
    assert "newer Pinhole" in capsys.readouterr().err


def test_unexpected_faults_are_one_line_unless_asked(monkeypatch: pytest.MonkeyPatch, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def boom(*_: Any) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr("pinhole.doctor.examine", boom)
    assert run(["doctor"]) == 1
    err = capsys.readouterr().err
    assert err == "error: ValueError: two. This is a fault of Pinhole; PINHOLE_DEBUG=1 shows where\n"
    monkeypatch.setenv("PINHOLE_DEBUG", "1")
    assert run(["doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_the_system_refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(["init", str(tmp_path / "file" / "shop")]) == 1
    assert capsys.readouterr().err.startswith("error: not a directory")


# -- results ------------------------------------------------------------------------------------


def test_json_is_one_object_and_nothing_else(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "items.jsonl").write_text(ITEMS)
    for arguments, key in [
        (["init", str(tmp_path / "other"), "--json"], "workspace"),
        (["ingest", "items", "items.jsonl", "--json"], "added"),
        (["doctor", "--json"], "findings"),
    ]:
        assert run(arguments) == 0
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and key in json.loads(out)


def test_ingest_says_what_was_refused(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "items.jsonl").write_text(ITEMS + '{"title": "no id"}\n')
    assert run(["ingest", "items", "items.jsonl"]) == 0
    err = capsys.readouterr().err
    assert "2 added" in err and "1 rejected" in err and "rejected: " in err


def test_the_workspace_comes_from_the_option_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        Workspace.create(tmp_path / name)
    monkeypatch.setenv("PINHOLE_WORKSPACE", str(tmp_path / "one"))
    assert run(["build"]) == 1 and str(tmp_path / "one") in capsys.readouterr().err
    assert run(["build", "-w", str(tmp_path / "two")]) == 1 and str(tmp_path / "two") in capsys.readouterr().err
    monkeypatch.delenv("PINHOLE_WORKSPACE")
    monkeypatch.chdir(tmp_path / "one")
    assert run(["build", "--json"]) == 1 and "the catalogue is empty" in capsys.readouterr().err


def test_doctor_lists_what_is_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["doctor", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert {"python", "cores", "memory", "disk here", "torch", "bfloat16", "apt-get", "npm", "chromium", "cache"} <= set(found)
    for name in ("apt-get", "npm", "chromium"):
        assert found[name]["state"] == "warning" and found[name]["fix"]
    assert any("→" in line for line in doctor.lines(doctor.examine()))


# -- interruptions ------------------------------------------------------------------------------


def test_ctrl_c_says_how_to_go_on(shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pinhole.tasks.build", stop)
    assert run(["build", "embed"]) == 130
    assert capsys.readouterr().err == "stopped. What was done is kept: run `pinhole build embed` again to go on.\n"


def test_a_closed_pipe_is_no_error(shop: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "pinhole.cli", "doctor", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 0 and err == b""


def test_a_port_in_use_is_said_before_anything_is_loaded(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command in ("serve", "demo"):
            assert run([command, "--port", str(port), "-w", str(shop / "new" if command == "demo" else shop)]) == 1
            err = capsys.readouterr().err
            assert err.startswith("error: ") and str(port) in err and "--port" in err
    assert not (shop / "new").exists()


# -- parts --------------------------------------------------------------------------------------


def test_errors_are_what_where_fix() -> None:
    assert str(PinholeError("no space left", where="/x", fix="free some")) == "no space left (/x). free some"


def test_columns_align_and_nothing_moves_the_cursor() -> None:
    assert console.columns([("a", 1.0), ("bbb", 12)]) == ["a    1.000", "bbb     12"]
    assert console.columns([]) == []
    assert console.clean("a\x1b[2Jb\r") == "a [2Jb "


def test_json_takes_numbers_of_other_libraries() -> None:
    import numpy as np

    assert console.plain({"a": np.float32(0.5), "b": (1, float("nan")), "c": Path("x"), 3: None}) == {"a": 0.5, "b": [1, None], "c": "x", "3": None}


@pytest.mark.parametrize("size", list(demo.SIZES))
def test_the_sizes_of_the_demo_are_settings_that_exist(size: demo.Size, tmp_path: Path) -> None:
    parse(demo.SIZES[size], where=size)
    made, new = demo.workspace(tmp_path / "demo", size)
    assert new and made.config == parse(demo.SIZES[size], where=size)


def test_a_demo_of_another_size_changes_only_its_own_settings(tmp_path: Path) -> None:
    opened, _ = demo.workspace(tmp_path / "demo", "quick")
    opened.change({"index.flat_below": 7})
    for size in ("full", "default", "quick"):
        opened, new = demo.workspace(tmp_path / "demo", size)
        expected = parse({**demo.SIZES[size], "index": {"flat_below": 7}}, where=size)
        assert not new and opened.config == expected


def test_the_demo_leaves_a_catalogue_of_your_own_alone(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "items.jsonl").write_text(ITEMS)
    assert run(["ingest", "items", "items.jsonl"]) == 0
    before = (shop / "pinhole.toml").read_text()
    capsys.readouterr()
    assert run(["demo", "--quick", "--no-serve", "-w", str(shop)]) == 2
    assert "a catalogue of its own" in capsys.readouterr().err
    assert (shop / "pinhole.toml").read_text() == before


def test_a_second_writer_hears_who_holds_the_workspace(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = "with Workspace.open('.').lock('pinhole build'): print('held', flush=True); sys.stdin.read()"
    script = f"import sys; from pinhole.workspace import Workspace\n{held}"
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=shop)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        (shop / "items.jsonl").write_text(ITEMS)
        assert run(["ingest", "items", "items.jsonl"]) == 1
        err = capsys.readouterr().err
        assert "another writer" in err and f"process {holder.pid}" in err
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert run(["ingest", "items", "items.jsonl"]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_to_a_full_disk(shop: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pinhole.cli", "doctor", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, env={**os.environ}
        )
    assert done.returncode == 1 and "no space left" in done.stderr.lower() and done.stderr.count("\n") == 1
