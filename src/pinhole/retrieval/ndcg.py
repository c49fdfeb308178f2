"""Normalised discounted cumulative gain (Järvelin and Kekäläinen 2002). Knows nothing of where gains come from."""

from __future__ import annotations

import numpy as np


def ndcg(gains: np.ndarray, possible: np.ndarray, k: int) -> float:
    """``gains`` of the results in order, over the best order of ``possible`` ones; 0 where nothing can be gained."""
    best = _discounted(np.sort(possible)[::-1], k)
    return _discounted(gains, k) / best if best > 0 else 0.0


def _discounted(gains: np.ndarray, k: int) -> float:
    first = np.asarray(gains[:k], dtype=np.float64)
    return float((first / np.log2(np.arange(2, len(first) + 2))).sum())


def graded(order: np.ndarray, grades: dict[int, float], k: int) -> float:
    """Of rows in ``order``, by the grades of a pool: 2^grade − 1. Rows that nobody graded are passed over (condensed lists, Sakai 2007)."""
    known = np.array([grades[row] for row in order.tolist() if row in grades])
    return ndcg(2**known - 1, 2 ** np.array(list(grades.values())) - 1, k)


def logged(order: np.ndarray, right: np.ndarray, k: int) -> float:
    """Of rows in ``order``, by the items that the query led to: each is worth 1."""
    return ndcg(np.isin(order, right).astype(np.float64), np.ones(len(right)), k)
