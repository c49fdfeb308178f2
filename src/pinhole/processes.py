"""Processes of our own: how many the machine has room for, how they are started, what is said when one dies.

They are started by ``python -c``: nothing of the parent is copied or imported again, so it works from
scripts, notebooks and servers alike. A message is a JSON line, with raw bytes behind it where it says so.
Knows nothing of what a process does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import pinhole
from pinhole.errors import PinholeError

_SOURCE = str(Path(pinhole.__file__).parents[1])
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def python(code: str, **options: Any) -> subprocess.Popen[bytes]:
    """A fresh Python with one thread of computation, whatever folder or script the parent was started from."""
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1"), "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen([sys.executable, "-P", "-c", f"import sys; sys.path.append({_SOURCE!r}); {code}"], env=environment, **options)


class Child:
    """The parent's end of one process. ``name`` is what it is called when it dies, ``fix`` what to do then, ``job`` what it is at."""

    def __init__(self, name: str, code: str, fix: str) -> None:
        self.name, self.fix, self.job = name, fix, ""
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`
        self.process = python(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, bufsize=0)

    def send(self, message: dict[str, Any], data: bytes = b"") -> None:
        """A JSON line, and ``data`` behind it."""
        assert self.process.stdin is not None
        rest = memoryview(json.dumps(message).encode() + b"\n" + data)
        try:
            while rest:
                rest = rest[self.process.stdin.write(rest) :]
        except BrokenPipeError:
            raise self.died() from None

    def died(self) -> PinholeError:
        """What to raise when it has gone: how, at what, and its last words."""
        code = self.process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"left with code {code}"
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().rpartition("\n")[2]
        doing = f" while at {self.job}" if self.job else ""
        return PinholeError(f"{self.name} (process {self.process.pid}) died: {how}{doing}", where=last, fix=self.fix)

    def stop(self, gently: bool) -> None:
        """Close its input, which ends it; or end it now."""
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
