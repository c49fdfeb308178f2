from __future__ import annotations

import pytest

from pinhole.evaluation.intervals import share, wilson


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
