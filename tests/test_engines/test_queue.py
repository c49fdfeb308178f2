"""Turns are fair, the list is bounded, and nobody's failure is anybody else's."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from pinhole.engines.queue import FairQueue
from pinhole.errors import Busy


class Counting:
    """A job of so many steps."""

    def __init__(self, name: str, steps: int, log: list[str]) -> None:
        self.name, self.left, self.log = name, steps, log
        self.gone, self.bad_begin = False, False
        self.ended: list[BaseException | None] = []
        self.over = threading.Event()

    @property
    def done(self) -> bool:
        return self.over.is_set()

    def begin(self) -> None:
        if self.bad_begin:
            raise ValueError("begin")

    def abandoned(self) -> bool:
        return self.gone

    def end(self, error: BaseException | None) -> None:
        self.ended.append(error)
        self.over.set()
        raise RuntimeError("even telling somebody may fail")


def step(jobs: Sequence[Counting]) -> None:
    for job in jobs:
        if job.name.startswith("bad"):
            raise ValueError(job.name)
    for job in jobs:
        job.log.append(job.name)
        job.left -= 1
        if job.left == 0:
            job.over.set()


def test_turn_by_turn() -> None:
    log: list[str] = []
    gate = threading.Event()

    def gated(jobs: Sequence[Counting]) -> None:
        gate.wait(5)
        step(jobs)

    queue: FairQueue[Counting] = FairQueue(gated, active=3, waiting=8)
    jobs = [Counting(name, 3, log) for name in "abcd"]
    for job in jobs:
        queue.submit(job)
    gate.set()
    assert all(job.over.wait(5) for job in jobs)
    assert sorted(log[:9]) == sorted("abc" * 3), "the fourth waits for a place"
    assert log[-3:] == ["d"] * 3
    queue.close()


def test_a_failure_is_told_to_the_one_who_fails() -> None:
    log: list[str] = []
    queue: FairQueue[Counting] = FairQueue(step, active=4, waiting=4)
    good, bad, worse = Counting("good", 3, log), Counting("bad", 3, log), Counting("worse", 1, log)
    worse.bad_begin = True
    for job in (good, bad, worse):
        queue.submit(job)
    assert all(job.over.wait(5) for job in (good, bad, worse))
    assert good.ended == [] and len(log) == 3
    assert [str(error) for error in bad.ended] == ["bad"]
    assert [str(error) for error in worse.ended] == ["begin"]
    after = Counting("after", 1, log)
    queue.submit(after)
    assert after.over.wait(5)
    queue.close()


def test_the_list_is_bounded_and_the_abandoned_leave_it() -> None:
    log: list[str] = []
    gate = threading.Event()

    def slow(jobs: Sequence[Counting]) -> None:
        gate.wait(0.01)
        if gate.is_set():
            step(jobs)

    queue: FairQueue[Counting] = FairQueue(slow, active=1, waiting=2)
    jobs = [Counting(str(i), 1, log) for i in range(3)]
    for job in jobs:
        queue.submit(job)
    with pytest.raises(Busy, match="wait already"):
        queue.submit(Counting("one more", 1, log))
    jobs[1].gone = True
    assert jobs[1].over.wait(5) and jobs[1].ended == [None]
    end = time.monotonic() + 5
    while len(queue) > 2 and time.monotonic() < end:
        time.sleep(0.01)
    queue.submit(Counting("now", 1, log))
    gate.set()
    assert jobs[2].over.wait(5)
    queue.close()


def test_closing_tells_everybody() -> None:
    queue: FairQueue[Counting] = FairQueue(lambda jobs: time.sleep(0.01), active=1, waiting=2)
    jobs = [Counting(str(i), 1, []) for i in range(2)]
    for job in jobs:
        queue.submit(job)
    queue.close()
    assert all(job.over.wait(5) and isinstance(job.ended[0], Busy) for job in jobs)
    with pytest.raises(Busy, match="closed"):
        queue.submit(Counting("late", 1, []))
