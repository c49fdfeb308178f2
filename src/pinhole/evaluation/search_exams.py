"""The search and board exams: held-out queries and boards, held-out items, against the best way without training.

``search.text_to_image``: a query that nothing was trained on, items that nothing was trained on, known
by their pictures alone. Base is the bridge: the training titles nearest to the query, the mean of their
pictures, the pictures nearest to that. ``boards``: one item of a new board, the others are right; base
is the best blend of picture and title vectors. ``search.with_titles``: the same queries where items
show their titles; base is plain search in the titles' vectors. ``related.placed``: the mates of a known
item on a new board, among known items; ``related.new``: those of a new item on a known board; base is the
blend of picture and title vectors that is best on these very questions, ``learned`` the embedding alone,
``walks`` the graph of the training part alone. Elsewhere ``learned`` is the learned column by itself (heads and
memory), ``heads`` the two heads without the memory, ``weight`` the learned column's share of all fusion weight.
``search.fine``: the questions and columns of the first exam, the candidates a query's items and as many of its near twin's.

Whatever is chosen (the bridge's shape, the blend, the weights) was chosen inside the training part.
Pictures that training saw almost alike are left out of the gallery. More than one split trains align
again on each. Does not protect against a base that somebody else would build better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pinhole.config import Config, IndexConfig
from pinhole.errors import UsageError
from pinhole.evaluation.cold_exams import Cold, read_created
from pinhole.evaluation.intervals import resampled
from pinhole.evaluation.twins import told_apart, twins
from pinhole.retrieval.fusion import recall_at
from pinhole.retrieval.mates import askings, draw_mates, known_gallery, mate_columns
from pinhole.retrieval.nearest import BITS, Nearest, Storage
from pinhole.retrieval.scores import Block, Scorer, Side
from pinhole.retrieval.trials import Asking, held_trials, inner_trials, like_columns, text_columns, word_columns
from pinhole.retrieval.weights import CHOICE_FOLDS, Weights, learn, scorers
from pinhole.vision.align import Asked, Pictures, Space
from pinhole.vision.features import Features
from pinhole.vision.signals import Signals, read_signals, read_titles

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue

K = 10
MATES = 1000  # questions about board-mates of a kind and split, at most
BLENDS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)  # of titles against pictures
STORED = IndexConfig(flat_below=1 << 62)  # scanned: what is lost is lost by storage alone
STORAGES: tuple[tuple[Storage, int], ...] = (
    *((storage, 0) for storage in BITS),
    *((storage, width) for width in (128, 64) for storage in ("float32", "int8")),
)
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
    again from their own training parts, and thrown away. Raises :class:`UsageError` as :func:`check_splits` does.
    """
    check_splits(features, config.evaluate.splits)
    signals = read_signals(catalogue, features, config.graph)
    titles = read_titles(catalogue, features.ids)
    cold = Cold(None if features.tuned else read_created(catalogue, features.ids))  # a tuned encoder has seen the newest
    seen, like, titled, fine = Results(), Results(), Results(), Results()
    mates, kept = {"placed": Results(), "new": Results()}, dict[str, float]()
    splits = config.evaluate.splits
    for number in range(splits):
        settings = config.model_copy(update={"catalogue": config.catalogue.model_copy(update={"split": config.catalogue.split + number})})
        part, held = signals.part(settings.catalogue)
        if number:
            space, weights = again(features, part, asked, titles, settings, _piece(progress, number, splits))
        room = Room(features, space, weights, part, held, asked, titles)
        room.seen(seen)
        room.fine(fine, config.evaluate.seed)
        room.like(like, settings)
        room.titled(titled)
        cold.take(features, signals, space, weights, asked, settings)
        room.mates(mates, signals, settings)
        kept = kept or room.stored()
        if progress is not None:
            progress(number + 1, splits)
    seed = config.evaluate.seed
    found = {**seen.figures("search.text_to_image.recall@10", seed), **like.figures("boards.recall@10", seed)}
    found |= fine.figures("search.fine.recall@10", seed)
    for kind, results in mates.items():
        found |= results.figures(f"related.{kind}.recall@10", seed)
    return {**found, **kept, **cold.figures(seed), **titled.figures("search.with_titles.recall@10", seed), "search.splits": splits}


def check_splits(features: Features, splits: int) -> None:
    """Raises :class:`UsageError` where the encoder has learned from what other splits hold out."""
    if splits > 1 and features.tuned:
        what = f"the exams over {splits} splits say nothing: the tuned encoder has seen what other splits hold out"
        raise UsageError(what, where=str(features.path), fix="ask for one split, or for more where [tune] unfreeze is no")


def titled_scores(
    catalogue: Catalogue, features: Features, space: Space, weights: Weights, asked: Asked, config: Config, most: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """What the exam with titles ranks, for whoever arranges it otherwise: right positions of each query, (q, gallery) scores, the gallery's
    pictures (gallery, width) of length 1, and the number of each item's category (−1 without one)."""
    from pinhole.catalogue.records import attributes

    part, held = read_signals(catalogue, features, config.graph).part(config.catalogue)
    room = Room(features, space, weights, part, held, asked, read_titles(catalogue, features.ids))
    trials, gallery = room.trials.text[:most], room.trials.gallery
    columns = room.titled_columns([one.text for one in trials])
    found = catalogue.items(["id", "attributes"], ids=[features.ids[row] for row in gallery])
    kinds = dict(zip(found["id"].to_pylist(), (str(one.get(config.catalogue.category)) for one in attributes(found)), strict=True))
    numbers = {kind: number for number, kind in enumerate(sorted(set(kinds.values()) - {"None"}))}
    named = np.array([numbers.get(kinds.get(features.ids[row], ""), -1) for row in gallery])
    return [one.right for one in trials], _fused(columns, weights.array("text")), room.pictures[gallery], named


def again(
    features: Features, part: Signals, asked: Asked, titles: Sequence[str], config: Config, progress: Progress | None = None
) -> tuple[Space, Weights]:
    """Space and fusion weights made from a training part, as ``align`` and ``index`` make them."""
    from pinhole.vision.heads import fit

    weights = learn(features, part, asked.of, titles, config, progress)
    return fit(features, part, asked.of([query.key for query in part.queries]), config.align).space, weights


def _piece(progress: Progress | None, number: int, splits: int) -> Progress:
    def counted(done: int, total: int) -> None:
        if progress is not None:
            progress(number * 1000 + done * 900 // max(total, 1), splits * 1000)

    return counted


class Room:
    """One split's exam room: gallery, questions, and scorers that see titles or do not."""

    def __init__(self, features: Features, space: Space, weights: Weights, part: Signals, held: Signals, asked: Asked, titles: Sequence[str]) -> None:
        self.features, self.weights, self.part, self.asked, self.titles = features, weights, part, asked, titles
        self.pictures = Pictures(space, features)
        self.open, self.blind = scorers(features, space, part, asked.of([query.key for query in part.queries]), weights.bridge)
        self.trials = held_trials(features, part, held, self.pictures)

    def seen(self, results: Results) -> None:
        asked, gallery = self.trials.text, self.trials.gallery
        if asked:
            vectors = self.asked.of([one.text for one in asked])
            columns, weights = text_columns(self.blind, vectors, gallery)[:2], self.weights.array("seen")
            heads = self.blind.space.query_vectors(vectors) @ self.blind.learned[gallery].T
            results.add(asked, len(gallery), _share(weights), tuned=_fused(columns, weights), base=columns[1], learned=columns[0], heads=heads)

    def fine(self, results: Results, seed: int) -> None:
        """Each query's items against as many of the query whose middle, of frozen pictures, is nearest to its own."""
        asked, gallery = self.trials.text, self.trials.gallery
        pairs = twins([one.right for one in asked], self.pictures[gallery], seed) if asked else []
        if pairs:
            columns = text_columns(self.blind, self.asked.of([asked[pair.group].text for pair in pairs]), gallery)[:2]
            weights = self.weights.array("seen")
            for name, scores in {"tuned": _fused(columns, weights), "base": columns[1], "learned": columns[0]}.items():
                found = [told_apart(row, pair, K) for row, pair in zip(scores, pairs, strict=True)]
                results.recalls.setdefault(name, []).extend(found)
            results.chance += [0.5] * len(pairs)
            results.cluster += [asked[pair.group].text for pair in pairs]
            results.weight.append(_share(weights))

    def stored(self) -> dict[str, float]:
        """The learned column alone, its vectors kept in fewer bits and cut: recall of the same questions, what share is found of the
        first ten that whole vectors find among all items, and bytes an item."""
        asked, gallery = self.trials.text, self.trials.gallery
        if not asked:
            return {}
        questions = self.blind.words(self.asked.of([one.text for one in asked])).learned
        everything = np.arange(len(self.features))
        learned = self.blind.learned[everything]
        whole = Nearest.build(learned, everything, STORED).many(questions, K)[0]
        found: dict[str, float] = {}
        for storage, width in STORAGES:
            kept = STORED.model_copy(update={"storage": storage, "width": width})
            top = np.searchsorted(gallery, Nearest.build(learned[gallery], gallery, kept).many(questions, K)[0])
            recall = [len(np.intersect1d(ten, one.right)) / min(K, len(one.right)) for ten, one in zip(top, asked, strict=True)]
            same = [
                len(np.intersect1d(*pair)) / K for pair in zip(Nearest.build(learned, everything, kept).many(questions, K)[0], whole, strict=True)
            ]
            width = width or learned.shape[1]
            key = f"storage.{storage}.{width}.recall@10"
            found |= {
                key: float(np.mean(recall)),
                f"{key}.n": len(asked),
                f"{key}.same": float(np.mean(same)),
                f"{key}.bytes": width * BITS[storage] / 8,
            }
        return found

    def titled_columns(self, texts: Sequence[str]) -> np.ndarray:
        """(columns of kind ``text``, q, gallery)."""
        gallery = self.trials.gallery
        words = word_columns(texts, [self.titles[row] for row in gallery])
        return np.concatenate([text_columns(self.open, self.asked.of(texts), gallery), words[None]])

    def titled(self, results: Results) -> None:
        asked, gallery = self.trials.text, self.trials.gallery
        if asked:
            vectors = self.asked.of([one.text for one in asked])
            columns = self.titled_columns([one.text for one in asked])
            base = np.where(self.features.has_text[gallery], vectors @ self.features.text[gallery].T, -1.0)
            weights = self.weights.array("text")
            results.add(asked, len(gallery), _share(weights), tuned=_fused(columns, weights), base=base, learned=columns[0])

    def like(self, results: Results, config: Config) -> None:
        asked, gallery = self.trials.like, self.trials.gallery
        if asked:
            columns, weights = like_columns(self.open, asked, gallery), self.weights.array("like")
            base = _blend(self.open, asked, gallery, *self._best_blend(config))
            results.add(asked, len(gallery), _share(weights), tuned=_fused(columns, weights), base=base, learned=columns[0])

    def mates(self, results: dict[str, Results], signals: Signals, config: Config) -> None:
        graph, gallery = self.part.graph(), known_gallery(self.features, self.part)
        block = self.open.block(gallery)
        for kind, drawn in draw_mates(self.features, signals, config.catalogue, self.pictures, MATES, config.evaluate.seed).items():
            if drawn:
                asked = askings(drawn, gallery)
                columns = mate_columns(self.open, graph, config.graph, self.weights.array("like"), drawn, gallery)
                side, weights = self.open.items(np.array([one.row for one in drawn])), self.weights.array(kind)
                blends = [_blended(self.open, side, block, plain, weight) for plain in (False, True) for weight in BLENDS]
                base = max(blends, key=lambda scores: float(_recall(scores, asked).mean()))
                embedding = _fused(columns[:-1], self.weights.array("like"))
                tuned = _fused(columns, weights)
                results[kind].add(asked, len(gallery), _share(weights), tuned=tuned, base=base, learned=embedding, walks=columns[-1])

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
    return _blended(scorer, scorer.items(gallery[[one.liked for one in asked]]), scorer.block(gallery), plain, weight)


def _blended(scorer: Scorer, side: Side, block: Block, plain: bool, weight: float) -> np.ndarray:
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
