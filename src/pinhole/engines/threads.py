"""How many threads a step runs on: as many as there are cores that nobody else is using just now.

Alone on a machine two cores decode faster than one; beside another busy process the threads wait for
each other at every product and can be a hundred times slower. So before a step the machine is asked
what others took of it since the last look. Knows nothing of what a step does.
"""

from __future__ import annotations

import time
from types import TracebackType

import psutil
import torch

from pinhole.processes import cores

LOOK = 0.2  # seconds between looks at the machine
SPARE = 0.35  # of a core may be taken by others and it still counts as free


class Threads:
    """A context manager around each step. ``fixed`` threads, or (None) what is free; never more than torch was given."""

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed, self.most = fixed, min(torch.get_num_threads(), cores())
        self.count = fixed or 1
        self._looked, self._busy, self._ours = time.perf_counter(), _busy(), 0.0

    def look(self) -> int:
        """The number of threads for the next step."""
        now = time.perf_counter()
        if self.fixed is None and self.most > 1 and now - self._looked >= LOOK:
            busy = _busy()
            others = (busy - self._busy - self._ours) / (now - self._looked)  # cores
            self.count = max(1, min(self.most, int(cores() - others + SPARE)))
            self._looked, self._busy, self._ours = now, busy, 0.0
        return self.count

    def __enter__(self) -> None:
        self._outside, count = torch.get_num_threads(), self.look()
        if self._outside != count:
            torch.set_num_threads(count)
        self._began = time.process_time()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ours += time.process_time() - self._began
        if self._outside != self.count:
            torch.set_num_threads(self._outside)


def _busy() -> float:
    """Seconds that all cores together have worked since the machine started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))
