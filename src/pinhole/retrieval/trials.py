"""Questions with known answers, drawn from one part of the signals: what weights are learned on and exams are made of.

Four kinds. ``seen``: a query, items known by their pictures only. ``text``: the same with the items'
titles. ``like``: one item of a board, the board's other items are right. ``both``: a query and an item
that it led to, right are items of the same query on a board with that item. The gallery is the part's
items. Knows nothing of how scores are weighed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pinhole.config import CatalogueConfig
from pinhole.retrieval.fusion import recall_at
from pinhole.retrieval.scores import Scorer
from pinhole.vision.align import Pictures, Space, Watch, learned_vectors
from pinhole.vision.features import Features
from pinhole.vision.signals import Signals

TWIN = 0.97  # cosine of standardised pictures from which a held-out picture counts as one seen in training
BOTH_PER_QUERY = 3
GALLERY, QUESTIONS = 2048, 512  # items and questions of a kind that anything is chosen on, at most: a matrix of both is held


@dataclass(frozen=True)
class Asking:
    """One question, in positions of the gallery."""

    right: np.ndarray
    text: str = ""
    liked: int = -1
    board: str = ""


@dataclass(frozen=True)
class Trials:
    gallery: np.ndarray
    """Rows of the features, ascending."""
    text: list[Asking] = field(default_factory=list)
    like: list[Asking] = field(default_factory=list)
    both: list[Asking] = field(default_factory=list)


def draw_trials(part: Signals, kept: np.ndarray, seed: int = 0) -> Trials:
    """All questions that ``part`` answers, over its items that ``kept`` (a mask over all rows) allows."""
    gallery = part.items[kept[part.items]]
    place = np.full(len(kept), -1)
    place[gallery] = np.arange(len(gallery))
    boards = [(board.key, place[board.among(place >= 0).rows]) for board in part.boards]
    text, like, both = [], [], []
    mates: dict[int, list[np.ndarray]] = {}
    for key, members in boards:
        for one in members if len(members) > 1 else ():
            like.append(Asking(members[members != one], liked=int(one), board=key))
            mates.setdefault(int(one), []).append(members)
    draw = np.random.default_rng(seed)
    for query in part.queries:
        right = place[query.among(place >= 0).rows]
        if len(right):
            text.append(Asking(right, text=query.key))
        liked = [int(one) for one in right if int(one) in mates]
        for one in draw.permutation(liked)[:BOTH_PER_QUERY].tolist():
            others = np.intersect1d(right, np.concatenate(mates[one]))
            if len(others) > 1:
                both.append(Asking(others[others != one], text=query.key, liked=one))
    return Trials(gallery, text, like, both)


def _some(trials: Trials, most: int, draw: np.random.Generator) -> Trials:
    """At most ``most`` questions of each kind, in their order."""

    def few(asked: list[Asking]) -> list[Asking]:
        return asked if len(asked) <= most else [asked[place] for place in np.sort(draw.permutation(len(asked))[:most]).tolist()]

    return Trials(trials.gallery, few(trials.text), few(trials.like), few(trials.both))


def inner_trials(
    features: Features, signals: Signals, config: CatalogueConfig, fold: int, pictures: np.ndarray | Pictures, seed: int = 0
) -> tuple[Signals, Trials]:
    """The inner training part of ``signals`` and the questions of its inner held-out part, twins left out; a sample of them where they are many."""
    inside, outside = signals.inner(config, fold)
    return inside, few_trials(features, inside, outside, pictures, seed)


def held_trials(features: Features, inside: Signals, outside: Signals, pictures: np.ndarray | Pictures, seed: int = 0) -> Trials:
    """Questions of a held-out part, over its pictures that the training part ``inside`` does not nearly repeat."""
    seen, asked = inside.items[features.has_image[inside.items]], outside.items[features.has_image[outside.items]]
    kept = np.zeros(len(features), dtype=bool)
    kept[without_twins(asked, seen, pictures)] = True
    return draw_trials(outside, kept, seed)


def few_trials(features: Features, inside: Signals, outside: Signals, pictures: np.ndarray | Pictures, seed: int = 0) -> Trials:
    """As :func:`held_trials`, of at most :data:`GALLERY` items and :data:`QUESTIONS` questions of a kind."""
    draw = np.random.default_rng([seed, len(features)])
    asked = outside.items
    if len(asked) > GALLERY:
        kept = np.zeros(len(features), dtype=bool)
        kept[draw.choice(asked, GALLERY, replace=False)] = True
        outside = replace(outside, items=np.flatnonzero(kept))
    return _some(held_trials(features, inside, outside, pictures, seed), QUESTIONS, draw)


def without_twins(rows: np.ndarray, others: np.ndarray, pictures: np.ndarray | Pictures, block: int = 1024) -> np.ndarray:
    """The ``rows`` whose picture no other of ``others`` nearly repeats; ``pictures`` (n, width) of length 1."""
    nearest = np.full(len(rows), -1.0)
    for begin in range(0, len(others), 2 * block):
        seen = pictures[others[begin : begin + 2 * block]]
        for start in range(0, len(rows), block):
            piece = slice(start, start + block)
            nearest[piece] = np.maximum(nearest[piece], (pictures[rows[piece]] @ seen.T).max(1))
    return rows[nearest < TWIN]


def watch(features: Features, inside: Signals, outside: Signals, asked: Callable[[Sequence[str]], np.ndarray]) -> Watch:
    """What a training of the space is watched by: recall@10 of the learned vectors alone on (some of) the held-out part, which decides nothing.

    ``query``: a text nobody trained on, items known by their pictures. ``board``: an item of a new board, its mates are right.
    """
    drawn: list[Trials] = []

    def measure(space: Space) -> dict[str, float]:
        if not drawn:  # the frozen block is the same all along
            drawn.append(few_trials(features, inside, outside, Pictures(space, features)))
        trials = drawn[0]
        found: dict[str, float] = {}
        if trials.text:
            vectors = space.query_vectors(asked([one.text for one in trials.text]))
            seen = learned_vectors(space, features, titles=False, only=trials.gallery)
            found["query"] = float(recall_at(vectors @ seen.T, [one.right for one in trials.text], 10).mean())
        if trials.like:
            learned = learned_vectors(space, features, only=trials.gallery)
            liked = np.array([one.liked for one in trials.like])
            scores = learned[liked] @ learned.T
            scores[np.arange(len(liked)), liked] = -np.inf
            found["board"] = float(recall_at(scores, [one.right for one in trials.like], 10).mean())
        return found

    return measure


def text_columns(scorer: Scorer, vectors: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(columns, q, gallery) of texts (q, text dim)."""
    block = scorer.block(gallery)
    return scorer.standardised(scorer.words(vectors), block, block)


def like_columns(scorer: Scorer, asked: Sequence[Asking], gallery: np.ndarray) -> np.ndarray:
    """(columns, q, gallery) of liked items. The liked one is among the gallery: leave it out before ranking."""
    block = scorer.block(gallery)
    return scorer.standardised(scorer.items(gallery[[one.liked for one in asked]]), block, block)


def word_columns(texts: Sequence[str], titles: Sequence[str]) -> np.ndarray:
    """(q, titles) BM25 (Robertson & Zaragoza 2009) in units of :func:`word_unit`: full text's column, on titles alone.

    The store's full text also reads keywords, which a sample's queries may have been made from: a weight learned
    on it would be flattered.
    """
    found = [Counter(_tokens(title)) for title in titles]
    lengths = np.array([sum(words.values()) for words in found], dtype=np.float64)
    norm = 1.2 * (0.25 + 0.75 * lengths / max(lengths.mean(), 1e-9)) if len(found) else lengths
    holders: dict[str, list[int]] = {}
    for row, words in enumerate(found):
        for word in words:
            holders.setdefault(word, []).append(row)
    out = np.zeros((len(texts), len(titles)), np.float32)
    for number, text in enumerate(texts):
        for word in set(_tokens(text)) & holders.keys():
            rows = holders[word]
            count = np.array([found[row][word] for row in rows])
            rarity = math.log(1 + (len(titles) - len(rows) + 0.5) / (len(rows) + 0.5))
            out[number, rows] += rarity * 2.2 * count / (count + norm[rows])
    return out / word_unit(len(titles))


def word_unit(items: int) -> float:
    """What a word that one item has is about worth: BM25 over this does not depend on how many items there are."""
    return math.log(2 + items)


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
