"""What a piece of work cost, and memory that goes back to the system."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pinhole.meter import Meter

HOLES = """
from pinhole.meter import _tree_bytes, give_back

before = _tree_bytes()
blocks = [bytearray(100_000) for _ in range(2_000)]  # each small enough to lie in the heap
del blocks[:-1]  # the last one stays on top: what is below it are holes
kept = _tree_bytes()
give_back()
print(before, kept, _tree_bytes())
"""


def test_a_spike_is_seen_and_timed() -> None:
    with Meter() as meter:
        spike = bytearray(b"1" * 300_000_000)
        time.sleep(0.4)
        del spike
    assert meter.peak_bytes > 300_000_000
    assert meter.seconds >= 0.4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another allocator")
def test_memory_that_is_no_longer_used_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    before, kept, after = map(int, done.stdout.split())
    assert kept - before > 150_000_000, "the allocator kept nothing: the test shows nothing"
    assert after - before < 50_000_000
