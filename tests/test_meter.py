"""What a piece of work cost."""

from __future__ import annotations

import time

from pinhole.meter import Meter


def test_a_spike_is_seen_and_timed() -> None:
    with Meter() as meter:
        spike = bytearray(b"1" * 300_000_000)
        time.sleep(0.4)
        del spike
    assert meter.peak_bytes > 300_000_000
    assert meter.seconds >= 0.4
