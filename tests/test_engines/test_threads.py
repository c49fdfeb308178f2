"""As many threads as nobody else is using, and the caller's setting back afterwards."""

from __future__ import annotations

import pytest
import torch

from pinhole.engines import threads
from pinhole.engines.threads import Threads


class Machine:
    """A machine of four cores whose clock and load a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.busy, self.ours = 100.0, 1000.0, 10.0
        monkeypatch.setattr(threads, "cores", lambda: 4)
        monkeypatch.setattr(threads, "_busy", lambda: self.busy)
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(threads.time, "process_time", lambda: self.ours)
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.set)
        monkeypatch.setattr(torch, "set_num_threads", self.put)
        self.set, self.history = 4, []

    def put(self, count: int) -> None:
        self.set = count
        self.history.append(count)

    def step(self, chooser: Threads, *, others: float, seconds: float = 1.0) -> int:
        """One step during which others keep so many cores busy; returns the threads it ran on."""
        with chooser:
            count = self.set
            self.now += seconds
            self.ours += seconds * count
            self.busy += seconds * (count + others)
        assert self.set == 4, "the caller's own number is back"
        return count


def test_the_count_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    chooser = Threads()
    assert machine.step(chooser, others=0) == 1, "nothing is known yet"
    assert machine.step(chooser, others=0.2) == 4, "our own work does not count"
    assert machine.step(chooser, others=1.0) == 4
    assert machine.step(chooser, others=3.0) == 3
    assert machine.step(chooser, others=9.0) == 1
    assert machine.step(chooser, others=0.0, seconds=0.01) == 1
    assert machine.step(chooser, others=0.0, seconds=0.01) == 1, "too soon to look again"


def test_a_fixed_count_and_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    assert [machine.step(Threads(2), others=9.0) for _ in range(3)] == [2, 2, 2]
    machine.set = 1
    alone = Threads()
    machine.set = 4
    assert [machine.step(alone, others=0.0) for _ in range(3)] == [1, 1, 1]


def test_on_this_machine() -> None:
    before = torch.get_num_threads()
    with Threads():
        assert 1 <= torch.get_num_threads() <= max(1, before)
    assert torch.get_num_threads() == before
