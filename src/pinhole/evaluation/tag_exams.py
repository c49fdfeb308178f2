"""Whether guessed words are the owner's own: held-out items, whose words and pictures nothing was learned from, and only those with any.

A word that the owner left out counts as wrong, whether it fits or not, so precision is a lower bound. Nothing is measured of
attributes that no item of the training part has enough values of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pinhole.evaluation.intervals import clustered, share
from pinhole.retrieval.tags import Guessed

BINS = 10


def tag_exams(examined: Sequence[Guessed], category: str, seed: int = 0) -> dict[str, float]:
    """``tags.precision`` (intervals by item), ``.recall`` of the owner's words that can be guessed, ``.coverage`` of items, ``.calibration``: the
    mean distance of confidence and share of right ones in tenths of confidence; ``tags.category.accuracy`` of the best guess, sure or not."""
    asked = [(found, np.flatnonzero(found.labels.told[found.rows])) for found in examined]
    several = [(found, told) for found, told in asked if not found.labels.one and len(told)]
    right, items, covered, chances, truths = list[bool](), list[str](), dict[int, bool](), list[np.ndarray](), list[np.ndarray]()
    own = 0
    for found, told in several:
        kept, truth = found.chances[told] >= found.least, found.right[told]
        for row, some, good in zip(found.rows[told].tolist(), kept, truth, strict=True):
            right += good[some].tolist()
            items += [str(row)] * int(some.sum())
            covered[row] = covered.get(row, False) or bool(some.any())
            own += len(found.labels.borne[row])
        chances.append(found.chances[told].ravel())
        truths.append(truth.ravel())
    figures = clustered("tags.precision", right, items, seed) | share("tags.coverage", list(covered.values()))
    figures |= {"tags.recall": sum(right) / own, "tags.recall.n": own} if own else {"tags.recall.n": 0}
    if chances:
        figures |= {"tags.calibration": calibration(np.concatenate(chances), np.concatenate(truths)), "tags.calibration.n": sum(map(len, chances))}
    for found, told in asked:
        if found.labels.name == category and found.values.shape[1]:
            known = [place for place in told.tolist() if found.labels.borne[found.rows[place]]]
            figures |= share("tags.category.accuracy", found.right[known, 0].tolist() if known else [])
    return figures


def calibration(chances: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Naeini et al. 2015)."""
    bins = np.minimum((chances * BINS).astype(int), BINS - 1)
    return float(sum(abs(chances[bins == one].sum() - right[bins == one].sum()) for one in range(BINS)) / max(len(chances), 1))
