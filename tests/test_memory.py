"""Memory that is no longer used goes back to the system. Each in a process of its own, whose heap nobody else has cut up."""

from __future__ import annotations

import subprocess
import sys

import pytest

HOLES = """
import psutil
from pinhole.memory import give_back

held = lambda: psutil.Process().memory_info().rss
before = held()
blocks = [bytearray(100_000) for _ in range(2_000)]  # each small enough to lie in the heap
del blocks[:-1]  # the last one stays on top: what is below it are holes
kept = held()
give_back()
print(before, kept, held())
"""

LARGE = """
import psutil
from pinhole.memory import steady

def held():
    return psutil.Process().memory_info().rss

def touched():
    block = bytearray(20_000_000)
    block[::4096] = b"1" * len(block[::4096])
    return block

for size in (16_000_000, 24_000_000, 30_000_000):
    del (taught := [bytearray(size)])[:]  # from each, glibc learns to keep blocks of that size in the heap
STEADY
before = held()
large, between = [], []
for _ in range(10):  # a small block above each large one, so that none melts into the top
    large.append(touched())
    between.append(bytearray(100_000))
del large[:]
print(before, held())
"""


def printed(code: str) -> list[int]:
    return [int(n) for n in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()]


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have another allocator")


def test_holes_are_given_back() -> None:
    before, kept, after = printed(HOLES)
    assert kept - before > 150_000_000, "the allocator kept nothing: the test shows nothing"
    assert after - before < 50_000_000


def test_large_blocks_go_back_by_themselves() -> None:
    before, kept = printed(LARGE.replace("STEADY", ""))
    assert kept - before > 150_000_000, "the allocator kept nothing: the test shows nothing"
    before, after = printed(LARGE.replace("STEADY", "steady()"))
    assert after - before < 30_000_000
