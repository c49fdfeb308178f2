"""A handful of encoding processes, fed with jobs and watched.

Processes are started when there is a job for them. One that dies is an error that names it; leaving the
``with`` block by an exception stops them all. Knows nothing of what a job holds but that its answers are
numbers done, an error, or a finished shard.
"""

from __future__ import annotations

import json
import os
import selectors
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from pinhole import errors
from pinhole.errors import PinholeError
from pinhole.processes import Child

_FIX = "run the same command again: it resumes; if memory ran out, set [vision] workers lower"


class _Process(Child):
    """One worker and the job it is at."""

    def __init__(self, number: int, setup: dict[str, Any]) -> None:
        super().__init__(f"encoding worker {number}", "from pinhole.vision.worker import main; main()", _FIX)
        self.rest = b""
        self.send(setup)

    def answers(self) -> list[dict[str, Any]]:
        """Whole lines that have come. Raises where the process has gone, or reports an error."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        if not data:
            raise self.died()
        *lines, self.rest = (self.rest + data).split(b"\n")
        found = [json.loads(line) for line in lines]
        for answer in found:
            if "error" in answer:
                kind, what, where, fix = answer["error"]
                raise getattr(errors, kind, PinholeError)(what, where=where, fix=fix)
        return found


class Pool:
    """``with Pool(count, setup) as pool: pool.run(jobs, done)``."""

    def __init__(self, count: int, setup: dict[str, Any]) -> None:
        self.count, self.setup = count, setup
        self.processes: list[_Process] = []
        self.selector = selectors.DefaultSelector()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.selector.close()
        for process in self.processes:
            process.stop(gently=kind is None)

    def _start(self) -> _Process:
        process = _Process(len(self.processes) + 1, self.setup)
        self.processes.append(process)
        self.selector.register(process.process.stdout, selectors.EVENT_READ, process)  # type: ignore[arg-type]
        return process

    def run(self, jobs: Iterator[dict[str, Any]], done: Callable[[int], None]) -> None:
        """Do all jobs. ``done(n)`` is called as pictures or texts are finished. Raises what a worker raised."""
        idle = list(self.processes)
        ahead = next(jobs, None)
        while ahead is not None or any(process.job for process in self.processes):
            if ahead is not None and (idle or len(self.processes) < self.count):
                process = idle.pop() if idle else self._start()
                process.job = ahead["name"]
                process.send(ahead)
                ahead = next(jobs, None)  # prepared while the workers are busy
                continue
            for key, _ in self.selector.select():
                process = key.data
                for answer in process.answers():
                    if "n" in answer:
                        done(answer["n"])
                    else:
                        process.job = ""
                        idle.append(process)
