"""How much of the time of embedding is spent on what cannot be saved: decoding, resizing and the forward pass.

The fraction is (bare decode + resize, plus bare forward) / end to end: the same files, the same number of worker
processes, one after the other in turns. Bare means that every worker holds its share of the files, its encoder is
loaded, and nothing is hashed, sent or written. End to end is :func:`pinhole.vision.precompute.precompute` from
nothing to a finished artefact: planning, hashing, starting the workers, writing. Knows nothing of vectors' quality.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinhole.errors import BadImage, PinholeError, UsageError
from pinhole.processes import cores, python
from pinhole.vision.encoders import image_encoder
from pinhole.vision.precompute import precompute
from pinhole.workspace import Workspace


@dataclass
class _Pictures:
    """The first n readable picture files of a catalogue, without their texts: what is measured is seeing."""

    path: Path
    root: Path
    table: Any

    def items(self, columns: Sequence[str] | None = None, where: str | None = None, ids: Sequence[str] | None = None) -> Any:
        return self.table.select(list(columns or self.table.column_names))

    def image(self, id: str) -> bytes:
        raise BadImage("not here", where=id)

    def reject(self, kind: str, source: str, refused: Sequence[Any]) -> None: ...
    def settle(self, kind: str, source: str, keys: set[str]) -> None: ...


def measure(workspace: Workspace, n: int = 2500, rounds: int = 2) -> dict[str, float]:
    """``speed.embed.fraction``, its ``.n``, and ``speed.embed.images_per_s``, by the best of ``rounds`` rounds each (other programs only add time).

    ``speed.embed.cpu_fraction`` is the same of processor seconds: it does not see idle workers, but holds on a busy machine.

    Starting the workers takes half a second, which fewer than a thousand pictures do not earn back. Raises
    :class:`UsageError` where the catalogue has no picture files.
    """
    from pinhole.catalogue.store import Catalogue

    config = workspace.config.vision
    workers = config.workers or cores()
    pictures = _sample(Catalogue(workspace.tables), n)
    files = [str(pictures.root / path) for path in pictures.table["image"].to_pylist()]
    found = []
    for _ in range(rounds):
        bare = _bare(config.image_encoder, files, workers, config.max_pixels)
        with tempfile.TemporaryDirectory(dir=workspace.root) as out:
            before = _clocks()
            precompute(pictures, config.image_encoder, config.text_encoder, Path(out), None, workers, None, config.max_pixels, config.grid)
            found.append((*bare, *(now - then for now, then in zip(_clocks(), before, strict=True))))
    bare_wall, bare_cpu, wall, cpu = (min(column) for column in zip(*found, strict=True))
    figures = {"fraction": bare_wall / wall, "cpu_fraction": bare_cpu / cpu, "images_per_s": len(files) / wall}
    rounded = {f"speed.embed.{name}": round(value, 4) for name, value in figures.items()}
    return rounded | {f"speed.embed.{name}.n": len(files) for name in figures}


def _clocks() -> tuple[float, float]:
    """Seconds on the wall, and processor seconds of this process and of its children that have ended."""
    spent = os.times()
    return time.perf_counter(), spent.user + spent.system + spent.children_user + spent.children_system


def _sample(catalogue: Any, n: int) -> _Pictures:
    """Files spread evenly over the catalogue."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = catalogue.items(["id", "image"])
    table = table.filter(pc.and_(pc.is_valid(table["image"]), pc.invert(pc.match_substring(pc.fill_null(table["image"], ""), "://"))))
    if not len(table):
        raise UsageError("the catalogue has no picture files to measure with", where=str(catalogue.path), fix="ingest items with image paths")
    step = max(1, len(table) // n)
    table = table.take(list(range(0, len(table), step))[:n])
    nothing = pa.nulls(len(table), pa.string())
    return _Pictures(catalogue.path, catalogue.root, table.append_column("title", nothing).append_column("description", nothing))


def _bare(spec: str, files: list[str], workers: int, max_pixels: int) -> tuple[float, float]:
    """Seconds from the word "go" until the last of ``workers`` processes has done its share; processor seconds of them all."""
    image_encoder(spec)  # converted once, before anybody is timed
    shares = [files[number::workers] for number in range(workers)]
    started = [python("from pinhole.vision.speed import bare_worker; bare_worker()", stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in shares]
    try:
        for process, share in zip(started, shares, strict=True):
            _say(process, {"spec": spec, "files": share, "max_pixels": max_pixels})
        for process in started:
            _hear(process)
        begun = time.perf_counter()
        for process in started:
            _say(process, "go")
        spent = sum(float(_hear(process)) for process in started)
        return time.perf_counter() - begun, spent
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _say(process: subprocess.Popen[bytes], message: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise PinholeError(f"a bare worker (process {process.pid}) died", fix="run it again with fewer [vision] workers")
    return line


def bare_worker() -> None:
    """One process of :func:`_bare`: bytes in memory, encoder loaded, then decode and forward and nothing else."""
    import numpy as np

    job = json.loads(sys.stdin.readline())
    encoder = image_encoder(job["spec"])
    data = [Path(file).read_bytes() for file in job["files"]]
    encoder.encode(np.zeros((1, encoder.size, encoder.size, 3), np.uint8))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    begun = time.process_time()
    for start in range(0, len(data), encoder.batch):
        pixels = []
        for one in data[start : start + encoder.batch]:
            try:
                pixels.append(encoder.decode(one, job["max_pixels"]))
            except BadImage:
                continue
        if pixels:
            encoder.encode(np.stack(pixels))
    sys.stdout.write(f"{time.process_time() - begun}\n")
    sys.stdout.flush()
