"""One encoding process: reads jobs from its standard input, writes vectors to shard files.

Started by :mod:`pinhole.vision.pool` as ``python -c``, one thread of computation each. A job is one JSON
line; for each batch it answers ``{"n": …}`` and at the end ``{"shard": …}`` or ``{"error": …}``. A shard
appears by one rename. It leaves when its input closes, so it cannot outlive its parent by more than a
shard. Knows nothing of what was done before, or of other workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.errors import BadImage, PinholeError
from pinhole.vision.encoders import ImageEncoder, TextEncoder, image_encoder, text_encoder
from pinhole.vision.grid import quantise
from pinhole.workspace import disk_errors

CHANGED = "the picture changed while it was read"


class Worker:
    """Encodes jobs into shard files under ``setup["shards"]``."""

    def __init__(self, setup: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        self.setup, self.say = setup, say
        self.folder = Path(setup["shards"])

    @cached_property
    def see(self) -> ImageEncoder:
        return image_encoder(self.setup["image"])

    @cached_property
    def read(self) -> TextEncoder:
        return text_encoder(self.setup["text"])

    def do(self, job: dict[str, Any]) -> None:
        arrays, reasons = self.images(job) if job["kind"] == "image" else ({"vectors": self.texts(job)}, [""] * len(job["keys"]))
        with disk_errors(self.folder):
            write_shard(self.folder / job["name"], job["keys"], arrays, reasons)

    def images(self, job: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
        """``vectors`` (n, dim), with a grid also quantised ``cells`` and their ``scale``; for each picture why it could not be read, or ""."""
        arrays = self.nothing(len(job["keys"]))
        reasons = [""] * len(job["keys"])
        blobs = self.blobs([id for id, path in job["items"] if path is None])
        for start in range(0, len(job["keys"]), self.see.batch):
            rows, pixels = [], []
            stop = min(start + self.see.batch, len(job["keys"]))
            for row in range(start, stop):
                id, path = job["items"][row]
                try:
                    data = blobs[id] if path is None else Path(path).read_bytes()
                    if hashlib.sha256(data).hexdigest() != job["keys"][row]:
                        raise PinholeError(CHANGED, where=id, fix="run the same command again: it resumes")
                    pixels.append(self.see.decode(data, self.setup["max_pixels"]))
                    rows.append(row)
                except BadImage as error:
                    reasons[row] = str(error)
                except (OSError, KeyError):
                    raise PinholeError(CHANGED, where=id, fix="run the same command again: it resumes") from None
            if rows:
                for name, values in self.seen(np.stack(pixels)).items():
                    arrays[name][rows] = values
            self.say({"n": stop - start})
        return arrays, reasons

    def seen(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """What one forward pass gives to keep of uint8 pictures (n, size, size, 3)."""
        if not self.setup["grid"]:
            return {"vectors": self.see.encode(pixels)}
        vectors, cells = self.see.encode_grid(pixels, self.setup["grid"])
        small, scale = quantise(cells)
        return {"vectors": vectors, "cells": small, "scale": scale}

    def nothing(self, n: int) -> dict[str, np.ndarray]:
        """Zeros in the shape of :meth:`seen`."""
        vectors, cells = {"vectors": np.zeros((n, self.see.dim), np.float32)}, self.setup["grid"] ** 2
        if not cells:
            return vectors
        return vectors | {"cells": np.zeros((n, cells, self.see.grid(self.setup["grid"]).dim), np.int8), "scale": np.zeros((n, cells), np.float32)}

    def blobs(self, ids: list[str]) -> dict[str, bytes]:
        """Pictures that are kept in the tables."""
        if not ids:
            return {}
        from pinhole.catalogue.store import Catalogue

        rows = Catalogue(self.setup["tables"]).items(["id", "image_bytes"], ids=ids)
        return dict(zip(rows["id"].to_pylist(), rows["image_bytes"].to_pylist(), strict=True))

    def texts(self, job: dict[str, Any]) -> np.ndarray:
        vectors = self.read.encode(job["items"])
        self.say({"n": len(vectors)})
        return vectors


def write_shard(path: Path, keys: list[str], arrays: dict[str, np.ndarray], reasons: list[str]) -> None:
    """One file: hex keys, arrays of a row each, reasons. Whole or absent however the process ends.

    It is not forced to the disk: after a power cut a damaged shard fails its checksum and is made again.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")  # on a cluster two may write the same one
    with open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, keys=np.array(keys), reasons=np.array(reasons), **arrays)
    os.replace(temporary, path)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    worker = Worker(json.loads(sys.stdin.readline()), say)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            worker.do(job)
        except PinholeError as error:
            say({"error": [type(error).__name__, error.what, error.where, error.fix]})
        else:
            say({"shard": job["name"]})
