"""The exam of cold items: newer than the last ``align``, on no board, clicked by nobody. They must not sink below those that are known.

``search.cold``: held-out queries over the whole catalogue, every item known by its picture alone; right are items of both sorts, and recall@10
is counted for each sort apart: of the new ones as the figure itself, of the known ones as ``known``. ``base`` and ``base_known`` are the same
for the best way without training, which knows no new from old: what training costs new items is the difference of the two gaps. New are the newest
items by ``created_at`` where most items say when they were made (a space is trained on the older ones, ``by_time`` is 1), else the held-out ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pinhole.config import Config
from pinhole.evaluation.intervals import resampled
from pinhole.retrieval.trials import text_columns, without_twins
from pinhole.retrieval.weights import Weights, scorers
from pinhole.vision.align import Asked, Pictures, Space
from pinhole.vision.features import Features
from pinhole.vision.signals import Signals

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue

K = 10
KEY = "search.cold.recall@10"
DATED = 0.5  # share of items that must say when they were made


@dataclass
class Cold:
    """The exam over one split or several."""

    created: np.ndarray | None
    """(n,) :func:`read_created`'s."""
    recalls: dict[str, list[float]] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)
    items: list[int] = field(default_factory=list)

    def take(self, features: Features, signals: Signals, space: Space, weights: Weights, asked: Asked, config: Config) -> None:
        """One split more. Of items with dates there is one alone: what is newest is no matter of chance."""
        if self.created is not None and self.items:
            return
        part, held = signals.part(config.catalogue) if self.created is None else signals.by_time(self.created, config.catalogue)
        if self.created is not None:
            from pinhole.vision.heads import fit

            space = fit(features, part, asked.of([query.key for query in part.queries]), config.align).space
        _, blind = scorers(features, space, part, asked.of([query.key for query in part.queries]), weights.bridge)
        pictured = part.items[features.has_image[part.items]]
        new = without_twins(held.items[features.has_image[held.items]], pictured, Pictures(space, features))
        self.items.append(len(new))
        gallery = np.union1d(pictured, new)
        cold, known = (np.isin(gallery, rows) for rows in (new, pictured))
        both = [query for query in signals.asked_apart(config.catalogue) if np.isin(query.rows, new).any() and np.isin(query.rows, pictured).any()]
        if not both:
            return
        columns = text_columns(blind, asked.of([query.key for query in both]), gallery)[:2]
        tuned = np.einsum("cqn,c->qn", columns, weights.array("seen"))
        right = [np.isin(gallery, query.rows) for query in both]
        for name, scores, sort in (("", tuned, cold), (".known", tuned, known), (".base", columns[1], cold), (".base_known", columns[1], known)):
            self.recalls.setdefault(name, []).extend(_recall(row, rows & sort) for row, rows in zip(scores, right, strict=True))
        self.queries += [query.key for query in both]

    def figures(self, seed: int) -> dict[str, float]:
        """Under ``search.cold.recall@10``; ``ratio`` is new items' recall ÷ theirs without training, ``known.ratio`` the same of known ones."""
        if not self.queries:
            return {f"{KEY}.n": 0}
        drawn = dict(zip(self.recalls, resampled(np.array(list(self.recalls.values())), self.queries, seed), strict=True))
        found: dict[str, float] = {f"{KEY}.n": len(self.queries), f"{KEY}.items": sum(self.items), f"{KEY}.by_time": float(self.created is not None)}
        for name, values in self.recalls.items():
            found |= {f"{KEY}{name}": float(np.mean(values)), **_ends(f"{KEY}{name}", drawn[name])}
        for name, base in (("", ".base"), (".known", ".base_known")):
            if found[KEY + base] > 0:
                ratio = {f"{KEY}{name}.ratio": found[KEY + name] / found[KEY + base], f"{KEY}{name}.ratio.n": len(self.queries)}
                found |= ratio | _ends(f"{KEY}{name}.ratio", drawn[name] / np.maximum(drawn[base], 1e-9))
        return found


def _ends(key: str, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {f"{key}.low": float(low), f"{key}.high": float(high)}


def read_created(catalogue: Catalogue, ids: Sequence[str]) -> np.ndarray | None:
    """(n,) seconds since 1970, NaN where an item does not say; None where too few do."""
    rows = catalogue.items(["id", "created_at"])
    when = dict(zip(rows["id"].to_pylist(), rows["created_at"].to_pylist(), strict=True))
    stamps = [when.get(id) for id in ids]
    found = np.array([np.nan if stamp is None else stamp.timestamp() for stamp in stamps])
    return found if np.isfinite(found).mean() >= DATED else None


def _recall(scores: np.ndarray, right: np.ndarray) -> float:
    """Of one sort of right items, over the whole gallery."""
    first = np.argsort(-scores, kind="stable")[:K]
    return float(right[first].sum() / min(K, right.sum()))
