"""Questions with known answers are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest

from pinhole.retrieval.scores import Bridge, BridgeShape, memory
from pinhole.retrieval.trials import draw_trials, without_twins, word_columns
from pinhole.vision.align import unit
from pinhole.vision.signals import read_signals
from toy_search import Toy, make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


def test_answers_come_from_the_tables(toy: Toy) -> None:
    _, held = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    trials = draw_trials(held, toy.features.has_image)
    ids = [toy.features.ids[row] for row in trials.gallery]
    assert trials.text and trials.like and trials.both
    for one in trials.text:
        words = one.text.split()
        for place in one.right:
            assert words[-1] in (toy.kinds[ids[place]], toy.colours[ids[place]])
    boards = {row["id"]: set(row["items"]) for row in toy.catalogue.boards().to_pylist()}
    for one in trials.like:
        assert ids[one.liked] in boards[one.board] and one.liked not in one.right
        assert {ids[place] for place in one.right} <= boards[one.board]
    for one in trials.both:
        assert one.text and one.liked >= 0 and one.liked not in one.right
    assert draw_trials(held, toy.features.has_image).both[0].right.tolist() == trials.both[0].right.tolist()


def test_twins_of_training_pictures_are_left_out() -> None:
    draw = np.random.default_rng(0)
    pictures = unit(draw.standard_normal((40, 16)))
    pictures[3] = unit(pictures[30] + 0.01 * pictures[31])
    assert without_twins(np.arange(10), np.arange(20, 40), pictures).tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_rare_words_count_more() -> None:
    columns = word_columns(["red boat", "nothing"], ["red boat", "a red house", "boat", "red", "red"])
    assert columns[0].argmax() == 0 and 0.5 < columns[0, 0] < 2
    assert columns[0, 2] > columns[0, 3] > 0 and not columns[1].any()


def test_a_bridge_stands_on_the_nearest_titles(toy: Toy) -> None:
    from toy_search import encode

    rows = np.flatnonzero(toy.features.has_text & toy.features.has_image)
    pictures = unit(toy.features.image[rows])
    found = Bridge(toy.features.text[rows], pictures, BridgeShape(5, 0.1))(encode(["boat"]))
    mean = {kind: unit(pictures[[toy.kinds[toy.features.ids[row]] == kind for row in rows]].mean(0)) for kind in ("boat", "lemon")}
    assert found[0] @ mean["boat"] > found[0] @ mean["lemon"]
    assert not Bridge(toy.features.text[:0], pictures[:0], BridgeShape())(encode(["boat"])).any()


def test_the_memory_knows_the_training_part_only(toy: Toy) -> None:
    part, held = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    learned = unit(np.random.default_rng(0).standard_normal((len(toy.features), 8)))
    known = memory(toy.features, part, toy.asked.of([query.key for query in part.queries]), learned)
    titled = [row for row in part.items if toy.features.has_text[row] and toy.features.has_image[row]]
    assert known.texts.shape[0] == known.vectors.shape[0] == len(titled) + len(part.queries)
    assert not any(np.array_equal(known.vectors[place], learned[row]) for row in held.items for place in range(len(titled)))
    changed = learned.copy()
    changed[held.items] = 0
    again = memory(toy.features, part, toy.asked.of([query.key for query in part.queries]), changed)
    assert np.array_equal(again.vectors, known.vectors)
