"""Near twins are the nearest groups, share nothing, and guessing tells half of them apart."""

from __future__ import annotations

import numpy as np
import pytest

from pinhole.evaluation.fine_sight import KEY, choices, fine_sight
from pinhole.evaluation.twins import Twin, told_apart, twins
from toy_model import tiny_graft
from toy_world import tiny_world


def vectors(n: int = 60) -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((n, 8))
    drawn[:20, 0] += 6
    drawn[20:40, 1] += 6
    drawn[40:, 0] += 5
    drawn[40:, 1] += 1
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def test_a_twin_is_the_nearest_group_and_shares_nothing() -> None:
    groups = [np.arange(20), np.arange(20, 40), np.arange(36, 60)]
    found = twins(groups, vectors())
    assert [(one.group, one.other) for one in found] == [(0, 2), (1, 2), (2, 0)]
    second = found[1]
    assert len(second.own) == len(second.others) == 16
    assert set(second.own) <= set(range(20, 36)) and set(second.others) <= set(range(40, 60))


def test_twins_are_the_same_for_a_seed_and_need_members_of_their_own() -> None:
    groups = [np.arange(20), np.arange(20), np.arange(30, 33)]
    first, again = twins(groups, vectors(), 3), twins(groups, vectors(), 3)
    assert [one.other for one in first] == [2, 2, 0]  # the equal one tells nothing apart
    assert all(np.array_equal(a.own, b.own) and np.array_equal(a.others, b.others) for a, b in zip(first, again, strict=True))
    assert twins([np.arange(20), np.arange(19)], vectors()) == [] == twins([np.arange(3)], vectors())


def test_guessing_tells_half_apart() -> None:
    draw, twin = np.random.default_rng(0), Twin(0, 1, np.arange(15), np.arange(15, 30))
    assert np.mean([told_apart(draw.random(30), twin, 10) for _ in range(2000)]) == pytest.approx(0.5, abs=0.02)
    assert told_apart(-np.arange(30.0), twin, 10) == 1 and told_apart(np.arange(30.0), twin, 10) == told_apart(np.zeros(30), twin, 10) == 0


def test_only_held_pictures_of_one_of_the_two_are_asked_about() -> None:
    world = tiny_world()
    asked = choices(world, 10_000, 0)
    members = {board.title: set(board.pictures) for board in world.boards if not board.held}
    assert [one.picture for one in asked] == [one.picture for one in choices(world, 10_000, 0)]
    for one in asked:
        assert world.pictures[one.picture].held
        assert not any(world.pictures[i].held for i in (*one.own, *one.others))
        if one.titles[0] in members and one.titles[1] in members:
            assert one.picture in members[one.titles[0]] and one.picture not in members[one.titles[1]]


def test_without_a_graft_the_classifiers_stand_alone() -> None:
    figures = fine_sight(None, tiny_world(), 200, 0)
    assert KEY not in figures and figures[f"{KEY}.chance"] == 0.5 and figures[f"{KEY}.n"] > 0
    assert 0.5 < figures[f"{KEY}.probe"] <= 1 and 0.5 < figures[f"{KEY}.base"] <= 1


def test_a_graft_is_asked_the_same_questions() -> None:
    figures = fine_sight(tiny_graft(context=2048), tiny_world(), 12, 0)
    assert figures[f"{KEY}.n"] == 12 and 0 <= figures[f"{KEY}.low"] <= figures[KEY] <= figures[f"{KEY}.high"] <= 1
    assert 0 <= figures[f"{KEY}.blind"] <= 1
