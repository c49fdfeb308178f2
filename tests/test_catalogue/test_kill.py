"""An ingest killed at random instants and run again leaves the tables of an undisturbed one."""

import json
import random
import subprocess
import sys
import time

import pytest

from pinhole.catalogue.store import Catalogue

ROWS, KILLS = 1200, 10
CHILD = """
import sys
from pinhole.catalogue.ingest import ingest
from pinhole.catalogue.store import Catalogue
print("ready", flush=True)
sys.stdin.readline()
catalogue = Catalogue(sys.argv[1])
ingest(catalogue, "items", sys.argv[2] + "/items.jsonl", rows=60)
ingest(catalogue, "boards", sys.argv[2] + "/boards.jsonl", rows=20)
print("done", flush=True)
"""


def child(tables, source):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(tables), str(source)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(process):
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


def finish(process):
    go(process)
    assert process.stdout.readline() == "done\n" and process.wait() == 0


@pytest.mark.slow
def test_ten_kills_and_a_rerun(tmp_path):
    with open(tmp_path / "items.jsonl", "w") as file:
        for k in range(ROWS):
            row = {"id": f"i{k % 1100:05d}", "title": f"Thing {k}", "colour": "red", "created_at": "soon" if k % 97 == 5 else "2026-01-01"}
            file.write(json.dumps(row) + "\n")  # the last hundred replace earlier ones, some are refused
    with open(tmp_path / "boards.jsonl", "w") as file:
        for k in range(100):
            file.write(json.dumps({"id": f"b{k}", "items": [f"i{j:05d}" for j in range(k, k + 30)]}) + "\n")
    started = child(tmp_path / "quiet", tmp_path)
    go(started)
    begun = time.perf_counter()
    assert started.stdout.readline() == "done\n"
    took = time.perf_counter() - begun
    draw, waiting = random.Random(), child(tmp_path / "killed", tmp_path)
    for _ in range(KILLS):
        process, waiting = waiting, child(tmp_path / "killed", tmp_path)  # the next one imports while this one works
        go(process)
        time.sleep(draw.uniform(0, took))
        process.kill()
        process.wait()
        held = Catalogue(tmp_path / "killed")
        ids = held.items(["id"])["id"].to_pylist()
        assert len(set(ids)) == len(ids) == held.count("items")
    finish(waiting)
    quiet, killed = Catalogue(tmp_path / "quiet"), Catalogue(tmp_path / "killed")
    for kind in ("items", "boards", "rejected"):
        assert quiet.count(kind) == killed.count(kind) > 0
        assert quiet.fingerprint(kind) == killed.fingerprint(kind), kind
    assert quiet.items().equals(killed.items()) and quiet.rejected().equals(killed.rejected())
    assert killed.text_search("thing", 3)
