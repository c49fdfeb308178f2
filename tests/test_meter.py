"""What a piece of work cost."""

from __future__ import annotations

import subprocess
import sys
import time

from pinhole.meter import Meter


def test_a_spike_is_seen_and_timed() -> None:
    with Meter() as meter:
        spike = bytearray(b"1" * 300_000_000)
        time.sleep(0.4)
        del spike
    assert meter.peak_bytes > 300_000_000
    assert meter.seconds >= 0.4


def test_a_child_that_is_being_started_is_not_as_large_as_its_parent() -> None:
    """Between fork and exec all of the parent's memory seems to be the child's too."""
    held = bytearray(b"1" * 400_000_000)
    with Meter() as meter:
        for _ in range(10):
            subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: time.sleep(0.08), check=True)
    with Meter() as alone:
        time.sleep(0.3)
    assert meter.peak_bytes < alone.peak_bytes + len(held) / 2


def test_a_child_that_stays_is_counted() -> None:
    with Meter() as meter:
        subprocess.run([sys.executable, "-c", "import time; held = b'1' * 300_000_000; time.sleep(1)"], check=True)
    assert meter.peak_bytes > 300_000_000
