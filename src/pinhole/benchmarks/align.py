"""The claim: training the heads on one thread costs little alone, and keeps its pace beside another busy process.

The same steps on the workspace's training part by one thread and by all cores, alone and beside a process that keeps
a core busy, in turns. Tables and artefacts are only read.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pinhole.config import AlignConfig
from pinhole.processes import cores, python
from pinhole.vision.features import Features
from pinhole.vision.signals import Signals, read_signals
from pinhole.workspace import Workspace

NEEDS_WORKSPACE = True
ROUNDS = 2
Progress = Callable[[int, int], None]


def run(workspace: Workspace, progress: Progress | None = None, steps: int = 40) -> dict[str, float]:
    """``align.one_over_all`` is the time of a step on one thread ÷ on all cores; ``align.one.beside_over_alone`` and
    ``align.all.beside_over_alone`` are a step beside a busy process ÷ the same step alone."""
    task = _task(workspace, steps)
    spent: dict[tuple[str, int], float] = {}
    sides = [(place, threads) for _ in range(ROUNDS) for place in ("alone", "beside") for threads in (1, cores())]
    for done, (place, threads) in enumerate(sides, 1):
        with _busy_process() if place == "beside" else contextlib.nullcontext():
            spent[place, threads] = spent.get((place, threads), 0.0) + task.seconds(threads)
        if progress:
            progress(done, len(sides))
    return {
        "align.one_over_all": spent["alone", 1] / spent["alone", cores()],
        "align.one.beside_over_alone": spent["beside", 1] / spent["alone", 1],
        "align.all.beside_over_alone": spent["beside", cores()] / spent["alone", cores()],
        "align.cores": float(cores()),
        "align.steps": float(ROUNDS * steps),
    }


@dataclass(frozen=True)
class _Task:
    """What one training needs."""

    features: Features
    signals: Signals
    asked: np.ndarray
    config: AlignConfig

    def seconds(self, threads: int) -> float:
        """Of all steps but the first, which is a warm-up; what comes before the steps is not counted."""
        from pinhole.vision.heads import fit

        marks: list[float] = []
        fit(self.features, self.signals, self.asked, self.config, progress=lambda *_: marks.append(time.perf_counter()), threads=threads)
        return marks[-1] - marks[0]


def _task(workspace: Workspace, steps: int) -> _Task:
    from pinhole.catalogue.store import Catalogue
    from pinhole.vision.align import Asked

    config, features = workspace.config, Features.load(workspace.need("embed").path)
    signals, _ = read_signals(Catalogue(workspace.tables), features, config.graph).part(config.catalogue)
    texts = [query.key for query in signals.queries]
    asked = Asked.load(workspace.need("align").path).completed(texts, features.text_encoder.spec).of(texts)
    return _Task(features, signals, asked, config.align.model_copy(update={"steps": steps + 1}))


@contextlib.contextmanager
def _busy_process() -> Iterator[None]:
    child = python("print(flush=True)\nwhile True: pass", stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        yield
    finally:
        child.kill()
        child.communicate()
