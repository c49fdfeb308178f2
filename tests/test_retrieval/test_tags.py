"""What is guessed: learned from the training part alone, as sure as it says, apart from what the owner wrote, and of use."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pinhole import wiring
from pinhole.catalogue.split import Split
from pinhole.config import TagsConfig
from pinhole.errors import Corrupt, MissingArtefact, SpaceMismatch, UsageError
from pinhole.evaluation.tag_exams import calibration, tag_exams
from pinhole.retrieval.guesses import Guesses, as_table, build_tags
from pinhole.retrieval.tags import NEVER, confident, read_labels, values_of
from pinhole.stages import STAGES
from pinhole.vision.align import Space
from pinhole.vision.signals import read_signals
from toy_search import Toy, as_workspace, make_toy

DOC = (Path(__file__).parents[2] / "docs" / "tags.md").read_text(encoding="utf-8")


def silent(done: int, total: int) -> None:
    pass


def nobody(text: str) -> bool:
    return False


def made(tmp_path: Path, untold: int = 6, **changes: Any) -> tuple[Toy, Any, Space]:
    """A shop where every ``untold``-th item has neither kind nor keywords."""
    toy = make_toy(tmp_path / "toy", n=480, align={"steps": 20})
    ids = toy.features.ids
    titles = dict(zip(*(toy.catalogue.items(["id", "title"])[name].to_pylist() for name in ("id", "title")), strict=True))
    told = [at % untold != 0 for at in range(len(ids))]
    columns = {
        "id": ids,
        "title": [titles[id] for id in ids],
        "category": [toy.kinds[id] if known else None for id, known in zip(ids, told, strict=True)],
        "keywords": [[f"c{toy.colours[id]}", f"k{toy.kinds[id]}"] if known else None for id, known in zip(ids, told, strict=True)],
    }
    toy.catalogue.upsert("items", pa.table(columns))
    toy.config = toy.config.model_copy(update={"tags": TagsConfig(**{"least": 5, **changes})})
    workspace = as_workspace(toy)
    return toy, workspace, Space.load(workspace.need("align").path)


def built(toy: Toy, workspace: Any, space: Space) -> tuple[list[Any], dict[str, float], Guesses]:
    out = workspace.start("tags", "t")
    examined, figures = build_tags(toy.catalogue, toy.features, space, read_signals(toy.catalogue, toy.features), toy.config, out, silent)
    recipe = {"inputs": {"embed": "e", "align": "a"}}
    workspace.finish("tags", "t", {"recipe": recipe})
    return examined, figures, Guesses.load(workspace.need("tags").path, space.identity)


def test_values_are_short_texts() -> None:
    assert values_of(["red", "red", " big\tred ", 3, None, "x" * 41, "a\x1b[2Jb", "", {"a": 1}]) == ["red"]
    assert values_of("a  b") == ["a b"] and values_of(3.5) == [] and values_of(None) == [] and values_of(float("nan")) == []


def test_labels_are_common_values_of_training_items_that_no_exam_asks_for() -> None:
    said = [["a", "b"], ["a"], ["b", "c"], ["a", "c"], None]
    labels = read_labels("keywords", said, np.array([0, 1, 2]), lambda text: text == "b", TagsConfig(least=2))
    assert labels.values == ("a",) and labels.borne == [[0], [0], [], [0], []] and not labels.one
    assert labels.told.tolist() == [True, True, True, True, False]
    assert read_labels("category", ["x", "y", "x"], np.arange(3), nobody, TagsConfig(least=2)).one


def test_a_confidence_is_the_share_of_right_ones() -> None:
    draw = np.random.default_rng(0)
    chance = draw.random(20_000)
    said = np.stack([chance, chance + 0.1 * draw.standard_normal(20_000)], axis=1)
    right = draw.random(20_000) < chance
    sure = confident(said[:10_000], right[:10_000], 0.8)
    told = sure(said[10_000:])
    assert calibration(told, right[10_000:]) < 0.03
    kept = told >= sure.least
    assert kept.mean() > 0.3 and right[10_000:][kept].mean() == pytest.approx(0.8, abs=0.03)


def test_without_enough_right_ones_nothing_is_guessed() -> None:
    assert confident(np.zeros((100, 2)), np.zeros(100, dtype=bool), 0.8) is NEVER
    assert confident(np.zeros((100, 2)), np.ones(100, dtype=bool), 0.8)(np.ones((1, 2))) == pytest.approx(100 / 101)
    draw = np.random.default_rng(0)
    assert confident(draw.random((500, 2)), draw.random(500) < 0.3, 0.99).least > 1


def test_guessed_of_items_that_were_never_seen(tmp_path: Path) -> None:
    toy, workspace, space = made(tmp_path)
    examined, figures, guesses = built(toy, workspace, space)
    found = tag_exams(examined, "category")
    assert found["tags.precision"] > 0.65 and found["tags.coverage"] > 0.5 and found["tags.precision.n"] > 30
    assert found["tags.category.accuracy"] > 0.8 and 0 <= found["tags.calibration"] < 0.2
    split, held = Split(toy.config.catalogue), {toy.features.ids[row] for one in examined for row in one.rows}
    assert held and all(split.item({"id": id, "title": title}) for id, title in _titles(toy).items() if id in held)
    asked = {guess.value for id in toy.features.ids for guess in guesses.of(id)}
    assert not any(split.query(value) for value in asked)
    untold = [id for at, id in enumerate(toy.features.ids) if at % 6 == 0]
    named = {id: {guess.name: guess.value for guess in guesses.of(id)} for id in untold}
    right = [named[id]["category"] == toy.kinds[id] for id in untold if "category" in named[id]]
    assert len(right) > 20 and np.mean(right) > 0.7 and figures["guesses"] > 0


def _titles(toy: Toy) -> dict[str, str]:
    return dict(zip(*(toy.catalogue.items(["id", "title"])[name].to_pylist() for name in ("id", "title")), strict=True))


def test_what_the_owner_wrote_is_neither_changed_nor_repeated(tmp_path: Path) -> None:
    toy, workspace, space = made(tmp_path)
    before = toy.catalogue.fingerprint("items")
    _, _, guesses = built(toy, workspace, space)
    assert toy.catalogue.fingerprint("items") == before
    for at, id in enumerate(toy.features.ids):
        own = set() if at % 6 == 0 else {f"c{toy.colours[id]}", f"k{toy.kinds[id]}"}
        found = guesses.of(id)
        assert not own & {guess.value for guess in found if guess.name == "keywords"}
        assert not (own and any(guess.name == "category" for guess in found)), "of a kind that was given nothing is guessed"
        assert all(0 < guess.confidence <= 1 for guess in found) and found == sorted(found, key=lambda one: -one.confidence)


def test_found_filtered_and_shown(tmp_path: Path) -> None:
    toy, workspace, space = made(tmp_path)
    _, _, guesses = built(toy, workspace, space)
    index = workspace.need("index")
    for align, expected in (("a", True), ("another", False)):
        asks: Any = SimpleNamespace(manifest={"recipe": {"inputs": {"embed": "e", "align": align}}})
        assert (wiring.open_guesses(workspace, asks, space) is not None) == expected
    from pinhole.retrieval.index import GUESSED, Searcher

    given = (toy.catalogue, toy.features, space, index.path, toy.text_encoder, lambda: pytest.fail("no picture"))
    plain, searcher = Searcher(*given), Searcher(*given, guesses=guesses, guessed=0.5)
    id, word = next((id, guess.value) for id in toy.features.ids for guess in guesses.of(id) if guess.name == "keywords")
    hits = searcher.search(word, n=480)
    there = {hit.id: hit.parts.get(GUESSED, 0.0) for hit in hits}
    without = {hit.id: at for at, hit in enumerate(plain.search(word, n=480))}
    assert there[id] > 0 and all(hit.score == pytest.approx(sum(hit.parts.values()), abs=1e-3) for hit in hits)
    assert [hit.id for hit in hits].index(id) <= without[id]
    assert GUESSED not in searcher.search("no word of anybody")[0].parts

    bearing = {hit.id for hit in searcher.search(where=f"guess.keywords = '{word}'", n=480)}
    assert id in bearing and bearing == {
        one for one in toy.features.ids for guess in guesses.of(one) if (guess.name, guess.value) == ("keywords", word)
    }
    own = {hit.id for hit in searcher.search(where=f"keywords = '{word}'", n=480)}
    both = {hit.id for hit in searcher.search(where=f"keywords = '{word}' OR guess.keywords IN ('{word}', 'no such')", n=480)}
    assert own and both == own | bearing
    rest = {hit.id for hit in searcher.search(where=f"NOT (guess.keywords = '{word}')", n=480)}
    usable = toy.features.has_image | toy.features.has_text
    assert not rest & bearing and len(rest | bearing) == usable.sum()
    other = {hit.id for hit in searcher.search(where=f"guess.keywords <> '{word}'", n=480)}
    assert other and not other & bearing and all(guesses.of(one) for one in other)
    assert {hit.id for hit in searcher.search("boat", where=f"guess.keywords = '{word}'", n=480)} <= bearing
    with pytest.raises(UsageError, match=r"nothing is guessed under `keyword`.*keywords"):
        searcher.search(where="guess.keyword = 'x'")
    deep = "NOT (" * 700 + "guess.keywords = 'x'" + ")" * 700
    with pytest.raises(UsageError, match=r"nested too deeply|not valid SQL|characters"):
        searcher.search(where=deep)
    with pytest.raises(UsageError, match="not understood of a guess"):
        searcher.search(where="guess.keywords LIKE 'x%'")
    with pytest.raises(UsageError, match="pinhole build tags"):
        plain.search(where="guess.keywords = 'x'")


def test_a_value_of_several_words_needs_them_all() -> None:
    rows = [("a", "keywords", "red boat", 0.5), ("b", "keywords", "Boats", 1.0), ("b", "category", "boat", 0.4), ("b", "caption", "boat", 0.9)]
    guesses = Guesses(as_table(rows), ("keywords", "category"))
    assert [(one.name, one.value) for one in guesses.of("b")] == [("keywords", "Boats"), ("caption", "boat"), ("category", "boat")]
    assert guesses.of("") == guesses.of("aa") == guesses.of("c") == []
    found = guesses.scores("my boats", 10)
    assert set(found) == {"b"} and found["b"] == pytest.approx(np.log(11)), "a word that is guessed twice counts once"
    assert set(guesses.scores("boat, Red!", 10)) == {"a", "b"} and guesses.scores("red", 10) == {}
    assert guesses.scores("", 10) == {}


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    toy, workspace, space = made(tmp_path, untold=1)
    examined, figures, guesses = built(toy, workspace, space)
    assert examined == [] and figures["guesses"] == 0 and guesses.names == () and guesses.of(toy.features.ids[0]) == []
    assert tag_exams(examined, "category") == {"tags.precision.n": 0, "tags.coverage.n": 0, "tags.recall.n": 0}


def test_items_with_titles_alone_are_guessed_too(tmp_path: Path) -> None:
    toy, workspace, space = made(tmp_path, precision=0.6)
    toy.features.has_image[:] = False
    _, _, guesses = built(toy, workspace, space)
    kinds = [(guess.value, toy.kinds[id]) for id in toy.features.ids for guess in guesses.of(id) if guess.name == "category"]
    assert len(kinds) > 10 and np.mean([guessed == right for guessed, right in kinds]) > 0.5


def test_an_artefact_that_is_not_whole_or_of_another_space(tmp_path: Path) -> None:
    toy, workspace, space = made(tmp_path)
    built(toy, workspace, space)
    folder = workspace.need("tags").path
    with pytest.raises(SpaceMismatch, match="pinhole build"):
        Guesses.load(folder, "another")
    with pytest.raises(MissingArtefact, match="pinhole build tags"):
        Guesses.load(tmp_path, space.identity)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "guesses.parquet").write_bytes(b"PAR1")
    with pytest.raises(Corrupt, match=r"guesses\.parquet"):
        Guesses.load(broken, space.identity)


def test_the_same_twice(tmp_path: Path) -> None:
    toy, _, space = made(tmp_path)
    signals, files = read_signals(toy.catalogue, toy.features), []
    for name in ("one", "two"):
        out = tmp_path / name
        out.mkdir()
        build_tags(toy.catalogue, toy.features, space, signals, toy.config, out, silent)
        files.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert files[0] == files[1] and len(files[0]) == 2


def test_the_stage_stands_before_what_reads_it() -> None:
    names = list(STAGES)
    assert names.index("align") < names.index("tags") < names.index("evaluate") and "tags" in STAGES["evaluate"].needs


def test_the_page() -> None:
    for name, field in TagsConfig.model_fields.items():
        assert f"`{name}`" in DOC, f"docs/tags.md does not say what `{name}` is ({field.description})"
    assert re.search(r"guess\.keywords", DOC) and "text.guessed" in DOC
