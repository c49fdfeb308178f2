"""A build runs what is stale and says why, resumes, and never leaves half an artefact."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import toy_build
from pinhole.builder import Build, Stage, build, closure, why
from pinhole.errors import DiskFull, Locked, UnknownName
from pinhole.workspace import Workspace
from toy_build import TOYS, fingerprint, run

SCRIPT = str(Path(toy_build.__file__))


@pytest.fixture
def shop(make_workspace: Any) -> Path:
    workspace = make_workspace(align={"steps": 600})
    (workspace.tables / "items").write_text("one")
    return workspace.root


def contents(root: Path) -> dict[str, Any]:
    """Every file of every artefact, less what a run cost."""
    files: dict[str, Any] = {}
    for path in sorted((root / "artefacts").rglob("*")):
        if path.is_file():
            name = str(path.relative_to(root))
            if path.name == "manifest.json":
                manifest = json.loads(path.read_text())
                files[name] = {key: value for key, value in manifest.items() if key not in ("seconds", "peak_memory_gb", "reason")}
            else:
                files[name] = path.read_bytes()
    return files


def test_only_what_is_stale_runs_and_says_why(shop: Path) -> None:
    assert run(shop) == {"shards": "first time", "sum": "first time", "report": "first time"}
    assert run(shop) == {"shards": "fresh", "sum": "fresh", "report": "fresh"}

    Workspace.open(shop).change({"align.steps": 77})
    assert run(shop) == {"shards": "fresh", "sum": "[align] steps changed (600 → 77)", "report": "sum was rebuilt"}

    (shop / "tables" / "items").write_text("two")
    assert run(shop) == {"shards": "items changed", "sum": "shards was rebuilt", "report": "shards was rebuilt, sum was rebuilt"}

    (shop / "tables" / "boards").write_text("a board")
    assert run(shop) == {"shards": "fresh", "sum": "fresh", "report": "boards changed"}

    newer = {**TOYS, "sum": dataclasses.replace(TOYS["sum"], version=2)}
    assert run(shop, stages=newer)["sum"] == "the code of this stage changed"


def test_a_setting_without_effect_rebuilds_nothing(shop: Path) -> None:
    run(shop)
    Workspace.open(shop).change({"vision.workers": 1})
    assert set(run(shop).values()) == {"fresh"}


def test_a_named_stage_brings_what_it_needs(shop: Path) -> None:
    assert run(shop, "sum") == {"shards": "first time", "sum": "first time"}
    assert run(shop) == {"shards": "fresh", "sum": "fresh", "report": "first time"}
    with pytest.raises(UnknownName, match="no stage `grfat`.*shards, sum, report"):
        closure(["grfat"], TOYS)


def test_going_back_to_earlier_settings_reuses_what_is_there(shop: Path) -> None:
    run(shop)
    before = Workspace.open(shop).need("sum")
    Workspace.open(shop).change({"align.steps": 5})
    run(shop)
    Workspace.open(shop).change({"align.steps": 600})
    assert run(shop) == {"shards": "fresh", "sum": "an earlier artefact fits again", "report": "an earlier artefact fits again"}
    assert Workspace.open(shop).need("sum") == before


def test_older_artefacts_and_leftovers_are_removed(shop: Path) -> None:
    for steps in (1, 2, 3, 4):
        Workspace.open(shop).change({"align.steps": steps})
        (shop / "artefacts" / "sum" / "abandoned.part").mkdir(parents=True)
        run(shop)
    folder = shop / "artefacts" / "sum"
    kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert len(kept) == 2 and not any("." in name for name in kept)
    texts = {(folder / name / "sum.txt").read_text().split()[1] for name in kept}
    assert texts == {"3", "4"}


def test_a_pointer_half_renamed_leaves_nothing(shop: Path) -> None:
    """Killed between sealing an artefact and pointing to it: the next run takes it as it is, and clears up."""
    run(shop)
    expected = contents(shop)
    folder = shop / "artefacts" / "shards"
    (folder / "LATEST").rename(folder / ".LATEST.4711")
    assert run(shop) == {"shards": "an earlier artefact fits again", "sum": "fresh", "report": "fresh"}
    assert contents(shop) == expected


def test_what_another_artefact_in_use_was_made_from_stays(shop: Path) -> None:
    """``report`` is not rebuilt while ``shards`` changes three times: what it stands on is still there."""
    run(shop)
    first = Workspace.open(shop).need("shards")
    for text in ("two", "three", "four"):
        (shop / "tables" / "items").write_text(text)
        run(shop, "shards")
    assert first.path.is_dir() and len([path for path in first.path.parent.iterdir() if path.is_dir()]) == 3
    run(shop)
    (shop / "tables" / "items").write_text("five")
    run(shop, "shards")
    assert not first.path.exists()


def test_the_manifest_says_what_went_in_and_what_it_cost(shop: Path) -> None:
    run(shop)
    manifest = Workspace.open(shop).need("sum").manifest
    assert manifest["recipe"]["inputs"] == {"shards": Workspace.open(shop).need("shards").key}
    assert manifest["recipe"]["settings"]["align.steps"] == 600
    assert manifest["figures"]["total"] > 0 and manifest["seconds"] >= 0 and manifest["peak_memory_gb"] > 0


def test_a_failing_stage_keeps_the_old_artefact_and_is_resumed(shop: Path) -> None:
    run(shop)
    old = Workspace.open(shop).need("shards")
    (shop / "tables" / "items").write_text("two")

    def fails(job: Build) -> dict[str, Any]:
        (job.out / "0.txt").write_text("half the work")
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        run(shop, stages={**TOYS, "shards": dataclasses.replace(TOYS["shards"], run=fails)})
    assert Workspace.open(shop).need("shards") == old
    assert run(shop)["shards"] == "resuming an interrupted run"
    assert (Workspace.open(shop).need("shards").path / "0.txt").read_text() == "half the work"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("lance error: LanceError(IO): No space left on device (os error 28)"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_a_full_disk_is_one_clear_error(shop: Path, error: Exception) -> None:
    def full(job: Build) -> dict[str, Any]:
        raise error

    with pytest.raises(DiskFull, match="free some and run the same command again"):
        run(shop, stages={"full": Stage("full", (), (), (), 1, full)})


def test_the_progress_of_a_stage_reaches_its_bar(shop: Path) -> None:
    import contextlib

    seen: list[tuple[str, int, int]] = []

    @contextlib.contextmanager
    def track(name: str) -> Iterator[Any]:
        yield lambda done, total: seen.append((name, done, total))

    build(Workspace.open(shop), TOYS, fingerprint, ["shards"], track=track)
    assert seen == [("shards", number, 8) for number in range(1, 9)]


def test_why_names_every_difference() -> None:
    old = {"version": 1, "inputs": {"embed": "a"}, "settings": {"align.steps": 1, "align.gone": 2}, "tables": {"items": "x"}, "also": {"tools": "1"}}
    new = {"version": 2, "inputs": {"embed": "b"}, "settings": {"align.steps": 2, "align.new": 3}, "tables": {"items": "y"}, "also": {"tools": "2"}}
    assert why(old, new) == (
        "items changed, [align] steps changed (1 → 2), [align] new is new, tools changed, embed was rebuilt, the code of this stage changed"
    )
    assert why(old, {**old, "settings": {"align.steps": 1}}) == "its settings changed"
    assert why({"version": 1}, old).startswith("items changed")  # a manifest of an older Pinhole


# -- processes ----------------------------------------------------------------------------------


def start(root: Path, pause: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, SCRIPT, str(root), str(pause)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_one_writer_at_a_time(shop: Path) -> None:
    process = start(shop, 0.5)
    try:
        deadline = time.monotonic() + 30
        while not list((shop / "artefacts").glob("shards/*.part")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        with pytest.raises(Locked, match=f"pinhole build.*process {process.pid}"):
            run(shop)
    finally:
        process.kill()
        process.communicate()
    assert run(shop)["shards"] in ("resuming an interrupted run", "first time")


def test_twenty_kills_leave_what_an_undisturbed_run_leaves(shop: Path, tmp_path: Path) -> None:
    """kill -9 at random instants of a build; whatever is there then, a rerun ends with the same artefacts."""
    calm = Workspace.create(tmp_path / "calm", Workspace.open(shop).config).root
    for root in (calm, shop):
        (root / "tables" / "items").write_text("one")
    run(calm)
    expected = contents(calm)

    instants, kills, rounds = random.Random(7), 0, 0
    while kills < 20:
        process = start(shop, 0.03)
        try:
            process.wait(timeout=instants.uniform(0.1, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        for stage in TOYS:  # what is in use is whole, at any instant
            latest = Workspace.open(shop).latest(stage)
            if latest is not None:
                names = {str(path.relative_to(shop)) for path in latest.path.iterdir()}
                assert names == {name for name in expected if name.startswith(f"artefacts/{stage}/{latest.key}/")}
        if process.returncode == 0:
            assert contents(shop) == expected
            rounds += 1
            os.rename(shop / "artefacts", tmp_path / f"round-{rounds}")
    run(shop)
    assert contents(shop) == expected
