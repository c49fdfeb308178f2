"""Items that go with one item: what walks on the graph come to, what lies near in the embedding, or both.

Walks know what people put together, the embedding knows every picture; ``both`` is their weighted sum, with weights learned on
board-mates (``weights``), one set for an item that somebody placed and one for an item that nobody did. Knows nothing of who asks.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pinhole.catalogue.graph import Graph
from pinhole.config import GraphConfig
from pinhole.errors import UsageError
from pinhole.retrieval.index import Hit, Searcher
from pinhole.retrieval.walks import WALKS, Walks

WAYS = ("graph", "embedding", "both")
LISTED = 100  # candidates by embedding and by walks, at least


class Related:
    """``graph`` is the index's own: its rows are the searcher's."""

    def __init__(self, searcher: Searcher, graph: Graph, config: GraphConfig) -> None:
        self.searcher = searcher
        self.walks = Walks(graph, config)

    def __call__(self, id: str, n: int = 10, by: str = "both") -> list[Hit]:
        """The ``n`` best, best first; equal scores in the order of ids. Raises :class:`UnknownItem`, :class:`UsageError`."""
        if by not in WAYS:
            raise UsageError(f"no way `{by}` to relate items", where="--by", fix=", ".join(WAYS))
        if by == "embedding":
            return self.searcher.related(id, n)
        row, count = self.searcher.row(id), max(LISTED, n)
        near = cache(lambda: self._near(id, count))
        walked = self.walks(row, near)
        rows = np.flatnonzero(walked)
        rows = rows[self.searcher.shown(rows) & (rows != row)]
        rows = rows[np.argsort(-walked[rows], kind="stable")[:count]]
        if by == "graph":
            return self.searcher.ranked({WALKS: walked[rows]}, rows, n)
        kind = "placed" if self.walks.placed(row) else "new"
        rows = np.union1d(rows, near()[0])
        weight = self.searcher.weights.kinds[kind][WALKS]
        return self.searcher.ranked({**self.searcher.like_parts(row, rows, kind), WALKS: weight * walked[rows]}, rows, n)

    def _near(self, id: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        hits = self.searcher.related(id, count, arranged=False)
        return np.array([self.searcher.row(hit.id) for hit in hits], dtype=np.int64), np.array([hit.score for hit in hits])
