"""Late fusion: several scores of one item become one, by weights learned on questions with known answers.

Each column of scores is first brought to mean 0 and deviation 1 over a fixed cohort of items (T-norm,
Auckenthaler et al. 2000), so that a weight means the same for every query and every size of catalogue.
Weights are never negative and are learned by a convex listwise loss (ListNet, Cao et al. 2007; linear
combinations as in Bruch et al. 2023). Knows nothing of what the columns are, nor of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STRENGTH = 1e-3  # of the pull towards the mean weight: columns that say the same share the weight


@dataclass(frozen=True)
class Answered:
    """One question: a row of columns for each candidate, and which candidates are right."""

    columns: np.ndarray
    """(candidates, columns) float32, standardised."""
    right: np.ndarray
    """(candidates,) bool, at least one True."""


def standardised(scores: np.ndarray, cohort: np.ndarray) -> np.ndarray:
    """(…, n) scores by the mean and deviation of the same query's scores over a cohort (…, c)."""
    mean, deviation = cohort.mean(-1, keepdims=True), cohort.std(-1, keepdims=True)
    return np.asarray((scores - mean) / np.maximum(deviation, 1e-6), dtype=np.float32)


def learn_weights(questions: Sequence[Answered], columns: int) -> np.ndarray:
    """(columns,) weights ≥ 0 that make right answers likely under a softmax over each question's candidates.

    The loss of a question is the mean over its right answers of their negative log likelihood; convex, so
    there is one answer whatever the order of questions. Without questions every column weighs the same.
    """
    from scipy.optimize import minimize

    if not questions:
        return np.ones(columns)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = 0.0, np.zeros(columns)
        for question in questions:
            logits = question.columns @ weights
            logits -= logits.max()
            likely = np.exp(logits)
            mass = likely.sum()
            total += float(np.log(mass) - logits[question.right].mean())
            slope += likely @ question.columns / mass - question.columns[question.right].mean(0)
        away = weights - weights.mean()
        return total / len(questions) + STRENGTH * float(away @ away), slope / len(questions) + 2 * STRENGTH * away

    found = minimize(loss, np.full(columns, 1.0), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * columns)
    return np.asarray(found.x, dtype=np.float64)


def recall_at(scores: np.ndarray, right: Sequence[np.ndarray], k: int = 10) -> np.ndarray:
    """(q,) hits among the first ``k`` of (q, n) scores over min(k, number right). Equal scores: the earlier candidate first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.array([len(np.intersect1d(top, found)) / min(k, len(found)) for top, found in zip(order, right, strict=True)])
