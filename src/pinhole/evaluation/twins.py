"""Near twins: groups whose middles lie next to each other, where telling one from the other is the question.

Middles are those of the *frozen* vectors, so that which groups are twins does not depend on what was trained.
What two twins share is right for both and no question about them. Knows nothing of queries, boards or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

AT_LEAST = 2  # members of either twin that the other has not
_BLOCK = 1024


@dataclass(frozen=True)
class Twin:
    """A group and the nearest other one; ``own`` and ``others`` are equally many members that only one of them has."""

    group: int
    other: int
    own: np.ndarray
    others: np.ndarray


def twins(groups: Sequence[np.ndarray], vectors: np.ndarray, seed: int = 0, at_least: int = AT_LEAST) -> list[Twin]:
    """The nearest other group of each that both keep ``at_least`` members apart from; ``groups`` are rows of ``vectors`` (n, width), of length 1.

    Of the larger one as many members are drawn as the smaller has, so that guessing is right half the time.
    """
    if len(groups) < 2:
        return []
    middles = np.stack([vectors[rows].mean(0) for rows in groups])
    middles = middles / np.maximum(np.linalg.norm(middles, axis=1, keepdims=True), 1e-12)
    draw, found = np.random.default_rng(seed), []
    for start in range(0, len(groups), _BLOCK):
        near = middles[start : start + _BLOCK] @ middles.T
        for group, row in enumerate(near, start):
            row[group] = -np.inf
            if len(groups[group]) >= at_least:
                for other in np.argsort(-row, kind="stable")[: len(groups) - 1].tolist():
                    own, others = np.setdiff1d(groups[group], groups[other]), np.setdiff1d(groups[other], groups[group])
                    count = min(len(own), len(others))
                    if count >= at_least:
                        found.append(Twin(group, other, np.sort(draw.permutation(own)[:count]), np.sort(draw.permutation(others)[:count])))
                        break
    return found


def told_apart(scores: np.ndarray, twin: Twin, k: int) -> float:
    """Of the first min(``k``, own) among own and others by ``scores`` (n,), the share that are own. A tie counts against."""
    first = min(k, len(twin.own))
    candidates = np.concatenate([twin.others, twin.own])
    order = np.argsort(-scores[candidates], kind="stable")[:first]
    return float((order >= len(twin.others)).mean())
