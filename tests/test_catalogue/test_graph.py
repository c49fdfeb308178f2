"""Random walks: to where and how often is what the transition matrix says; what must not be reached is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pinhole.catalogue.graph import Edges, Graph, Half, read_edges
from pinhole.catalogue.store import Catalogue
from pinhole.config import GraphConfig
from pinhole.errors import Corrupt, MissingArtefact

CONFIG = GraphConfig(common_least=100, least_users=2)


def edges(kind: str, *groups: list[int], weights: list[list[float]] | None = None) -> Edges:
    contexts = np.concatenate([[number] * len(group) for number, group in enumerate(groups)]).astype(np.int32)
    flat = None if weights is None else np.concatenate(weights).astype(np.float32)
    return Edges(kind, contexts, np.concatenate(groups).astype(np.int32), flat)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def reached(graph: Graph, start: int, steps: int = 200_000, restart: float = 0.5) -> dict[int, float]:
    """Share of all steps that end at each item, the start left out."""
    visits = graph.walk(np.array([start]), np.array([steps]), draw(), restart)
    return {int(item): count / visits.steps for item, count in zip(visits.items, visits.counts, strict=True)}


def expected(weights: np.ndarray, start: int, rounds: int, restart: float) -> np.ndarray:
    """The mean over rounds of where a walker is, by the matrix of links (contexts, items) itself."""
    hop = (weights / weights.sum(0)).T @ (weights / weights.sum(1, keepdims=True))  # item → context → item
    at = np.eye(len(hop))[start]
    total = np.zeros(len(hop))
    for _ in range(rounds):
        at = (restart * np.eye(len(hop))[start] + (1 - restart) * at) @ hop
        total += at
    return total / rounds


@pytest.mark.parametrize("weighed", [False, True])
def test_visits_are_what_the_transition_matrix_says(weighed: bool) -> None:
    links = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 1, 1]], dtype=float)
    if weighed:
        links *= np.array([[1, 3, 2, 0, 0], [0, 1, 0, 5, 0], [0, 0, 4, 1, 2]])
    contexts, items = np.nonzero(links)
    made = Edges("board", contexts.astype(np.int32), items.astype(np.int32), links[contexts, items].astype(np.float32) if weighed else None)
    graph = Graph.of(5, [made], CONFIG)
    assert (graph.items, graph.contexts, graph.edges) == (5, 3, 8)
    wanted, found = expected(links, 0, 200, 0.5), reached(graph, 0)
    assert [found.get(item, 0.0) for item in range(1, 5)] == pytest.approx(wanted[1:].tolist(), abs=0.004)


def test_a_kind_weighs_what_it_is_given() -> None:
    links = [edges("board", [0, 1]), edges("query", [0, 2])]
    even = reached(Graph.of(3, links, CONFIG), 0, restart=0.999)
    boards = reached(Graph.of(3, links, CONFIG.model_copy(update={"boards": 4.0})), 0, restart=0.999)
    assert even[1] == pytest.approx(even[2], abs=0.01) and boards[1] == pytest.approx(4 * boards[2], rel=0.05)
    assert 2 not in reached(Graph.of(3, links, CONFIG.model_copy(update={"queries": 0.0})), 0)


def test_rejection_ends_for_a_light_edge_among_heavy_ones() -> None:
    half = Half.of(np.zeros(3, np.int32), np.array([7, 8, 9]), np.array([1e-6, 1.0, 1.0]), 1)
    found = Counter(half.hop(np.zeros(100_000, np.int64), draw()).tolist())
    assert found[8] == pytest.approx(50_000, rel=0.03) and found[7] == pytest.approx(200, abs=80)  # no edge weighs less than 1/255 of the largest


def test_contexts_that_say_nothing_are_left_out() -> None:
    everything, few = list(range(300)), CONFIG.model_copy(update={"common": 0.5})
    graph = Graph.of(300, [edges("board", everything, [0, 1], [5])], few)
    assert graph.contexts == 1 and set(reached(graph, 0)) == {1} and not reached(graph, 5)
    assert Graph.of(300, [edges("board", everything)], CONFIG.model_copy(update={"common_least": 300})).contexts == 1


def test_an_item_reached_from_two_starts_beats_one_reached_twice_from_one() -> None:
    graph = Graph.of(6, [edges("board", [0, 2], [1, 2], [0, 3], [0, 3], [1, 4], [1, 5])], CONFIG)
    rows, scores = graph.related(np.array([0, 1]), CONFIG, draw())
    assert rows[0] == 2 and set(rows.tolist()) == {2, 3, 4, 5} and (np.diff(scores) <= 0).all()


def test_popular_starts_get_more_steps_but_not_in_proportion() -> None:
    graph = Graph.of(40, [edges("board", *([0, other] for other in range(1, 31)), [31, 32])], CONFIG)
    many, one = graph.shares(np.array([0, 31]), np.ones(2)).tolist()
    assert 1 < many / one < 30 and many + one == pytest.approx(1)


def test_walks_stop_early_when_enough_was_seen() -> None:
    graph = Graph.of(50, [edges("board", list(range(50)))], CONFIG)
    whole = graph.walk(np.array([0]), np.array([80_000]), draw())
    short = graph.walk(np.array([0]), np.array([80_000]), draw(), enough=(10, 4))
    assert whole.steps == 80_000 and short.steps < 20_000 and (short.counts >= 4).sum() >= 10


def test_nothing_holds_an_item() -> None:
    graph = Graph.of(4, [edges("board", [0, 1])], CONFIG)
    assert len(graph.related(np.array([3]), CONFIG, draw())[0]) == 0
    assert graph.related(np.array([3, 0]), CONFIG, draw())[0].tolist() == [1]
    assert sorted(graph.related(np.array([0, 1]), CONFIG, draw(), keep_starts=True)[0].tolist()) == [0, 1]
    empty = Graph.of(2, [], CONFIG)
    assert len(empty.related(np.array([0]), CONFIG, draw())[0]) == empty.contexts == empty.edges == 0


def test_neighbours_of_many_are_those_of_each() -> None:
    graph = Graph.of(6, [edges("board", [0, 1, 2], [2, 3], [4, 5])], CONFIG)
    rows, shares = graph.neighbours(np.array([0, 3, 4]), 2, 4000, seed=1)
    assert set(rows[0].tolist()) == {1, 2} and rows[1, 0] == 2 and rows[2].tolist() == [5, -1]
    assert shares[2].tolist() == [1.0, 0.0] and (shares[0, 0] >= shares[0, 1]) and shares.sum(1).max() <= 1.0 + 1e-6
    again, _ = graph.neighbours(np.array([0, 3, 4]), 2, 4000, seed=1)
    assert (rows == again).all()


def test_saved_is_in_memory(tmp_path: Path) -> None:
    made = edges("query", [0, 1, 2], [2, 3], weights=[[1.0, 2.0, 3.0], [1.0, 1.0]])
    graph = Graph.of(4, [made], CONFIG)
    graph.save(tmp_path / "graph.safetensors")
    loaded = Graph.load(tmp_path / "graph.safetensors")
    assert reached(loaded, 0, 5000) == reached(graph, 0, 5000)
    with pytest.raises(MissingArtefact, match="no graph"):
        Graph.load(tmp_path / "none")
    (tmp_path / "graph.safetensors").write_bytes(b"no")
    with pytest.raises(Corrupt, match="cannot be read"):
        Graph.load(tmp_path / "graph.safetensors")


# -- from the tables ------------------------------------------------------------------------------

IDS = ["a", "b", "c", "d"]


@pytest.fixture
def shop(tmp_path: Path) -> Catalogue:
    catalogue = Catalogue(tmp_path / "tables")
    catalogue.upsert("items", pa.table({"id": IDS}))
    return catalogue


def events(*rows: tuple[str, str, str]) -> pa.Table:
    return pa.table({"user": [row[0] for row in rows], "item": [row[1] for row in rows], "action": [row[2] for row in rows]})


def reaches(catalogue: Catalogue, start: str, **settings: Any) -> set[str]:
    config = CONFIG.model_copy(update=settings)
    graph = Graph.of(len(IDS), read_edges(catalogue, IDS, config), config)
    return {IDS[item] for item in reached(graph, IDS.index(start), 4000)}


def test_boards_and_queries_link_items_that_are_there(shop: Catalogue) -> None:
    boards = {"id": ["x", "secret"], "items": [["a", "b"], ["a", "d"]], "private": [False, True]}
    shop.upsert("boards", pa.table(boards))
    shop.upsert("queries", pa.table({"text": ["red", "red", "lone"], "item": ["b", "c", "d"], "count": [5, 1, 9]}))
    assert reaches(shop, "a") == {"b", "c"}  # d is only on a private board, and alone under its query
    assert reaches(shop, "a", queries=0.0) == {"b"}
    [held, asked] = read_edges(shop, ["b", "zzz"], CONFIG)
    assert held.items.tolist() == [0] and asked.items.tolist() == [0] and asked.weights is not None


def test_one_users_history_cannot_be_read_from_a_walk(shop: Catalogue) -> None:
    shop.upsert(
        "events", events(("u", "a", "view"), ("u", "b", "save"), ("v", "a", "view"), ("v", "c", "view"), ("w", "c", "view"), ("u", "d", "view"))
    )
    assert reaches(shop, "a") == {"c"}  # b and d were met by one user alone
    assert reaches(shop, "a", least_users=1) == {"b", "c", "d"}
    assert reaches(shop, "b") == set()


def test_what_was_hidden_does_not_link(shop: Catalogue) -> None:
    shop.upsert("events", events(*((user, item, "hide" if item == "b" else "view") for user in "uvw" for item in "abc")))
    assert reaches(shop, "a") == {"c"}
    assert reaches(shop, "a", ignored_actions=()) == {"b", "c"}
