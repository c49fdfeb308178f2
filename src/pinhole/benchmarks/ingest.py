"""100,000 generated items from JSONL: seconds, peak memory, and how that compares with the least there is to do.

The floor is the same file parsed by ``json`` and written to Lance as it stands, in one commit: no ids
checked, no types, no comparison with what is there. Each side runs in a process of its own.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ITEMS = 100_000
WORDS = ["red", "blue", "green", "old", "new", "wooden", "chair", "table", "lamp", "sofa", "rug", "winter", "summer", "small", "cat", "dog", "bird"]


def run(workspace: Any, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Figures ``ingest.*``; the workspace is not used."""
    with tempfile.TemporaryDirectory(prefix="pinhole-bench-") as name:
        folder, found = Path(name), {"ingest.items": ITEMS}
        _generate(folder / "items.jsonl", ITEMS)
        for number, side in enumerate(("floor", "first", "again"), 1):
            done = subprocess.run([sys.executable, "-m", "pinhole.benchmarks.ingest", side, name], capture_output=True, text=True, check=True)
            found |= {f"ingest.{side}.{key}": value for key, value in json.loads(done.stdout).items()}
            progress(number, 3)
    return {**found, "ingest.over_floor": round(found["ingest.first.seconds"] / found["ingest.floor.seconds"], 2)}


def _generate(path: Path, items: int) -> None:
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for k in range(items):
            row: dict[str, Any] = {"id": f"p{k:07d}", "image": f"pictures/{k % 1000}.jpg", "title": " ".join(draw.sample(WORDS, 4))}
            row |= {"description": " ".join(draw.choices(WORDS, k=20)), "category": draw.choice(WORDS), "price": round(draw.random() * 100, 2)}
            file.write(json.dumps({**row, "keywords": draw.sample(WORDS, 3), "created_at": "2026-01-02T03:04:05Z"}) + "\n")


def _side(side: str, folder: Path) -> dict[str, float]:
    """One side, measured inside its own process: imports are not counted, memory is."""
    import resource
    import time

    import lancedb
    import pyarrow as pa

    from pinhole.catalogue.ingest import ingest
    from pinhole.catalogue.store import Catalogue

    begun = time.perf_counter()
    if side == "floor":
        with open(folder / "items.jsonl", encoding="utf-8") as file:
            table = pa.Table.from_pylist([json.loads(line) for line in file])
        lancedb.connect(str(folder / "floor")).create_table("items", table)
    else:
        ingest(Catalogue(folder / "tables"), "items", folder / "items.jsonl")
    seconds = time.perf_counter() - begun
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "seconds": round(seconds, 2),
        "items_per_s": round(ITEMS / seconds),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit),
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(_side(sys.argv[1], Path(sys.argv[2]))))
    else:
        print(json.dumps(run(None, lambda done, total: None), indent=1))
