"""Shares with their 95% intervals, as flat figures. Knows nothing of what was counted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 2000


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


def clustered(key: str, right: Sequence[bool], clusters: Sequence[str], seed: int = 0) -> dict[str, float]:
    """A share whose questions are about few things, each asked about many times: ``clusters`` says which; they are resampled whole.

    With ``key.clusters``, how many there are. One alone says nothing of others: its interval is everything.
    """
    if not right:
        return {f"{key}.n": 0}
    count, mean = len(set(clusters)), sum(right) / len(right)
    low, high = np.quantile(resampled(np.array([right], float), clusters, seed), (0.025, 0.975)) if count > 1 else (0.0, 1.0)
    ends = {f"{key}.low": min(mean, float(low)), f"{key}.high": max(mean, float(high))}  # rounding may not part a share from its bound
    return {key: mean, f"{key}.n": len(right), f"{key}.clusters": count, **ends}


def resampled(values: np.ndarray, clusters: Sequence[str], seed: int) -> np.ndarray:
    """(rows, DRAWS) means of (rows, n) values, clusters drawn with replacement: the cluster bootstrap (Davison and Hinkley 1997, ch. 3.8)."""
    _, number = np.unique(np.array(clusters), return_inverse=True)
    count = number.max() + 1
    sums = np.stack([np.bincount(number, row, count) for row in values])  # (rows, clusters)
    sizes = np.bincount(number, minlength=count)
    chosen = np.random.default_rng(seed).integers(0, count, (DRAWS, count))
    return np.asarray(sums[:, chosen].sum(2) / sizes[chosen].sum(1))
