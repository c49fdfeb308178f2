"""Searching a small shop: what is found, what is refused, and that no path gives another answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from pinhole.errors import BadImage, MissingArtefact, SpaceMismatch, UnknownItem, UsageError
from pinhole.retrieval import index as index_module
from pinhole.retrieval.index import Hit, Searcher, build_index
from pinhole.vision.align import Space
from pinhole.vision.encoders.base import ImageEncoder
from pinhole.vision.heads import fit
from pinhole.vision.images import Recipe
from pinhole.vision.signals import read_signals
from toy_search import D_IMAGE, Toy, make_toy


@dataclass
class Shop:
    toy: Toy
    space: Space
    path: Path
    figures: dict[str, float]

    def searcher(self, **changed: Any) -> Searcher:
        given = {"features": self.toy.features, "space": self.space, "path": self.path, "image_encoder": encoder} | changed
        return Searcher(self.toy.catalogue, given["features"], given["space"], given["path"], self.toy.text_encoder, given["image_encoder"])


def encoder() -> ImageEncoder:
    """A picture of one grey is a vector of that number."""
    return ImageEncoder(
        "toy:looks",
        "i" * 16,
        Recipe(8, (0.0,) * 3, (1.0,) * 3),
        D_IMAGE,
        lambda pixels: np.full((len(pixels), D_IMAGE), float(pixels.mean()), np.float32),
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    toy = make_toy(folder, n=480)
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    space = fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space
    (folder / "index").mkdir()
    return Shop(toy, space, folder / "index", build_index(toy.catalogue, toy.features, space, toy.config, folder / "index", asked=toy.asked))


def kinds(hits: list[Hit], shop: Shop) -> list[str]:
    return [shop.toy.kinds[hit.id] for hit in hits]


def test_words_find_their_kind(shop: Shop) -> None:
    searcher = shop.searcher()
    for kind in ("boat", "guitar"):
        assert kinds(searcher.search(kind), shop).count(kind) >= 9
    assert set(searcher.search("boat")[0].parts) == {"text.learned", "text.picture", "text.title", "text.words"}


def test_parts_sum_to_the_score_and_scores_fall(shop: Shop) -> None:
    hits = shop.searcher().search("red boat", like=[shop.toy.features.ids[3]], unlike=[shop.toy.features.ids[9]], n=30)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(sum(hit.parts.values()) == pytest.approx(hit.score, abs=1e-3) for hit in hits)


def test_related_items_are_alike_and_leave_the_item_out(shop: Shop) -> None:
    hits = shop.searcher().related("boat/0000", 12)
    assert len(hits) == 12 and "boat/0000" not in {hit.id for hit in hits}
    assert kinds(hits, shop).count("boat") >= 9
    assert hits == shop.searcher().search(like=["boat/0000"], n=12)


def test_likes_and_words_compose(shop: Shop) -> None:
    searcher = shop.searcher()
    colour = next(colour for colour in ("red", "blue", "green") if colour != shop.toy.colours["boat/0000"])
    hits = searcher.search(f"{colour} boat", like=["boat/0000"], n=8)
    assert kinds(hits, shop).count("boat") >= 7
    assert sum(shop.toy.colours[hit.id] == colour for hit in hits) >= 4
    away = searcher.search("red", unlike=["boat/0000"], n=20)
    assert kinds(away, shop).count("boat") <= kinds(searcher.search("red", n=20), shop).count("boat")


def test_a_filter_keeps_only_what_it_says(shop: Shop) -> None:
    searcher = shop.searcher()
    assert set(kinds(searcher.search("red", where="category = 'horse'", n=20), shop)) == {"horse"}
    assert searcher.search("red", where="category = 'nothing'") == []
    alone = searcher.search(where="category = 'horse'", n=5)
    assert [hit.id for hit in alone] == sorted(hit.id for hit in alone) and {hit.score for hit in alone} == {0.0}


def test_pictures_by_bytes_and_by_vector(shop: Shop, tmp_path: Path) -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (9, 9), (120, 120, 120)).save(file, "PNG")
    searcher = shop.searcher()
    assert len(searcher.search(like=[file.getvalue()])) == 10
    row = shop.toy.features.row("lemon/0001")
    assert searcher.search(like=[np.asarray(shop.toy.features.image[row])], n=1)[0].id == "lemon/0001"
    with pytest.raises(BadImage):
        searcher.search(like=[b"no picture"])
    with pytest.raises(UsageError, match="shape"):
        searcher.search(like=[np.zeros(3)])


@pytest.mark.parametrize("flat_below", [10_000, 10])
def test_candidates_give_what_a_scan_of_all_gives(shop: Shop, flat_below: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.json").write_bytes((shop.path / "weights.json").read_bytes())
    config = shop.toy.config.model_copy(update={"index": shop.toy.config.index.model_copy(update={"flat_below": flat_below})})
    build_index(shop.toy.catalogue, shop.toy.features, shop.space, config, tmp_path, asked=shop.toy.asked)
    whole = shop.searcher()
    monkeypatch.setattr(index_module, "EXACT", 20)
    monkeypatch.setattr(index_module, "CANDIDATES", 120)
    ask: list[Callable[[Searcher], list[Hit]]] = [
        lambda s: s.search("blue train"),
        lambda s: s.search("house", like=["house/0004"], unlike=["boat/0000"]),
        lambda s: s.search("horse", where="category in ('horse', 'boat')"),
        lambda s: s.related("flower/0006"),
    ]
    for one in ask:
        few = [hit.id for hit in one(shop.searcher(path=tmp_path))]
        monkeypatch.setattr(index_module, "EXACT", 8192)
        every = [hit.id for hit in one(whole)]
        monkeypatch.setattr(index_module, "EXACT", 20)
        assert len(set(few) & set(every)) >= 9 and few[0] == every[0]


def test_the_same_question_has_the_same_answer_in_every_thread(shop: Shop) -> None:
    searcher, found = shop.searcher(), list[Any]()
    threads = [Thread(target=lambda: found.append(searcher.search("green arrow", like=["arrow/0003"]))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(one == found[0] for one in found)


def test_what_is_refused(shop: Shop) -> None:
    searcher = shop.searcher()
    with pytest.raises(UnknownItem, match="boat/0"):
        searcher.search(like=["boat/000"])
    with pytest.raises(UnknownItem):
        searcher.related("nothing at all")
    for empty in ("", "   "):
        with pytest.raises(UsageError, match="nothing to search"):
            searcher.search(empty)
    with pytest.raises(UsageError, match="0 results"):
        searcher.search("boat", n=0)
    with pytest.raises(UsageError):
        searcher.search("boat", where="no such thing =")
    assert len(searcher.search("boat " * 5000)) == 10


def test_deleted_items_are_found_no_more(tmp_path: Path) -> None:
    toy = make_toy(tmp_path, n=96, align={"steps": 2})
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    space = fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space
    (tmp_path / "index").mkdir()
    build_index(toy.catalogue, toy.features, space, toy.config, tmp_path / "index", asked=toy.asked)
    shop = Shop(toy, space, tmp_path / "index", {})
    first = shop.searcher().search("boat")[0].id
    toy.catalogue.delete("items", [first])
    assert first not in {hit.id for hit in shop.searcher().search("boat", n=90)}
    with pytest.raises(UnknownItem):
        shop.searcher().related(first)


def test_spaces_do_not_mix(shop: Shop, tmp_path: Path) -> None:
    other = Space(
        {**shop.space.weights, "query.bias": shop.space.weights["query.bias"] + 1},
        shop.space.image_encoder,
        shop.space.text_encoder,
        shop.space.nested,
    )
    with pytest.raises(SpaceMismatch, match=f"{shop.space.identity}.*{other.identity}"):
        shop.searcher(space=other)
    with pytest.raises(SpaceMismatch, match="other items"):
        shop.searcher(features=make_toy(tmp_path, n=48).features)
    with pytest.raises(SpaceMismatch, match="z" * 16):
        wrong = encoder()
        shop.searcher(image_encoder=lambda: ImageEncoder(wrong.spec, "z" * 16, wrong.recipe, wrong.dim, wrong.forward)).search(like=[b"x"])
    with pytest.raises(MissingArtefact, match="pinhole build index"):
        shop.searcher(path=tmp_path)


def test_a_killed_build_ends_with_the_index_of_an_undisturbed_one(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinhole.vision.heads.CHECKPOINT_STEPS", 10)

    class Killed(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 65:
            raise Killed

    def build(progress: Callable[[int, int], None]) -> None:
        build_index(shop.toy.catalogue, shop.toy.features, shop.space, shop.toy.config, tmp_path, progress, asked=shop.toy.asked)

    with pytest.raises(Killed):
        build(stop)
    seen: list[int] = []
    build(lambda done, total: seen.append(done))
    assert seen[0] == 61  # fold 0 is there whole, fold 1 goes on from its step 20
    files = sorted(path.name for path in shop.path.iterdir())
    assert (
        files
        == ["base.parquet", "graph.safetensors", "index.json", "learned.faiss", "memory.safetensors", "titles.faiss", "weights.json"]
        == sorted(path.name for path in tmp_path.iterdir())
    )
    assert all((tmp_path / name).read_bytes() == (shop.path / name).read_bytes() for name in files)


def test_weights_were_learned_inside_the_training_part(shop: Shop) -> None:
    weights = {name: value for name, value in shop.figures.items() if name.startswith("weight.")}
    assert weights and all(value >= 0 for value in weights.values())
    assert shop.figures["questions.like"] > 40 and shop.figures["items"] == 479  # one has neither picture nor title
    assert len(set(shop.searcher().weights.kinds["like"].values())) > 1
