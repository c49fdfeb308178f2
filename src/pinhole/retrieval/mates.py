"""Questions about the board-mates of an item, among known items: what the weight of walks is learned on, and examined.

Two kinds. ``placed``: the item is known and so are all its mates, but the board is new: nothing was trained on it, no walk passes
it. ``new``: the board is known, the item is new, and its mates are the board's known items. Knows nothing of how scores are weighed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pinhole.catalogue.graph import Graph
from pinhole.catalogue.split import Split
from pinhole.config import CatalogueConfig, GraphConfig
from pinhole.retrieval.scores import Scorer
from pinhole.retrieval.trials import Asking, without_twins
from pinhole.retrieval.walks import Walks
from pinhole.vision.align import Pictures
from pinhole.vision.features import Features
from pinhole.vision.signals import Group, Signals

EACH_BOARD = 20  # items of a board that are asked about, at most


@dataclass(frozen=True)
class Mates:
    """One question: the item's row, and the positions of its mates in the gallery. ``board`` is what its interval is drawn by."""

    row: int
    right: np.ndarray
    board: str


def known_gallery(features: Features, inside: Signals, most: int = 0) -> np.ndarray:
    """Rows of a training part's items that have a picture, ascending; at most ``most`` of them, drawn evenly, if that is not 0."""
    rows = inside.items[features.has_image[inside.items]]
    if not most or len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(len(rows)).choice(rows, most, replace=False))


def draw_mates(
    features: Features, signals: Signals, config: CatalogueConfig, pictures: np.ndarray | Pictures, most: int, seed: int = 0, most_items: int = 0
) -> dict[str, list[Mates]]:
    """At most ``most`` questions of each kind that the split ``config`` asks; the gallery is :func:`known_gallery` of its training part, of at most
    ``most_items``.

    New items that nearly repeat a known picture (n, width; of length 1) are not asked about.
    """
    inside, outside = signals.part(config)
    gallery = known_gallery(features, inside, most_items)
    place = np.full(len(features), -1)
    place[gallery] = np.arange(len(gallery))
    fresh = np.zeros(len(features), dtype=bool)
    fresh[without_twins(outside.items[features.has_image[outside.items]], gallery, pictures)] = True
    draw, split = np.random.default_rng(seed), Split(config)
    placed: list[Mates] = []
    known: dict[int, list[Group]] = {}
    for board in signals.boards:
        members = board.among(place >= 0).rows
        if split.board(board.key):
            asked = draw.permutation(members)[:EACH_BOARD] if len(members) > 1 else members[:0]
            placed += [Mates(int(row), place[members[members != row]], board.key) for row in asked]
        elif len(members) > 1:
            for row in draw.permutation(board.among(fresh).rows)[:EACH_BOARD]:
                known.setdefault(int(row), []).append(Group(board.key, members))
    new = [Mates(row, np.unique(place[np.concatenate([one.rows for one in boards])]), boards[0].key) for row, boards in known.items()]
    return {"placed": _some(placed, most, draw), "new": _some(new, most, draw)}


def askings(asked: Sequence[Mates], gallery: np.ndarray) -> list[Asking]:
    """The same as questions about the gallery; the item itself, where it lies in it, is the liked one."""
    place = {int(row): number for number, row in enumerate(gallery)}
    return [Asking(one.right, liked=place.get(one.row, -1), board=one.board) for one in asked]


def mate_columns(scorer: Scorer, graph: Graph, config: GraphConfig, like: np.ndarray, asked: Sequence[Mates], gallery: np.ndarray) -> np.ndarray:
    """(like columns and walks, q, gallery). ``like`` are the like columns' weights, by which a placed item is near to a new one.

    An item that is asked about may be in the gallery: leave it out before ranking.
    """
    rows = np.array([one.row for one in asked], dtype=np.int64)
    block = scorer.block(gallery)
    columns = scorer.standardised(scorer.items(rows), block, block)  # (columns, q, gallery)
    fused = dict(zip(rows.tolist(), np.einsum("cqn,c->qn", columns, like), strict=True))

    def near(row: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(-fused[row], kind="stable")
        return gallery[order], fused[row][order]

    walks = Walks(graph, config)
    walked = np.stack([walks(row, partial(near, row))[gallery] for row in rows.tolist()]) if len(rows) else np.zeros((0, len(gallery)), np.float32)
    return np.concatenate([columns, walked[None]])


def _some(asked: list[Mates], most: int, draw: np.random.Generator) -> list[Mates]:
    return [asked[place] for place in sorted(draw.permutation(len(asked))[:most].tolist())]
