"""A fair queue: one thread that moves every admitted job one step in turn, and a bounded list of those that wait.

A job that fails takes nobody with it: a step that raises is tried again one job at a time, and the
one that raises alone is told so. Knows nothing of models; a job says when it is done, and the step
function does the work.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from pinhole.errors import Busy


class Job(Protocol):
    @property
    def done(self) -> bool: ...
    def begin(self) -> None: ...
    def abandoned(self) -> bool:
        """Asked before every step."""

    def end(self, error: BaseException | None) -> None:
        """Called once: abandoned (None), or failed."""


J = TypeVar("J", bound=Job)


class FairQueue(Generic[J]):
    def __init__(self, step: Callable[[Sequence[J]], None], *, active: int, waiting: int) -> None:
        self._step, self._active_limit, self._waiting_limit = step, active, waiting
        self._waiting: deque[J] = deque()
        self._active: list[J] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Jobs admitted or waiting."""
        return len(self._waiting) + len(self._active)

    def submit(self, job: J) -> None:
        """Raises :class:`Busy` where as many wait as may."""
        with self._changed:
            if self._closed:
                raise Busy("the engine is closed", where="engine")
            if len(self) >= self._active_limit + self._waiting_limit:
                raise Busy(f"{len(self._waiting)} conversations wait already", where="engine", fix="try again in a moment")
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pinhole-engine", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self, timeout: float = 10.0) -> None:
        """Abandon everything and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while self._admit():
            self._sweep()
            if self._active:
                self._turn()
        for job in [*self._active, *self._waiting]:
            _end(job, Busy("the engine was closed", where="engine"))
        self._active, self._waiting = [], deque()

    def _admit(self) -> bool:
        """Wait for work and let in what there is room for. False when closed."""
        with self._changed:
            while not self._closed and not self._waiting and not self._active:
                self._changed.wait()
            new = []
            while self._waiting and len(self._active) < self._active_limit:
                new.append(self._waiting.popleft())
                self._active.append(new[-1])
        for job in new:
            try:
                job.begin()
            except Exception as error:
                _end(job, error)
                self._active.remove(job)
        return not self._closed

    def _sweep(self) -> None:
        """Let go of jobs that nobody wants any more, also of those that still wait."""
        for job in [job for job in [*self._active, *self._waiting] if job.abandoned()]:
            _end(job, None)
            with self._changed:
                (self._active if job in self._active else self._waiting).remove(job)

    def _turn(self) -> None:
        try:
            self._step(self._active)
        except Exception:
            for job in self._active:
                try:
                    if not job.done:
                        self._step([job])
                except Exception as error:
                    _end(job, error)
        self._active = [job for job in self._active if not job.done]


def _end(job: Job, error: BaseException | None) -> None:
    with contextlib.suppress(Exception):  # the thread serves everybody: it must outlive any one job
        job.end(error)
