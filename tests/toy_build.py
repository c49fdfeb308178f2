"""A build of three toy stages that a test can kill: run as ``python toy_build.py WORKSPACE [SECONDS_A_SHARD]``.

``shards`` writes eight files one by one and goes on where it was; ``sum`` reads them; ``report``
reads both. What a table holds is the text of ``tables/NAME``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from pinhole.builder import Build, Stage, build
from pinhole.workspace import Workspace, digest, write_atomic

PAUSE = 0.0
SHARDS = 8


def fingerprint(workspace: Workspace, table: str) -> str:
    path = workspace.tables / table
    return digest(path.read_text() if path.exists() else "")


def run_shards(job: Build) -> dict[str, Any]:
    made = 0
    for number in range(SHARDS):
        path = job.out / f"{number}.txt"
        if not path.exists():
            time.sleep(PAUSE)
            write_atomic(path, f"{number} {(job.workspace.tables / 'items').read_text()}\n" * 1000)
            made += 1
        job.progress(number + 1, SHARDS)
    return {"shards": SHARDS}


def run_sum(job: Build) -> dict[str, Any]:
    time.sleep(PAUSE)
    total = sum(len(path.read_text()) for path in sorted(job.inputs["shards"].path.glob("*.txt")))
    write_atomic(job.out / "sum.txt", f"{total} {job.workspace.config.align.steps}")
    return {"total": total}


def run_report(job: Build) -> dict[str, Any]:
    time.sleep(PAUSE)
    write_atomic(job.out / "report.txt", job.inputs["sum"].path.joinpath("sum.txt").read_text() + job.inputs["shards"].key)
    return {}


TOYS = {
    "shards": Stage("shards", (), ("vision",), ("items",), 1, run_shards),
    "sum": Stage("sum", ("shards",), ("align",), (), 1, run_sum),
    "report": Stage("report", ("shards", "sum"), ("evaluate",), ("boards",), 1, run_report),
}


def run(root: Path, *names: str, stages: dict[str, Stage] | None = None) -> dict[str, str]:
    """Build, and say for each stage what became of it: its reason, or ``fresh``."""
    outcomes = build(Workspace.open(root), stages or TOYS, fingerprint, names)
    return {one.stage: one.reason or one.action for one in outcomes}


if __name__ == "__main__":
    PAUSE = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    run(Path(sys.argv[1]))
