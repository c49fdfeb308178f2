"""A handful of encoding processes, fed with jobs and watched.

Processes are started when there is a job for them, by ``python -c``: nothing of the parent is copied
or imported again, so it works from scripts, notebooks and servers alike. One that dies is an error that
names it; leaving the ``with`` block by an exception stops them all. Knows nothing of what a job holds
but that its answers are numbers done, an error, or a finished shard.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pinhole
from pinhole import errors
from pinhole.errors import PinholeError

_SOURCE = str(Path(pinhole.__file__).parents[1])
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def python(code: str, **options: Any) -> subprocess.Popen[bytes]:
    """A fresh Python with one thread of computation, whatever folder or script the parent was started from."""
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1"), "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen([sys.executable, "-P", "-c", f"import sys; sys.path.append({_SOURCE!r}); {code}"], env=environment, **options)


class _Process:
    """One worker and the job it is at."""

    def __init__(self, number: int, setup: dict[str, Any]) -> None:
        self.number, self.job = number, ""
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`
        code = "from pinhole.vision.worker import main; main()"
        self.process = python(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, bufsize=0)
        self.rest = b""
        self.send(setup)

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[self.process.stdin.write(data) :]
        except BrokenPipeError:
            raise self.died() from None

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

    def died(self) -> PinholeError:
        code = self.process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"left with code {code}"
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().rpartition("\n")[2]
        doing = f" while at {self.job}" if self.job else ""
        fix = "run the same command again: it resumes; if memory ran out, set [vision] workers lower"
        return PinholeError(f"encoding worker {self.number} (process {self.process.pid}) died: {how}{doing}", where=last, fix=fix)

    def stop(self, gently: bool) -> None:
        if not gently:
            self.process.terminate()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


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
