"""An ingest killed at random instants and run again leaves the tables of an undisturbed one."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from pinhole.catalogue.store import Catalogue

ROWS, KILLS = 700, 10
# Imports once, then forks a process for each ingest that it is told to run: lines are a tables folder in, a process id out, then how it ended.
NURSERY = """
import os, sys, lancedb
from pinhole.catalogue.ingest import ingest
from pinhole.catalogue.store import Catalogue
for line in sys.stdin:
    process = os.fork()
    if not process:
        catalogue = Catalogue(line.strip())
        ingest(catalogue, "items", sys.argv[1] + "/items.jsonl", rows=60)
        ingest(catalogue, "boards", sys.argv[1] + "/boards.jsonl", rows=20)
        os._exit(0)
    print(process, flush=True)
    print(os.waitpid(process, 0)[1], flush=True)
"""


class Nursery:
    def __init__(self, source):
        command = [sys.executable, "-W", "ignore", "-c", NURSERY, str(source)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, tables):
        self.process.stdin.write(f"{tables}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def ended(self):
        return int(self.process.stdout.readline())


@pytest.mark.slow
def test_ten_kills_and_a_rerun(tmp_path):
    with open(tmp_path / "items.jsonl", "w") as file:
        for k in range(ROWS):
            row = {"id": f"i{k % 650:05d}", "title": f"Thing {k}", "colour": "red", "created_at": "soon" if k % 97 == 5 else "2026-01-01"}
            file.write(json.dumps(row) + "\n")  # the last fifty replace earlier ones, some are refused
    with open(tmp_path / "boards.jsonl", "w") as file:
        for k in range(60):
            file.write(json.dumps({"id": f"b{k}", "items": [f"i{j:05d}" for j in range(k, k + 30)]}) + "\n")
    nursery = Nursery(tmp_path)
    nursery.start(tmp_path / "quiet")
    begun = time.perf_counter()
    assert nursery.ended() == 0
    took, draw, ends = time.perf_counter() - begun, random.Random(), []
    for _ in range(KILLS):
        process = nursery.start(tmp_path / "killed")
        time.sleep(draw.uniform(0, took / 2))  # what was written before makes a rerun shorter
        with contextlib.suppress(ProcessLookupError):  # it was done already
            os.kill(process, signal.SIGKILL)
        ends.append(nursery.ended())
        held = Catalogue(tmp_path / "killed")
        ids = held.items(["id"])["id"].to_pylist()
        assert len(set(ids)) == len(ids) == held.count("items")
    assert ends.count(signal.SIGKILL) >= 3
    nursery.start(tmp_path / "killed")
    assert nursery.ended() == 0
    nursery.process.stdin.close()
    nursery.process.wait()
    quiet, killed = Catalogue(tmp_path / "quiet"), Catalogue(tmp_path / "killed")
    for kind in ("items", "boards", "rejected"):
        assert quiet.count(kind) == killed.count(kind) > 0
        assert quiet.fingerprint(kind) == killed.fingerprint(kind), kind
    assert quiet.items().equals(killed.items()) and quiet.rejected().equals(killed.rejected())
    assert killed.text_search("thing", 3)
