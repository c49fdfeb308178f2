from __future__ import annotations

import numpy as np
import pytest

from pinhole.evaluation.intervals import clustered, resampled, share, wilson


def test_wilson_against_known_values() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 300), (300, 300), (150, 300)])
def test_an_interval_holds_its_share_and_stays_within_bounds(right: int, n: int) -> None:
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1 and high - low > 0


def test_more_questions_make_it_narrower() -> None:
    widths = [wilson(n // 2, n)[1] - wilson(n // 2, n)[0] for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)


def test_a_share_counts_and_nothing_asked_is_no_share() -> None:
    assert share("x", [True, True, False, True]) == {
        "x": 0.75,
        "x.n": 4,
        "x.low": pytest.approx(0.3006, abs=1e-4),
        "x.high": pytest.approx(0.9544, abs=1e-4),
    }
    assert share("x", []) == {"x.n": 0}


def test_few_boards_make_it_wide_however_often_they_are_asked_about() -> None:
    boards = [f"{number % 20}" for number in range(1000)]
    alike = [int(board) < 14 for board in boards]  # a board is read or it is not
    found = clustered("x", alike, boards)
    assert (found["x"], found["x.n"], found["x.clusters"]) == (0.7, 1000, 20)
    low, high = wilson(14, 20)
    assert found["x.low"] == pytest.approx(low, abs=0.06) and found["x.high"] == pytest.approx(high, abs=0.06)
    mixed = clustered("x", [number % 10 < 7 for number in range(1000)], [f"{number // 50}" for number in range(1000)])
    assert mixed["x"] == 0.7 and mixed["x.high"] - mixed["x.low"] < 0.02, "every board alike"


def test_one_board_tells_nothing_of_others() -> None:
    assert clustered("x", [True, False], ["a", "a"]) == {"x": 0.5, "x.n": 2, "x.clusters": 1, "x.low": 0.0, "x.high": 1.0}
    assert clustered("x", [], []) == {"x.n": 0}


def test_resampled_means_have_the_mean_of_all() -> None:
    values = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    drawn = resampled(values, ["a", "b", "c", "d"], 0)
    assert drawn.shape == (2, 2000) and drawn.mean(1) == pytest.approx([0.75, 0.25], abs=0.02)
