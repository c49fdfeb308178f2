"""How much of the time of embedding is spent on what cannot be saved: decoding, resizing and the forward pass.

The fraction is (bare decode + resize, plus bare forward) / end to end: the same files, the same number of worker
processes, one after the other in turns. Bare means that every worker holds its share of the files, its encoder is
loaded, and nothing is hashed, sent or written. End to end is :func:`pinhole.vision.precompute.precompute` from
nothing to a finished artefact: planning, hashing, starting the workers, writing. Knows nothing of vectors' quality.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinhole.errors import BadImage, PinholeError, UsageError
from pinhole.vision.encoders import image_encoder
from pinhole.vision.pool import python
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


def measure(workspace: Workspace, n: int = 400, rounds: int = 3) -> dict[str, float]:
    """``speed.embed.fraction``, its ``.n``, and ``speed.embed.images_per_s``, by the median of ``rounds`` rounds.

    Raises :class:`UsageError` where the catalogue has no picture files.
    """
    from pinhole.catalogue.store import Catalogue

    config = workspace.config.vision
    workers = config.workers or os.cpu_count() or 1
    pictures = _sample(Catalogue(workspace.tables), n)
    files = [str(pictures.root / path) for path in pictures.table["image"].to_pylist()]
    found = []
    for _ in range(rounds):
        bare = _bare(config.image_encoder, files, workers, config.max_pixels)
        with tempfile.TemporaryDirectory(dir=workspace.root) as out:
            started = time.perf_counter()
            precompute(pictures, config.image_encoder, config.text_encoder, Path(out), None, workers, None, config.max_pixels)
            found.append((bare, time.perf_counter() - started))
    bare, whole = (statistics.median(column) for column in zip(*found, strict=True))
    figures = {
        "fraction": round(bare / whole, 4),
        "fraction.n": len(files),
        "images_per_s": round(len(files) / whole, 2),
        "images_per_s.n": len(files),
    }
    return {f"speed.embed.{name}": value for name, value in figures.items()}


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


def _bare(spec: str, files: list[str], workers: int, max_pixels: int) -> float:
    """Seconds from the word "go" until the last of ``workers`` processes has decoded and forwarded its share."""
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
        for process in started:
            _hear(process)
        return time.perf_counter() - begun
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _say(process: subprocess.Popen[bytes], message: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    if not process.stdout.readline():
        raise PinholeError(f"a bare worker (process {process.pid}) died", fix="run it again with fewer [vision] workers")


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
    for start in range(0, len(data), encoder.batch):
        pixels = []
        for one in data[start : start + encoder.batch]:
            try:
                pixels.append(encoder.decode(one, job["max_pixels"]))
            except BadImage:
                continue
        if pixels:
            encoder.encode(np.stack(pixels))
    sys.stdout.write("done\n")
    sys.stdout.flush()
