"""Rows of a step side by side: each helper process reads some of them and writes down its gradient.

Small products gain little from a second thread; a process of its own for each row uses every core (`pinhole bench
train` measures both). Weights and gradients lie in one file that all map into memory; rows go through a pipe. A
helper leaves when its input closes, so it cannot outlive its parent by more than its rows. Knows nothing of lessons, of
the optimiser or of the schedule.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinhole.config import GraftConfig
from pinhole.graft.fast import fast_rows
from pinhole.graft.learner import Learner
from pinhole.graft.model import Graft
from pinhole.graft.packing import Row
from pinhole.graft.prompt import Soft
from pinhole.memory import steady
from pinhole.processes import Child, cores
from pinhole.workspace import disk_errors

FOLDER = "helpers"  # what they read, beside the checkpoint; gone when training ends
_FIX = "run the same command again: it resumes; if memory ran out, set [graft] batch_rows to 1"
_LISTS = ("tokens", "positions", "parents", "learn_from", "learn_token", "learn_weight", "taught_at", "taught_ids", "taught_logs", "taught_weight")


def processes(graft: Graft, config: GraftConfig) -> int:
    """How many work on a step: one a row, no more than there are cores; a GPU takes all rows by itself."""
    return 1 if graft.device.type != "cpu" else min(config.batch_rows, cores())


class Helpers:
    """``with Helpers(graft, config, out) as helpers``, before LoRA is put in; then :meth:`share`, and for each step :meth:`start` and :meth:`finish`.

    Within the block this process too computes with its share of the cores. Raises what writing to ``out`` raises, and
    :class:`~pinhole.errors.PinholeError` where a helper dies.
    """

    def __init__(self, graft: Graft, config: GraftConfig, out: Path, count: int | None = None) -> None:
        self.graft, self.config, self.folder = graft, config, out / FOLDER
        self.count = processes(graft, config) - 1 if count is None else count
        self.threads = torch.get_num_threads()
        self.helpers: list[_Helper] = []

    def __enter__(self) -> Helpers:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.count:
            steady()
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True)
                self.graft.save(self.folder)
            torch.set_num_threads(max(1, self.threads // (self.count + 1)))
            self.helpers = [_Helper(number) for number in range(1, self.count + 1)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for helper in self.helpers:
            helper.stop(gently=False)
        torch.set_num_threads(self.threads)
        shutil.rmtree(self.folder, ignore_errors=True)

    def share(self, size: int) -> Tensor:
        """(size,) float32 weights that every helper sees. Call once, and write them before the first step."""
        if not self.helpers:
            return torch.zeros(size, device=self.graft.device)
        path = self.folder / "shared.f32"
        with disk_errors(path):
            shared = np.memmap(path, np.float32, "w+", shape=(1 + self.count, size))
        setup = {
            "folder": str(self.folder),
            "shape": list(shared.shape),
            "rank": self.config.lora_rank,
            "dtype": str(self.graft.lm.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        for helper in self.helpers:
            helper.gradient = torch.from_numpy(shared[helper.number])
            helper.send(setup | {"number": helper.number})
        return torch.from_numpy(shared[0])

    def start(self, rows: Sequence[Row]) -> list[Row]:
        """Give the helpers their rows; returns those that are left for this process."""
        everybody = 1 + len(self.helpers)
        for helper in self.helpers:
            helper.send_rows(rows[helper.number :: everybody])
        return list(rows[0::everybody])

    def finish(self, gradient: Tensor) -> tuple[float, float]:
        """Add the helpers' sums to ``gradient`` (size,); returns the loss and the weight of their rows."""
        loss = weight = 0.0
        for helper in self.helpers:
            own = helper.answer()
            gradient.add_(helper.gradient)
            loss, weight = loss + own["loss"], weight + own["weight"]
        return loss, weight


class _Helper(Child):
    """The parent's end of one process."""

    def __init__(self, number: int) -> None:
        super().__init__(f"training helper {number}", "from pinhole.graft.helpers import main; main()", _FIX)
        self.number, self.gradient = number, torch.zeros(0)

    def send_rows(self, rows: Sequence[Row]) -> None:
        soft = [part for row in rows for part in row.soft]
        arrays = [part.vector for part in soft] + [part.cells for part in soft if part.cells is not None]
        data = b"".join(array.astype(np.float32).tobytes() for array in arrays)
        self.send({"rows": [_packed(row) for row in rows], "bytes": len(data)}, data)

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self.died()
        answer: dict[str, float] = json.loads(line)
        return answer


def _packed(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _LISTS} | {"soft": [[part.key, part.word, part.lean, part.cells is not None] for part in row.soft]}


def _unpacked(rows: Sequence[dict[str, Any]], numbers: np.ndarray, content_dim: int, cell_dim: int) -> list[Row]:
    """The inverse of :func:`_packed`; ``numbers`` are the vectors of all rows' pictures, then their cells."""
    split = sum(len(row["soft"]) for row in rows) * content_dim
    vectors = iter(numbers[:split].reshape(-1, content_dim))
    cells = iter(numbers[split:].reshape(-1, 1, cell_dim) if cell_dim else ())
    found = []
    for row in rows:
        soft = [Soft(key, next(vectors), word, lean, cells=next(cells) if has else None) for key, word, lean, has in row["soft"]]
        found.append(Row(**{name: row[name] for name in _LISTS}, soft=soft))
    return found


# -- the other end --------------------------------------------------------------------------------


@dataclass
class _Child:
    """What runs in a helper's process."""

    learner: Learner
    weights: Tensor
    gradient: Tensor

    @classmethod
    def begin(cls, setup: dict[str, Any], number: int) -> _Child:
        torch.set_num_threads(setup["threads"])
        folder = Path(setup["folder"])
        shared = np.memmap(folder / "shared.f32", np.float32, "r+", shape=tuple(setup["shape"]))
        learner = Learner(Graft.load(folder, getattr(torch, setup["dtype"])), setup["rank"])
        return cls(learner, torch.from_numpy(shared[0]), torch.from_numpy(shared[number]))

    def do(self, message: dict[str, Any], data: bytes) -> dict[str, float]:
        self.learner.publish(self.weights)
        projector = self.learner.graft.projector
        rows = _unpacked(message["rows"], np.frombuffer(data, np.float32), projector.content_dim, projector.cell_dim)
        loss, weight = self.learner.gradient(rows, self.gradient)
        return {"loss": loss, "weight": weight}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when it is over
    steady()
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    line = source.readline()
    if not line:
        return
    setup = json.loads(line)
    child = _Child.begin(setup, setup["number"])
    with fast_rows(child.learner.graft.lm):
        while line := source.readline():
            message = json.loads(line)
            sink.write(json.dumps(child.do(message, source.read(message["bytes"]))).encode() + b"\n")
            sink.flush()
