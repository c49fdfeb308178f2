"""Shares with their 95% intervals, as flat figures. Knows nothing of what was counted."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, share = 1.96, right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))  # rounding may not part a share from its bound


def share(key: str, right: Sequence[bool]) -> dict[str, float]:
    """``key``, ``key.n``, ``key.low`` and ``key.high``; nothing at all where nothing was asked."""
    if not right:
        return {f"{key}.n": 0}
    low, high = wilson(sum(right), len(right))
    return {key: sum(right) / len(right), f"{key}.n": len(right), f"{key}.low": low, f"{key}.high": high}
