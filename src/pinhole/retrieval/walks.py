"""Walks as a column of scores: how often walks from an item come to each other one.

From an item that no board, query or user holds there is no walk. Then walks start at the placed items nearest to it, the nearer
the more of them: what people put together speaks for an item from its first day. Knows nothing of other columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pinhole.catalogue.graph import Graph
from pinhole.config import GraphConfig

WALKS = "graph.walks"
NEAR = 10  # placed items that stand for one that is not
COOL = 0.5  # how fast their weight falls with their score, in deviations of it

Near = Callable[[], tuple[np.ndarray, np.ndarray]]
"""The rows that lie nearest to an item, best first, and their scores in deviations: asked only where nobody placed it."""


class Walks:
    """``graph`` and how it is walked. The same item always has the same walks."""

    def __init__(self, graph: Graph, config: GraphConfig) -> None:
        self.graph, self.config = graph, config

    def __call__(self, row: int, near: Near) -> np.ndarray:
        """(items,) float32 from 0 to about 1: the logarithm of visits, over that of all steps."""
        column = np.zeros(self.graph.items, np.float32)
        starts, weights = self._starts(row, near)
        if len(starts):
            found, scores = self.graph.related(starts, self.config, np.random.default_rng(row), weights, keep_starts=not self.placed(row))
            column[found] = np.log1p(scores) / np.log1p(self.config.steps)
        return column

    def _starts(self, row: int, near: Near) -> tuple[np.ndarray, np.ndarray]:
        if self.placed(row):
            return np.array([row]), np.ones(1)
        rows, scores = near()
        kept = np.flatnonzero(self.graph.by_item.degree[rows])[:NEAR]
        return rows[kept], np.exp((scores[kept] - scores[kept[:1]]) / COOL)

    def placed(self, row: int) -> bool:
        """Something holds the item."""
        return bool(self.graph.by_item.degree[row])
