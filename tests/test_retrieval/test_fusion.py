"""Weights: non-negative, found whatever the order, equal where there is nothing to learn from."""

from __future__ import annotations

import numpy as np
import pytest

from pinhole.retrieval.fusion import Answered, learn_weights, recall_at, standardised


def questions(count: int = 60, seed: int = 0) -> list[Answered]:
    """Column 0 tells right from wrong well, column 1 a little, column 2 not at all, column 3 the wrong way."""
    draw = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        right = np.zeros(40, dtype=bool)
        right[draw.choice(40, 4, replace=False)] = True
        noise = draw.standard_normal((40, 4))
        out.append(Answered(noise + right[:, None] * np.array([2.0, 0.7, 0.0, -1.0]), right))
    return out


def test_weights_follow_what_the_columns_know() -> None:
    weights = learn_weights(questions(), 4)
    assert weights[0] > weights[1] > weights[2] >= 0 and weights[3] == 0


def test_the_order_of_questions_does_not_matter() -> None:
    asked = questions()
    assert np.allclose(learn_weights(asked, 4), learn_weights(asked[::-1], 4), atol=1e-3)


def test_fused_beats_each_column() -> None:
    weights, asked = learn_weights(questions(seed=1), 4), questions(seed=2)
    right = [np.flatnonzero(one.right) for one in asked]
    fused = recall_at(np.stack([one.columns @ weights for one in asked]), right).mean()
    for column in range(4):
        assert fused >= recall_at(np.stack([one.columns[:, column] for one in asked]), right).mean()


def test_without_questions_all_weigh_the_same() -> None:
    assert learn_weights([], 3).tolist() == [1.0, 1.0, 1.0]


def test_recall_counts_at_most_k_right_ones_and_breaks_ties_by_order() -> None:
    scores = np.array([[0.0] * 20, list(range(20))])
    assert recall_at(scores, [np.arange(15), np.array([19, 0])], 10).tolist() == [1.0, 0.5]


def test_standardised_by_the_cohort() -> None:
    draw = np.random.default_rng(0)
    cohort = draw.normal(5, 3, (2, 4000))
    assert standardised(np.array([[5.0, 8.0], [2.0, 5.0]]), cohort) == pytest.approx(np.array([[0, 1], [-1, 0]]), abs=0.1)
    assert np.isfinite(standardised(np.ones((1, 2)), np.ones((1, 3)))).all()
