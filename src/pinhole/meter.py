"""What a piece of work cost: wall seconds, and peak memory of this process and its children.

Memory is sampled (resident pages; a child's pages that it shares are counted once, in the parent),
so a spike shorter than the sampling interval counts only where the kernel's own high-water mark
saw it. Knows nothing about what is measured.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
import time
from types import TracebackType

INTERVAL = 0.25  # seconds between two looks


class Meter:
    """``with Meter() as meter: …`` then ``meter.seconds`` and ``meter.peak_bytes``."""

    def __init__(self) -> None:
        self.seconds, self.peak_bytes = 0.0, 0
        self._children: set[int] = set()
        self._stop = threading.Event()

    def __enter__(self) -> Meter:
        self._started, self._high = time.perf_counter(), _high_water()
        self._sample()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        self.seconds = time.perf_counter() - self._started
        if _high_water() > self._high:
            self.peak_bytes = max(self.peak_bytes, _high_water())

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._sample()

    def _sample(self) -> None:
        found, self._children = _tree_bytes(self._children)
        self.peak_bytes = max(self.peak_bytes, found)


def _high_water() -> int:
    """The largest resident size that this process ever had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _tree_bytes(before: set[int]) -> tuple[int, set[int]]:
    """Resident bytes of this process and of its children that were there ``before``; and which children there are now.

    A new one is left out until the next look: until it runs a program of its own it seems to be as large as its parent.
    """
    import psutil

    me = psutil.Process()
    total, children = me.memory_info().rss, me.children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.Error):  # it may have ended since
            if child.pid in before:
                memory = child.memory_info()
                total += memory.rss - getattr(memory, "shared", 0)
    return total, {child.pid for child in children}
