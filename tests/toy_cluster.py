"""What the tests' clusters do; imported on their nodes, so it is light."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pinhole.cluster import Do
from pinhole.errors import BadImage
from pinhole.retrieval.cluster_teacher import scoring
from pinhole.vision.cluster import encoding


def slow_encoding(setup: dict[str, Any]) -> Do:
    """Encoding that takes its time and notes on which node it is at work, so that a kill finds it there."""
    do = encoding(setup)

    def slowly(job: dict[str, Any]) -> Any:
        Path(setup["shards"]).parent.joinpath(f"at-{os.getppid()}-{job['name']}").touch()
        time.sleep(0.3)
        return do(job)

    return slowly


def slow_scoring(setup: dict[str, Any]) -> Do:
    """Scoring that takes its time and notes on which node it is at work."""
    do = scoring(setup)

    def slowly(job: dict[str, Any]) -> Any:
        Path(setup["notes"]).joinpath(f"at-{os.getppid()}-{job['at']}").touch()
        time.sleep(0.2)
        return do(job)

    return slowly


def counting(setup: dict[str, Any]) -> Do:
    """Adds; how often it was made and how often asked is in the answer. What it refuses is an error of ours."""
    state = {"asked": 0}

    def add(job: dict[str, Any]) -> Any:
        if job["n"] == setup["refuse"]:
            raise BadImage("no such number", where=str(job["n"]), fix="take another")
        state["asked"] += 1
        return {"sum": job["n"] + setup["add"], "asked": state["asked"], "process": os.getpid()}

    return add
