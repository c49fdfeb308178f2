"""The search and board exams: held-out queries and boards, held-out items, against the best way without training.

``search.text_to_image``: a query that nothing was trained on, items that nothing was trained on, known
by their pictures alone. Base is the bridge: the training titles nearest to the query, the mean of their
pictures, the pictures nearest to that. ``boards``: one item of a new board, the others are right; base
is the best blend of picture and title vectors. ``search.with_titles``: the same queries where items
show their titles; base is plain search in the titles' vectors. ``learned`` is the learned column by itself (heads and
memory), ``heads`` the two heads without the memory, ``weight`` the learned column's share of all fusion weight.

Whatever is chosen (the bridge's shape, the blend, the weights) was chosen inside the training part.
Pictures that training saw almost alike are left out of the gallery. More than one split trains align
again on each. Does not protect against a base that somebody else would build better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pinhole.config import Config
from pinhole.evaluation.intervals import resampled
from pinhole.retrieval.fusion import recall_at
from pinhole.retrieval.scores import Scorer
from pinhole.retrieval.trials import Asking, held_trials, inner_trials, like_columns, text_columns, word_columns
from pinhole.retrieval.weights import CHOICE_FOLDS, Weights, learn, scorers
from pinhole.vision.align import Asked, Space
from pinhole.vision.features import Features
from pinhole.vision.signals import Signals, read_signals, read_titles

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue

K = 10
BLENDS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)  # of titles against pictures
Progress = Callable[[int, int], None]


@dataclass
class Results:
    """Recalls of one exam over all splits, and what each trial belongs to (resampled together)."""

    recalls: dict[str, list[float]] = field(default_factory=dict)
    """``tuned``, ``base`` and parts of the tuned score by themselves, one value a trial."""
    chance: list[float] = field(default_factory=list)
    cluster: list[str] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)

    def add(self, asked: Sequence[Asking], gallery: int, weight: float, **scores: np.ndarray) -> None:
        """One split's trials: (q, gallery) scores of each way of ranking, and the learned column's share of all weight."""
        for name, values in scores.items():
            self.recalls.setdefault(name, []).extend(_recall(values, asked).tolist())
        self.chance += [min(K, gallery) * len(one.right) / max(gallery, 1) / min(K, len(one.right)) for one in asked]
        self.cluster += [one.board or one.text for one in asked]
        self.weight.append(weight)

    def figures(self, key: str, seed: int) -> dict[str, float]:
        """Flat figures; the interval of the ratio is a paired bootstrap over queries (boards)."""
        n = len(self.cluster)
        if not n:
            return {f"{key}.n": 0}
        out: dict[str, float] = {f"{key}.n": n, f"{key}.clusters": len(set(self.cluster))}
        drawn = dict(zip(self.recalls, resampled(np.array(list(self.recalls.values())), self.cluster, seed), strict=True))
        for name, values in self.recalls.items():
            out |= {f"{key}.{name}": float(np.mean(values)), f"{key}.{name}.n": n, **_ends(f"{key}.{name}", drawn[name])}
        out |= _ends(key, drawn["tuned"])
        out |= {f"{key}.chance": float(np.mean(self.chance)), f"{key}.weight": float(np.mean(self.weight))}
        if out[f"{key}.base"] > 0:
            ratio = out[f"{key}.tuned"] / out[f"{key}.base"]
            out |= {f"{key}.ratio": ratio, f"{key}.ratio.n": n, **_ends(f"{key}.ratio", drawn["tuned"] / np.maximum(drawn["base"], 1e-9))}
        return out


def _ends(key: str, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {f"{key}.low": float(low), f"{key}.high": float(high)}


def search_exams(
    catalogue: Catalogue, features: Features, space: Space, weights: Weights, asked: Asked, config: Config, progress: Progress | None = None
) -> dict[str, float]:
    """All figures of the three exams, over ``config.evaluate.splits`` splits.

    The first split is the workspace's own, with its ``space`` and fusion ``weights``; for the others both are made
    again from their own training parts, and thrown away.
    """
    signals = read_signals(catalogue, features)
    titles = read_titles(catalogue, features.ids)
    seen, like, titled = Results(), Results(), Results()
    splits = config.evaluate.splits
    for number in range(splits):
        settings = config.model_copy(update={"catalogue": config.catalogue.model_copy(update={"split": config.catalogue.split + number})})
        part, held = signals.part(settings.catalogue)
        if number:
            space, weights = _again(features, part, asked, titles, settings, progress, number, splits)
        room = _Room(features, space, weights, part, held, asked, titles)
        room.seen(seen)
        room.like(like, settings)
        room.titled(titled)
        if progress is not None:
            progress(number + 1, splits)
    seed = config.evaluate.seed
    found = {**seen.figures("search.text_to_image.recall@10", seed), **like.figures("boards.recall@10", seed)}
    return {**found, **titled.figures("search.with_titles.recall@10", seed), "search.splits": splits}


def _again(
    features: Features, part: Signals, asked: Asked, titles: Sequence[str], config: Config, progress: Progress | None, number: int, splits: int
) -> tuple[Space, Weights]:
    from pinhole.vision.heads import fit

    def counted(done: int, total: int) -> None:
        if progress is not None:
            progress(number * 1000 + done * 900 // max(total, 1), splits * 1000)

    weights = learn(features, part, asked.of, titles, config, counted)
    return fit(features, part, asked.of([query.key for query in part.queries]), config.align).space, weights


class _Room:
    """One split's exam room: gallery, questions, and scorers that see titles or do not."""

    def __init__(self, features: Features, space: Space, weights: Weights, part: Signals, held: Signals, asked: Asked, titles: Sequence[str]) -> None:
        self.features, self.weights, self.part, self.asked, self.titles = features, weights, part, asked, titles
        self.pictures = space.picture(np.asarray(features.image))
        self.open, self.blind = scorers(features, space, part, asked.of([query.key for query in part.queries]), weights.bridge)
        self.trials = held_trials(features, part, held, self.pictures)

    def seen(self, results: Results) -> None:
        asked, gallery = self.trials.text, self.trials.gallery
        if asked:
            vectors = self.asked.of([one.text for one in asked])
            columns, weights = text_columns(self.blind, vectors, gallery)[:2], self.weights.array("seen")
            heads = self.blind.space.query_vectors(vectors) @ self.blind.learned[gallery].T
            results.add(asked, len(gallery), _share(weights), tuned=_fused(columns, weights), base=columns[1], learned=columns[0], heads=heads)

    def titled(self, results: Results) -> None:
        asked, gallery = self.trials.text, self.trials.gallery
        if asked:
            texts = [one.text for one in asked]
            vectors = self.asked.of(texts)
            columns = np.concatenate([text_columns(self.open, vectors, gallery), word_columns(texts, [self.titles[row] for row in gallery])[None]])
            base = np.where(self.features.has_text[gallery], vectors @ self.features.text[gallery].T, -1.0)
            weights = self.weights.array("text")
            results.add(asked, len(gallery), _share(weights), tuned=_fused(columns, weights), base=base, learned=columns[0])

    def like(self, results: Results, config: Config) -> None:
        asked, gallery = self.trials.like, self.trials.gallery
        if asked:
            columns, weights = like_columns(self.open, asked, gallery), self.weights.array("like")
            base = _blend(self.open, asked, gallery, *self._best_blend(config))
            results.add(asked, len(gallery), _share(weights), tuned=_fused(columns, weights), base=base, learned=columns[0])

    def _best_blend(self, config: Config) -> tuple[bool, float]:
        """Standardised or plain cosines, and the titles' weight: the best on inner boards of the training part."""
        found: dict[tuple[bool, float], list[float]] = {}
        for number in range(CHOICE_FOLDS):
            _, trials = inner_trials(self.features, self.part, config.catalogue, number, self.pictures)
            for choice in [(plain, weight) for plain in (False, True) for weight in BLENDS] if trials.like else ():
                scores = _blend(self.open, trials.like, trials.gallery, *choice)
                found.setdefault(choice, []).extend(_recall(scores, trials.like).tolist())
        return max(found, key=lambda choice: float(np.mean(found[choice]))) if found else (False, 1.0)


def _blend(scorer: Scorer, asked: Sequence[Asking], gallery: np.ndarray, plain: bool, weight: float) -> np.ndarray:
    """(q, gallery): pictures plus ``weight`` × titles, no training in either."""
    side = scorer.items(gallery[[one.liked for one in asked]])
    block = scorer.block(gallery)
    if plain:
        return scorer.scores(side, block, "picture") + weight * scorer.scores(side, block, "title")
    _, picture, title = scorer.standardised(side, block, block)
    return np.asarray(picture + weight * title)


def _fused(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("cqn,c->qn", columns, weights))


def _recall(scores: np.ndarray, asked: Sequence[Asking]) -> np.ndarray:
    """recall@10; a liked item is no candidate."""
    scores = np.array(scores, dtype=np.float64)
    for row, one in enumerate(asked):
        if one.liked >= 0:
            scores[row, one.liked] = -np.inf
    return recall_at(scores, [one.right for one in asked], K)


def _share(weights: np.ndarray) -> float:
    """The learned column's share of all weight."""
    return float(weights[0] / max(weights.sum(), 1e-9))
