"""Fusion weights for each kind of query, and how they are learned without a look at what is held out.

Inside the training part the same split is drawn again: heads are trained on the inner training part,
the questions are the inner held-out part's, and the weights found there are used with the heads of the
whole training part. Knows nothing of the index or of serving.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.config import Config
from pinhole.retrieval.fusion import Answered, learn_weights, recall_at
from pinhole.retrieval.mates import Mates, askings, draw_mates, known_gallery, mate_columns
from pinhole.retrieval.scores import COLUMNS, BridgeShape, Scorer, blended, memory, picture_bridge
from pinhole.retrieval.trials import Asking, inner_trials, like_columns, text_columns, word_columns
from pinhole.retrieval.walks import WALKS
from pinhole.vision.align import Learned, Pictures, Space
from pinhole.vision.features import Features
from pinhole.vision.signals import Signals, inner

TEXT = tuple(f"text.{name}" for name in COLUMNS)
WORDS = "text.words"
LIKE = tuple(f"like.{name}" for name in COLUMNS)
KINDS: dict[str, tuple[str, ...]] = {
    "seen": (TEXT[0], TEXT[1]),
    "text": (*TEXT, WORDS),
    "like": LIKE,
    "both": (*TEXT, WORDS, *LIKE),
    "placed": (*LIKE, WALKS),
    "new": (*LIKE, WALKS),
}
MATES = 400  # questions about board-mates of a kind and fold, at most: each is a walk
MATES_AMONG = 4096  # known items that they are looked for among, at most
WALKS_WEIGHT = 10.0  # where there are too few questions to learn it
UNLIKE = 0.5  # how much an unlike side counts against a like side (Rocchio 1971)
WORDS_LEAST = 2.0  # full text's weight when searching, at least: it reads fields that no other column knows, its weight is learned on titles
ENOUGH = 40  # questions of a kind, fewer leave its weights equal
SHAPES = tuple(BridgeShape(titles, temperature) for titles in (5, 10, 20, 40) for temperature in (0.05, 0.1, 1e3))
FOLDS = 2  # inner splits that heads are trained on for the weights
CHOICE_FOLDS = 8  # inner splits for choices that need no training


@dataclass(frozen=True)
class Weights:
    """For each kind of query a weight ≥ 0 for each of its columns, and the bridge's shape."""

    kinds: dict[str, dict[str, float]] = field(default_factory=lambda: {kind: dict.fromkeys(names, 1.0) for kind, names in KINDS.items()})
    bridge: BridgeShape = BridgeShape()
    questions: dict[str, int] = field(default_factory=dict)
    """How many questions each kind's weights were learned on."""

    def array(self, kind: str) -> np.ndarray:
        return np.array([self.kinds[kind][name] for name in KINDS[kind]], dtype=np.float32)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Weights:
        return cls(value["kinds"], BridgeShape(**value["bridge"]), value["questions"])


def learn(
    features: Features,
    signals: Signals,
    asked: Callable[[Sequence[str]], np.ndarray],
    titles: Sequence[str],
    config: Config,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> Weights:
    """Weights from ``signals`` (a training part). ``asked`` gives query texts' vectors, ``titles`` (n,) are the items'.

    With a ``folder`` the folds' trainings checkpoint there and resume from there.
    """
    folds = [Fold(features, signals, asked, config, number, progress, folder) for number in range(FOLDS)]
    shape = best_shape(features, signals, asked, config, folds[0].space)
    kinds, counts = dict[str, dict[str, float]](), dict[str, int]()

    def learned(drawn: Sequence[dict[str, list[Answered]]], few: Callable[[str], list[float]]) -> None:
        for kind in drawn[0]:
            questions = [one for found in drawn for one in found[kind]]
            counts[kind] = len(questions)
            values = learn_weights(questions, len(KINDS[kind])).tolist() if len(questions) >= ENOUGH else few(kind)
            kinds[kind] = dict(zip(KINDS[kind], values, strict=True))

    learned([fold.questions(titles, shape) for fold in folds], lambda kind: [1.0] * len(KINDS[kind]))
    if counts["both"] < ENOUGH:
        kinds["both"] = {**kinds["text"], **kinds["like"]}
    learned([fold.mates(signals, kinds["like"], config) for fold in folds], lambda kind: [*kinds["like"].values(), WALKS_WEIGHT])
    return Weights(kinds, shape, counts)


class Fold:
    """One inner split: heads of its training part, and its held-out part's questions."""

    def __init__(
        self,
        features: Features,
        signals: Signals,
        asked: Callable[[Sequence[str]], np.ndarray],
        config: Config,
        number: int,
        progress: Callable[[int, int], None] | None = None,
        folder: Path | None = None,
    ) -> None:
        from pinhole.vision.heads import fit

        self.features, self.number = features, number
        self.inside, _ = signals.inner(config.catalogue, number)
        inside = self.inside
        vectors = asked([query.key for query in inside.queries])
        steps = config.align.steps

        def counted(done: int, total: int) -> None:
            if progress is not None:
                progress(number * steps + done, FOLDS * steps)

        kept = folder / f"fold-{number}" if folder else None
        if kept is not None:
            kept.mkdir(exist_ok=True)
        self.space = fit(features, inside, vectors, config.align, folder=kept, progress=counted).space
        self.pictures = Pictures(self.space, features)
        _, self.trials = inner_trials(features, signals, config.catalogue, number, self.pictures, config.align.seed)
        self.texts = asked([one.text for one in self.trials.text])
        self.both_texts = asked([one.text for one in self.trials.both])
        self.asked = vectors

    def scorers(self, shape: BridgeShape) -> tuple[Scorer, Scorer]:
        """Made anew each time: kept, those of all folds would be the largest thing in memory."""
        return scorers(self.features, self.space, self.inside, self.asked, shape)

    def questions(self, titles: Sequence[str], shape: BridgeShape) -> dict[str, list[Answered]]:
        """Questions of each kind with the columns of :data:`KINDS`."""
        trials, gallery = self.trials, self.trials.gallery
        scorer, blind = self.scorers(shape)
        named = [titles[row] for row in gallery]
        seen = text_columns(blind, self.texts, gallery)[:2]
        text = np.concatenate([text_columns(scorer, self.texts, gallery), word_columns([one.text for one in trials.text], named)[None]])
        like = like_columns(scorer, trials.like, gallery)
        both_text = np.concatenate([text_columns(scorer, self.both_texts, gallery), word_columns([one.text for one in trials.both], named)[None]])
        both = np.concatenate([both_text, like_columns(scorer, trials.both, gallery)])
        drawn = {"seen": (seen, trials.text), "text": (text, trials.text), "like": (like, trials.like), "both": (both, trials.both)}
        return {kind: _answered(columns, asked) for kind, (columns, asked) in drawn.items()}

    def mates(self, signals: Signals, like: dict[str, float], config: Config) -> dict[str, list[Answered]]:
        """Questions about board-mates; ``like`` are the weights by which a placed item is near."""
        asked = draw_mates(self.features, signals, inner(config.catalogue, self.number), self.pictures, MATES, config.align.seed, MATES_AMONG)
        graph, gallery = self.inside.graph(), known_gallery(self.features, self.inside, MATES_AMONG)
        weights, scorer = np.array(list(like.values()), dtype=np.float32), self.scorers(BridgeShape())[0]

        def answered(found: list[Mates]) -> list[Answered]:
            columns = mate_columns(scorer, graph, config.graph, weights, found, gallery)
            return _answered(columns, askings(found, gallery))

        return {kind: answered(found) for kind, found in asked.items()}


def scorers(features: Features, space: Space, part: Signals, asked: np.ndarray, shape: BridgeShape) -> tuple[Scorer, Scorer]:
    """(with titles, by pictures alone), over bridge and memory of a training part; ``asked`` are its queries' vectors."""
    bridge = picture_bridge(features, space, part.items, shape)
    both = (Learned(space, features, titles) for titles in (True, False))
    whole, blind = (Scorer(features, space, learned, bridge, memory(features, part, asked, learned)) for learned in both)
    return whole, blind


def best_shape(features: Features, signals: Signals, asked: Callable[[Sequence[str]], np.ndarray], config: Config, space: Space) -> BridgeShape:
    """The bridge that finds most by itself on inner splits; of ``space`` only the frozen block is read. The first of equals."""
    found: dict[BridgeShape, list[np.ndarray]] = {shape: [np.zeros(0)] for shape in SHAPES}
    pictures, most = Pictures(space, features), max(shape.titles for shape in SHAPES)
    for number in range(CHOICE_FOLDS):
        inside, trials = inner_trials(features, signals, config.catalogue, number, pictures)
        if not trials.text:
            continue
        bridge, gallery = picture_bridge(features, space, inside.items, SHAPES[0]), pictures[trials.gallery]
        for piece, closeness, vectors in bridge.nearest(asked([one.text for one in trials.text]), most):
            right = [one.right for one in trials.text[piece]]
            for shape in SHAPES:
                found[shape].append(recall_at(blended(closeness, vectors, shape) @ gallery.T, right))
    return max(SHAPES, key=lambda shape: float(np.concatenate(found[shape]).sum()))


def _answered(columns: np.ndarray, asked: Sequence[Asking]) -> list[Answered]:
    """(columns, q, gallery) and the questions to one matrix a question; a liked item is no candidate."""
    out = []
    for number, one in enumerate(asked):
        right = np.zeros(columns.shape[2], dtype=bool)
        right[one.right] = True
        candidates = np.ones(len(right), dtype=bool)
        if one.liked >= 0:
            candidates[one.liked] = False
        out.append(Answered(columns[:, number, candidates].T, right[candidates]))
    return out
