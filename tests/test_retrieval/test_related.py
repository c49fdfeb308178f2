"""What goes with an item: where walks come to, what lies near, and both; for items that nobody placed too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pinhole.catalogue.graph import Graph
from pinhole.catalogue.split import Split
from pinhole.config import GraphConfig
from pinhole.errors import UnknownItem, UsageError
from pinhole.retrieval.index import Searcher, build_index
from pinhole.retrieval.mates import draw_mates, known_gallery, mate_columns
from pinhole.retrieval.related import Related
from pinhole.retrieval.walks import NEAR, WALKS, Walks
from pinhole.retrieval.weights import KINDS, scorers
from pinhole.vision.align import Space
from pinhole.vision.heads import fit
from pinhole.vision.signals import read_signals
from toy_search import Toy, make_toy

CONFIG = GraphConfig(steps=4000)
PLACED, LONE = "boat/0000", "boat/0008"


@dataclass
class Shop:
    toy: Toy
    space: Space
    path: Path

    def related(self) -> Related:
        searcher = Searcher(self.toy.catalogue, self.toy.features, self.space, self.path, self.toy.text_encoder, lambda: pytest.fail("no picture"))
        return Related(searcher, Graph.load(self.path / "graph.safetensors"), CONFIG)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """``LONE`` is on no board and under no query; one board holds a boat and three lemons."""
    folder = tmp_path_factory.mktemp("related")
    toy = make_toy(folder, n=320)
    boards, queries = toy.catalogue.boards(), toy.catalogue.queries()
    without = [[id for id in items if id != LONE] for items in boards["items"].to_pylist()]
    toy.catalogue.upsert("boards", pa.table({"id": boards["id"], "title": boards["title"], "items": without}))
    toy.catalogue.delete(
        "queries", sorted({text for text, item in zip(*(queries[name].to_pylist() for name in ("text", "item")), strict=True) if item == LONE})
    )
    toy.catalogue.upsert("boards", pa.table({"id": ["trip"], "title": ["trip"], "items": [[PLACED, "lemon/0001", "lemon/0009", "lemon/0017"]]}))
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    space = fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space
    (folder / "index").mkdir()
    build_index(toy.catalogue, toy.features, space, toy.config, folder / "index", asked=toy.asked)
    return Shop(toy, space, folder / "index")


def test_walks_know_what_was_put_together_and_the_embedding_what_looks_alike(shop: Shop) -> None:
    related, trip = shop.related(), {"lemon/0001", "lemon/0009", "lemon/0017"}
    walked, near, both = ([hit.id for hit in related(PLACED, 40, by)] for by in ("graph", "embedding", "both"))
    assert trip <= set(walked) and not trip & set(near)
    for weight, found in ((50.0, trip), (0.0, set())):
        related.searcher.weights.kinds["placed"][WALKS] = weight
        assert trip & {hit.id for hit in related(PLACED, 40)} == found
    assert all(PLACED not in found and len(set(found)) == len(found) for found in (walked, near, both))
    assert walked == [hit.id for hit in related(PLACED, 40, "graph")]  # the same question, the same walks


def test_an_item_that_nobody_placed_walks_from_its_neighbours(shop: Shop) -> None:
    related = shop.related()
    row = related.searcher.row(LONE)
    assert not related.walks.placed(row) and related.walks.placed(related.searcher.row(PLACED))
    starts, weights = related.walks._starts(row, lambda: related._near(LONE, 100))
    assert len(starts) == NEAR and row not in starts and weights[0] == 1 == weights.max()
    hits = related(LONE, 10)
    assert [shop.toy.kinds[hit.id] for hit in hits].count("boat") >= 7
    assert any(hit.parts[WALKS] > 0 for hit in hits) and LONE not in {hit.id for hit in hits}


def test_parts_are_what_the_score_is_the_sum_of(shop: Shop) -> None:
    related = shop.related()
    for hit in related(PLACED, 5):
        assert set(hit.parts) == set(KINDS["placed"]) and hit.score == pytest.approx(sum(hit.parts.values()), abs=1e-4)
    assert all(set(hit.parts) == {WALKS} for hit in related(PLACED, 5, "graph"))


def test_what_was_deleted_is_not_walked_to(shop: Shop, tmp_path: Path) -> None:
    toy = make_toy(tmp_path, n=64)
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    space = fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space
    (tmp_path / "index").mkdir()
    build_index(toy.catalogue, toy.features, space, toy.config, tmp_path / "index", asked=toy.asked)
    small = Shop(toy, space, tmp_path / "index")
    gone = small.related()(PLACED, 1, "graph")[0].id
    toy.catalogue.delete("items", [gone])
    for by in ("graph", "both"):
        assert gone not in {hit.id for hit in small.related()(PLACED, 60, by)}


def test_what_is_refused(shop: Shop) -> None:
    with pytest.raises(UnknownItem):
        shop.related()("boat/zzzz")
    with pytest.raises(UsageError, match="no way `looks`"):
        shop.related()(PLACED, by="looks")


# -- the questions --------------------------------------------------------------------------------


def test_questions_ask_what_the_walks_were_not_shown(shop: Shop) -> None:
    toy, config = shop.toy, shop.toy.config.catalogue
    signals = read_signals(toy.catalogue, toy.features, CONFIG)
    inside, outside = signals.part(config)
    pictures = shop.space.picture(np.asarray(toy.features.image))
    drawn, gallery = draw_mates(toy.features, signals, config, pictures, 500), known_gallery(toy.features, inside)
    graph, split = inside.graph(), Split(config)
    members = {board.key: set(board.rows.tolist()) for board in signals.boards}
    assert drawn["placed"] and drawn["new"]
    for one in drawn["placed"]:
        assert split.board(one.board) and {one.row, *gallery[one.right].tolist()} <= members[one.board] and one.row not in gallery[one.right]
    for one in drawn["new"]:
        assert not split.board(one.board) and one.row in outside.items and graph.by_item.degree[one.row] == 0
        assert any(set(gallery[one.right].tolist()) & members[key] for key in members if one.row in members[key])
    assert not graph.by_item.degree[outside.items].any()
    assert len(draw_mates(toy.features, signals, config, pictures, 7)["new"]) == 7


def test_columns_of_questions_are_those_of_serving(shop: Shop) -> None:
    toy, related = shop.toy, shop.related()
    inside, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    whole, _ = scorers(toy.features, shop.space, inside, toy.asked.of([query.key for query in inside.queries]), related.searcher.weights.bridge)
    gallery = known_gallery(toy.features, inside)
    [asked] = draw_mates(toy.features, read_signals(toy.catalogue, toy.features), toy.config.catalogue, np.zeros((320, 1)), 1)["placed"]
    columns = mate_columns(whole, related.walks.graph, CONFIG, related.searcher.weights.array("like"), [asked], gallery)
    assert columns.shape == (len(KINDS["placed"]), 1, len(gallery))
    walked = Walks(related.walks.graph, CONFIG)(asked.row, lambda: pytest.fail("the item is placed"))
    assert columns[-1, 0].tolist() == walked[gallery].tolist()
