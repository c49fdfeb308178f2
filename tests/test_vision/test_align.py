"""The learned space: training helps, resumes to the same weights, refuses what does not belong to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pinhole.errors import Corrupt, MissingArtefact, SpaceMismatch
from pinhole.retrieval.trials import watch
from pinhole.vision import heads
from pinhole.vision.align import Asked, Space, build_align, learned_vectors
from pinhole.vision.signals import read_signals
from pinhole.workspace import read_json
from toy_search import D_IMAGE, D_TEXT, Toy, encode, make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def trained(toy: Toy) -> Space:
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    return heads.fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space


def recall(space: Space, toy: Toy) -> float:
    """Share of held-out items among the ten nearest of "my KIND" that are of that kind, pictures alone."""
    _, held = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    rows = held.items[toy.features.has_image[held.items]]
    kinds = np.array([toy.kinds[toy.features.ids[row]] for row in rows])
    names = sorted(set(kinds))
    scores = space.query_vectors(encode([f"my {name}" for name in names])) @ space.seen_vectors(toy.features.image[rows]).T
    return float(np.mean([(kinds[np.argsort(-row)[:8]] == name).mean() for row, name in zip(scores, names, strict=True)]))


def test_training_starts_well_and_loses_nothing(toy: Toy, trained: Space) -> None:
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    settings = toy.config.align.model_copy(update={"steps": 1, "learning_rate": 1e-9})
    start = heads.fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), settings).space
    assert recall(start, toy) > 0.5  # guessing finds an eighth
    assert recall(trained, toy) >= recall(start, toy) - 0.02


def test_the_loss_falls(toy: Toy) -> None:
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    settings = toy.config.align.model_copy(update={"steps": 60, "learning_rate": 3e-3})
    curve = heads.fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), settings).curve
    assert set(curve[0]) == {"step", "loss", "title", "board", "walk", "query"}
    assert np.mean([point["loss"] for point in curve[-15:]]) < np.mean([point["loss"] for point in curve[:15]]) - 0.1


@pytest.mark.parametrize("settings", [{"weight_walk": 0.0}, {"popularity": 0.5, "hard": 16}, {"loss": "sigmoid", "hard": 16}])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    asked = toy.asked.of([query.key for query in part.queries])
    monkeypatch.setattr(heads, "CHECKPOINT_STEPS", 15)
    config = toy.config.align.model_copy(update=settings)

    def watch(space: Space) -> dict[str, float]:
        return {"query": float(space.weights["query.weight"][0, 0])}

    whole = heads.fit(toy.features, part, asked, config, watch=watch)
    assert {"title", "board", "query"} <= set(whole.curve[0]) and ("walk" in whole.curve[0]) == bool(config.weight_walk)

    class Killed(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 33:
            raise Killed

    with pytest.raises(Killed):
        heads.fit(toy.features, part, asked, config, folder=tmp_path, progress=stop, watch=watch)
    seen: list[int] = []
    resumed = heads.fit(toy.features, part, asked, config, folder=tmp_path, progress=lambda done, total: seen.append(done), watch=watch)
    assert seen[0] == 31  # from the checkpoint of step 30
    assert resumed.space.identity == whole.space.identity
    assert [point["step"] for point in resumed.curve] == list(range(1, 41))
    assert resumed.recalls == whole.recalls and [point["step"] for point in whole.recalls] == [0, 15, 30, 40]


def test_training_computes_on_one_thread_and_leaves_the_others_to_who_had_them(toy: Toy) -> None:
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    asked = toy.asked.of([query.key for query in part.queries])
    two_steps, given, seen = toy.config.align.model_copy(update={"steps": 2}), torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        heads.fit(toy.features, part, asked, two_steps, progress=lambda *_: seen.append(torch.get_num_threads()))
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(given)


def test_a_checkpoint_of_another_training_is_passed_over(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    asked = toy.asked.of([query.key for query in part.queries])
    monkeypatch.setattr(heads, "CHECKPOINT_STEPS", 2)
    short = toy.config.align.model_copy(update={"steps": 4})
    heads.fit(toy.features, part, asked, short, folder=tmp_path)
    seen: list[int] = []
    heads.fit(toy.features, part, asked, short.model_copy(update={"seed": 1}), folder=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [1, 2, 3, 4]


def test_the_stage_writes_what_readers_need(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinhole.vision.encoders.text_encoder", lambda spec: toy.text_encoder)
    watched = lambda inside, outside, asked: watch(toy.features, inside, outside, asked.of)  # noqa: E731
    figures = build_align(toy.catalogue, toy.features, toy.config, tmp_path, watch=watched)
    assert figures["steps"] == 40 and {"loss.first", "loss.last"} <= set(figures)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "align.png",
        "curve.json",
        "queries.json",
        "queries.npy",
        "recall.json",
        "space.json",
        "space.safetensors",
    ]
    assert Space.load(tmp_path).dim == 16 and np.array_equal(Asked.load(tmp_path).of(["boat"]), encode(["boat"]))
    with Image.open(tmp_path / "align.png") as drawn:
        assert drawn.width > 800
    recalls = read_json(tmp_path / "recall.json")
    assert [point["step"] for point in recalls] == [0, 40] and all(0 < point[name] <= 1 for point in recalls for name in ("query", "board"))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert Space.load(tmp_path).identity in card and f"| {recalls[0]['board']:.3f} | {recalls[1]['board']:.3f} |" in card


def test_no_title_reaches_the_content_embedding(toy: Toy, trained: Space) -> None:
    rows = np.flatnonzero(toy.features.has_image & toy.features.has_text)[:5]
    image = toy.features.image[rows]
    content = trained.content(image, trained.seen_vectors(image))
    assert content.shape == (5, D_IMAGE + 16) == (5, trained.content_dim)
    nothing = np.zeros((5, D_TEXT), np.float32)
    assert np.array_equal(content, trained.content(image, trained.item_vectors(image, np.ones(5, bool), nothing, np.zeros(5, bool))))
    assert np.allclose(np.linalg.norm(content[:, :D_IMAGE], axis=1), np.sqrt(D_IMAGE), atol=1e-3)


def test_an_item_without_picture_is_placed_by_its_title(toy: Toy, trained: Space) -> None:
    vectors = learned_vectors(trained, toy.features)
    row = int(np.flatnonzero(~toy.features.has_image)[0])
    assert np.linalg.norm(vectors[row]) == pytest.approx(1.0, abs=1e-4) if toy.features.has_text[row] else True
    assert np.allclose(np.linalg.norm(vectors[toy.features.has_image], axis=1), 1.0, atol=1e-4)


def test_spaces_are_told_apart(toy: Toy, trained: Space, tmp_path: Path) -> None:
    other = Space({**trained.weights, "query.bias": trained.weights["query.bias"] + 1}, trained.image_encoder, trained.text_encoder, trained.nested)
    with pytest.raises(SpaceMismatch, match=f"{other.identity}.*{trained.identity}"):
        trained.check(other.identity)
    elsewhere = Space(trained.weights, replace(trained.image_encoder, identity="x" * 16), trained.text_encoder, trained.nested)
    assert elsewhere.identity != trained.identity
    with pytest.raises(SpaceMismatch):
        elsewhere.check_features(toy.features)
    trained.save(tmp_path)
    assert Space.load(tmp_path).identity == trained.identity
    other.save(tmp_path / "other")
    (tmp_path / "space.safetensors").write_bytes((tmp_path / "other" / "space.safetensors").read_bytes())
    with pytest.raises(Corrupt):
        Space.load(tmp_path)
    with pytest.raises(MissingArtefact):
        Space.load(tmp_path / "nowhere")


@pytest.mark.parametrize("missing", ["boards", "queries", "titles"])
def test_a_signal_may_be_missing(tmp_path: Path, missing: str) -> None:
    toy = make_toy(tmp_path, n=96, align={"steps": 3})
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    if missing == "titles":
        toy.features.__dict__["has_text"] = np.zeros(len(toy.features), dtype=bool)
    else:
        part = replace(part, **{missing: ()})
    space = heads.fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space
    assert np.isfinite(space.seen_vectors(toy.features.image[:3])).all()
