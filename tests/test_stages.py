"""The whole way on a toy: every stage really runs, every command works on what it built, and 20 kills change nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pinhole.catalogue.store import Catalogue
from pinhole.cli import run
from pinhole.stages import STAGES, build
from pinhole.workspace import Workspace
from toy_workspace import make_models, make_source, make_workspace


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """Pictures with their tables' sources, and checkpoints of tiny models; a cache of their own."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINHOLE_CACHE", str(folder / "cache"))
        yield make_source(folder / "source"), make_models(folder / "models")


@pytest.fixture(scope="module")
def shop(parts: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with every stage built."""
    workspace = make_workspace(tmp_path_factory.mktemp("toy") / "shop", *parts)
    outcomes = build(workspace)
    assert [(one.stage, one.reason) for one in outcomes] == [(name, "first time") for name in STAGES]
    return workspace.root


def test_stages_only_need_stages_before_them() -> None:
    before: set[str] = set()
    for name, stage in STAGES.items():
        assert stage.name == name and set(stage.needs) <= before
        before.add(name)


def test_nothing_runs_twice_and_what_changed_is_named(shop: Path) -> None:
    assert {one.action for one in build(Workspace.open(shop))} == {"fresh"}
    log: list[str] = []
    before = Workspace.open(shop).config.evaluate.n
    Workspace.open(shop).change({"evaluate.n": 3})
    try:
        outcomes = {one.stage: one.reason for one in build(Workspace.open(shop), log=log.append)}
    finally:
        Workspace.open(shop).change({"evaluate.n": before})
    assert outcomes == {**dict.fromkeys(STAGES, ""), "evaluate": "[evaluate] n changed (4 → 3)"}
    assert log[0] == "evaluate: [evaluate] n changed (4 → 3)"
    assert [one.action for one in build(Workspace.open(shop))][-1] == "reused"


def test_a_new_item_repeats_no_exam(shop: Path, tmp_path: Path) -> None:
    """What is guessed is learned again with every change; that alone makes nothing else anew."""
    shutil.copytree(shop, tmp_path / "shop")
    copied = Workspace.open(tmp_path / "shop")
    Catalogue(copied.tables).upsert("items", pa.table({"id": ["new"], "title": ["a pink ring"], "category": ["rings"]}))
    actions = {one.stage: one.action for one in build(copied)}
    assert actions == {"embed": "built", "align": "kept", "index": "extended", "tags": "built", "graft": "kept", "evaluate": "kept"}


def test_what_could_not_be_read_is_noted(shop: Path) -> None:
    assert [(row["id"], "image" in row["reason"]) for row in Catalogue(shop / "tables").rejected().to_pylist()] == [("broken", True)]


# -- commands -----------------------------------------------------------------------------------


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run([*arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_build_ends_with_the_figures(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "build", "-w", str(shop))
    assert list(found["stages"]) == list(STAGES)
    assert all(stage["action"] == "fresh" and stage["seconds"] > 0 and stage["peak_memory_gb"] > 0 for stage in found["stages"].values())
    figures = answer(capsys, "evaluate", "-w", str(shop))
    assert {key: found[key] for key in figures} == figures
    wanted = {"see.category.accuracy", "see.match.accuracy.n", "see.pick.accuracy.n", "tools.valid", "tools.name", "tools.arguments", "tools.unseen"}
    wanted |= {"search.text_to_image.recall@10.tuned", "speed.embed.fraction", "speed.first_token_s", "speed.tool_call_s", "cost.tokens_per_item"}
    wanted |= {"speed.train.samples_per_s", "speed.first_token_over_forward"}
    assert wanted <= set(figures), wanted - set(figures)


def test_search_and_related(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("-w", str(shop))
    assert [hit["id"] for hit in answer(capsys, "related", "circle-red-0", "-n", "3", *where)["hits"]] != ["circle-red-0"]
    assert len(answer(capsys, "search", "red circle", "-n", "5", *where)["hits"]) == 5
    only = answer(capsys, "search", "--where", "category = 'rings'", "-n", "100", *where)["hits"]
    assert {hit["id"].split("-")[0] for hit in only} == {"ring"}
    picture = next(path for path in shop.parent.parent.rglob("source/circle-red-0.png"))
    assert len(answer(capsys, "search", "--like", str(picture), "--unlike", "ring-blue-1", *where)["hits"]) == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "--like", "circle-red-99"], "circle-red-"),
        (["search", "--like", __file__], "not an image"),
        (["search", "x", "--where", "drop table items"], "filter"),
        (["search", "x", "--where", "category ="], "filter"),
        (["related", "circle-red-99"], "circle-red-"),
    ],
)
def test_what_cannot_be_found_is_one_line(shop: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert run([*arguments, "-w", str(shop)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("\n") == 1


def test_report_and_lessons(shop: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert Path(answer(capsys, "report", "-w", str(shop))["report"]).read_text().lstrip().lower().startswith("<!doctype html")
    assert len(answer(capsys, "lessons", "--show", "4", "-w", str(shop))["lessons"]) == 4
    expect = {"name": "search", "arguments": {"text": "red circles"}}
    tool = {"name": "search", "description": "find", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
    (tmp_path / "mine.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "red circles"}], "tools": [tool], "expect": expect}))
    assert answer(capsys, "evaluate", "--lessons", str(tmp_path / "mine.jsonl"), "-w", str(shop))["lessons.right.n"] == 1
    (tmp_path / "mine.jsonl").write_text('{"messages": []}')
    assert run(["evaluate", "--lessons", str(tmp_path / "mine.jsonl"), "-w", str(shop)]) == 2
    assert "mine.jsonl:1" in capsys.readouterr().err


def test_serve_answers_and_ctrl_c_ends_it(shop: Path) -> None:
    command = [sys.executable, "-m", "pinhole.cli", "serve", "--port", "0", "-w", str(shop)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        address = ""
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                address = found[0]
                break
        assert address, "it never said where it serves"
        with urllib.request.urlopen(f"{address}/healthz", timeout=60) as response:
            assert response.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0, rest


# -- kills --------------------------------------------------------------------------------------

# Imports once, then forks a process for each build that it is told to run: lines are a workspace in, a process id out, then how it ended.
NURSERY = """
import os, sys
import lancedb, peft, sklearn.linear_model, torch, transformers
import pinhole.evaluation.exams, pinhole.evaluation.search_exams, pinhole.graft.train, pinhole.retrieval.index, pinhole.vision.precompute
from pinhole.stages import build
from pinhole.workspace import Workspace
torch.set_num_threads(1)
for line in sys.stdin:
    process = os.fork()
    if not process:
        build(Workspace.open(line.strip()))
        os._exit(0)
    print(process, flush=True)
    print(os.waitpid(process, 0)[1], flush=True)
"""


class Nursery:
    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", "-c", NURSERY]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def start(self, root: Path) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{root}\n")
        self.process.stdin.flush()
        return self._heard()

    def ended(self) -> int:
        return self._heard()

    def _heard(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def artefacts(root: Path) -> dict[str, Any]:
    """What each stage's latest artefact holds, less what was timed."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        latest = Workspace.open(root).need(stage)
        found[stage] = latest.key
        for path in sorted(path for path in latest.path.rglob("*") if path.is_file()):
            found[f"{stage}/{path.relative_to(latest.path)}"] = without_times(path)
    return found


def without_times(path: Path) -> Any:
    if path.suffix == ".json":
        return scrubbed(json.loads(path.read_text()))
    if path.suffix == ".npy":
        return np.load(path).tobytes()
    return path.read_bytes()


def scrubbed(value: Any) -> Any:
    # `said`: a random model's free text hangs on the rounding of sums, and so on which conversations were stepped together;
    # `cost.turn`: and so do its length, and whether what two of them share was cached when the second began.
    timed = re.compile(r"seconds|_s$|speed|engine\.|cost\.turn|peak|planned_at|reason|forwarded|reused|repeated|_per_|^said$")
    if isinstance(value, dict):
        return {key: scrubbed(one) for key, one in value.items() if not timed.search(key)}
    return [scrubbed(one) for one in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_twenty_kills_and_a_rerun(parts: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    calm, killed = (make_workspace(tmp_path / name, *parts).root for name in ("calm", "killed"))
    nursery = Nursery()
    nursery.start(calm)
    begun = time.perf_counter()
    assert nursery.ended() == 0
    took, instants, kills = time.perf_counter() - begun, random.Random(11), 0
    expected = artefacts(calm)
    while kills < 20:
        process = nursery.start(killed)
        # A fraction of the whole way each time: a rerun goes on where the last one was stopped.
        time.sleep(instants.uniform(0, took / 5))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        if nursery.ended() == signal.SIGKILL:
            kills += 1
        else:  # it was done: take one stage's work away and go on
            assert artefacts(killed) == expected
            stage = instants.choice(list(STAGES))
            latest = Workspace.open(killed).need(stage)
            os.rename(latest.path, tmp_path / f"aside-{kills}-{stage}-{time.monotonic_ns()}")
    nursery.start(killed)
    assert nursery.ended() == 0
    assert nursery.process.stdin is not None
    nursery.process.stdin.close()
    nursery.process.wait()
    got = artefacts(killed)
    assert got.keys() == expected.keys()
    assert [name for name in expected if got[name] != expected[name]] == []
