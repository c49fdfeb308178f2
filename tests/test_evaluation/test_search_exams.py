"""The search exams on a small shop: complete figures, nothing held out in training, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pinhole.evaluation.cold_exams import Cold, read_created
from pinhole.evaluation.search_exams import Results, search_exams
from pinhole.retrieval.trials import Asking
from pinhole.retrieval.weights import Weights
from pinhole.vision.heads import fit
from pinhole.vision.signals import read_signals
from toy_search import Toy, make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"), n=480, align={"steps": 15})


@pytest.fixture(scope="module")
def figures(toy: Toy) -> dict[str, float]:
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    space = fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space
    return search_exams(toy.catalogue, toy.features, space, Weights(), toy.asked, toy.config)


@pytest.mark.parametrize(
    "exam",
    [
        "search.text_to_image.recall@10",
        "search.fine.recall@10",
        "boards.recall@10",
        "search.with_titles.recall@10",
        "related.placed.recall@10",
        "related.new.recall@10",
    ],
)
def test_every_figure_has_its_company(figures: dict[str, float], exam: str) -> None:
    for name in ("tuned", "base", "learned"):
        assert figures[f"{exam}.{name}.low"] <= figures[f"{exam}.{name}"] <= figures[f"{exam}.{name}.high"]
        assert figures[f"{exam}.{name}.n"] == figures[f"{exam}.n"] > 0
    assert figures[f"{exam}.ratio.low"] <= figures[f"{exam}.ratio"] <= figures[f"{exam}.ratio.high"]
    assert 0 < figures[f"{exam}.chance"] < figures[f"{exam}.tuned"]
    assert 0 < figures[f"{exam}.weight"] < 1
    assert all(isinstance(value, int | float) for value in figures.values())


def test_new_items_are_asked_for_among_known_ones(toy: Toy, figures: dict[str, float]) -> None:
    key = "search.cold.recall@10"
    assert figures[f"{key}.n"] > 0 and figures[f"{key}.items"] > 20 and figures[f"{key}.by_time"] == 0
    for way in ("", ".known", ".base", ".base_known"):
        assert 0 <= figures[f"{key}{way}.low"] <= figures[f"{key}{way}"] <= figures[f"{key}{way}.high"] <= 1
    assert figures[key] > 0 and figures[f"{key}.known"] > 0
    for way, base in (("", ".base"), (".known", ".base_known")):
        assert figures[f"{key}{way}.ratio"] == pytest.approx(figures[f"{key}{way}"] / figures[f"{key}{base}"])
        assert figures[f"{key}{way}.ratio.low"] <= figures[f"{key}{way}.ratio"] <= figures[f"{key}{way}.ratio.high"]


def test_the_newest_by_date_are_new_where_items_have_one(toy: Toy) -> None:
    signals = read_signals(toy.catalogue, toy.features)
    part, _ = signals.part(toy.config.catalogue)
    space = fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space
    created = np.arange(len(toy.features), dtype=float)[::-1].copy()
    created[:9] = np.nan  # who says nothing is not new
    before, newest = signals.by_time(created, toy.config.catalogue)
    assert not set(before.items) & set(newest.items) and not set(newest.items) & set(range(9))
    assert np.nanmin(created[newest.items]) > np.nanmax(created[before.items])
    assert not {query.key for query in before.queries} & {query.key for query in signals.asked_apart(toy.config.catalogue)}
    exam = Cold(created)
    for split in (0, 1):  # the newest are the newest, whatever the split
        settings = toy.config.catalogue.model_copy(update={"split": split})
        exam.take(toy.features, signals, space, Weights(), toy.asked, toy.config.model_copy(update={"catalogue": settings}))
    figures = exam.figures(0)
    assert len(exam.items) == 1
    assert figures["search.cold.recall@10.by_time"] == 1 and figures["search.cold.recall@10.n"] > 0
    assert read_created(toy.catalogue, toy.features.ids) is None


def test_more_splits_more_trials(toy: Toy, figures: dict[str, float]) -> None:
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    space = fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space
    config = toy.config.model_copy(update={"evaluate": toy.config.evaluate.model_copy(update={"splits": 2})})
    seen: list[tuple[int, int]] = []
    both = search_exams(toy.catalogue, toy.features, space, Weights(), toy.asked, config, lambda done, total: seen.append((done, total)))
    assert both["search.splits"] == 2 and seen
    assert both["boards.recall@10.n"] > figures["boards.recall@10.n"]


def test_the_ratio_is_resampled_by_cluster() -> None:
    draw = np.random.default_rng(0)
    asked = [Asking(np.array([1]), text=f"q{number % 50}") for number in range(400)]
    base = draw.random(400) * 0.4
    results = Results({"tuned": (base + 0.1).tolist(), "base": base.tolist()}, [0.1] * 400, [one.text for one in asked], [0.5])
    figures = results.figures("x", seed=0)
    assert figures["x.clusters"] == 50 and figures["x.n"] == 400
    assert figures["x.ratio"] == pytest.approx((base + 0.1).mean() / base.mean())
    assert figures["x.ratio.low"] < figures["x.ratio"] < figures["x.ratio.high"]
    assert results.figures("x", seed=0) == figures
    assert Results().figures("y", seed=0) == {"y.n": 0}


def test_chance_is_what_guessing_finds() -> None:
    draw, asked = np.random.default_rng(0), [Asking(np.arange(12)), Asking(np.array([3, 4]))]
    results = Results()
    results.add(asked, 60, 0.5, tuned=np.zeros((2, 60)), base=np.zeros((2, 60)))
    guessed = Results()
    for _ in range(400):
        guessed.add(asked, 60, 0.5, tuned=draw.random((2, 60)))
    assert np.mean(guessed.recalls["tuned"]) == pytest.approx(np.mean(results.chance), rel=0.1)


def test_nothing_held_out_is_asked_twice(toy: Toy, tmp_path: Path) -> None:
    part, held = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    assert not {query.key for query in part.queries} & {query.key for query in held.queries}
    assert not {board.key for board in part.boards} & {board.key for board in held.boards}
