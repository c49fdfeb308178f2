"""What a query is in vectors, and what every item scores against it: learned block, picture block, titles.

A query has sides: its words, what it should be like, what it should be unlike. Each side is three
vectors. Words get a picture by a *bridge*: the titles nearest to them, and the mean of those items'
pictures; and part of their learned vector by a *memory*, the same over titles and queries, in the
learned space. Knows nothing of weights, of filters or of which items are worth scoring.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from pinhole.retrieval.fusion import standardised
from pinhole.vision.align import Pictures, Space, Vectors, unit
from pinhole.vision.features import Features, taken
from pinhole.vision.signals import Signals

COLUMNS = ("learned", "picture", "title")
BRIDGE_MOST = 20_000  # texts that a bridge stands on
AT_ONCE = 64  # texts whose nearest ones' vectors are in memory


@dataclass(frozen=True)
class Side:
    """q queries' vectors; a zero row of ``title`` says that there is none."""

    learned: np.ndarray
    """(q, dim)"""
    picture: np.ndarray
    """(q, image dim)"""
    title: np.ndarray
    """(q, text dim)"""

    def __len__(self) -> int:
        return len(self.learned)


@dataclass(frozen=True)
class Block:
    """Some items' vectors, one row each."""

    learned: np.ndarray
    image: np.ndarray
    """As the encoder gave them."""
    title: np.ndarray
    length: np.ndarray
    """One over the length of the standardised picture."""
    has_image: np.ndarray
    has_text: np.ndarray

    def has(self, column: str) -> np.ndarray:
        """(rows,) bool: which of them have the vector that a column compares with."""
        return {"learned": np.ones(len(self.length), dtype=bool), "picture": self.has_image, "title": self.has_text}[column]


@dataclass(frozen=True)
class BridgeShape:
    """How many titles a bridge stands on, and how fast their weight falls with distance."""

    titles: int = 10
    temperature: float = 0.1


class Bridge:
    """From a text to where such texts lead, without training: the nearest known texts, the weighted mean of their vectors."""

    def __init__(self, texts: np.ndarray, vectors: Vectors, shape: BridgeShape) -> None:
        """``texts`` (m, text dim) of length 1 and the vector (m, width) that each leads to."""
        self.texts, self.vectors, self.shape = texts, vectors, shape

    def __call__(self, text: np.ndarray) -> np.ndarray:
        """(q, text dim) to (q, width) of length 1; zeros where nothing is known."""
        out = np.zeros((len(text), self.vectors.shape[1]), np.float32)
        for piece, closeness, vectors in self.nearest(text, self.shape.titles):
            out[piece] = blended(closeness, vectors, self.shape)
        return out

    def nearest(self, text: np.ndarray, count: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Some of the texts after the others: which, and of their ``count`` nearest the cosines (some, count) and vectors (some, count, width)."""
        for begin in range(0, len(text) if len(self.texts) else 0, AT_ONCE):
            piece = slice(begin, begin + AT_ONCE)
            near = text[piece] @ self.texts.T  # (some, m)
            chosen = _largest(near, min(count, near.shape[1]))
            yield piece, np.take_along_axis(near, chosen, 1), self.vectors[chosen]


def blended(closeness: np.ndarray, vectors: np.ndarray, shape: BridgeShape) -> np.ndarray:
    """(q, k), nearest first, and (q, k, width) to (q, width) of length 1: as many of them as ``shape`` says, weighted as it says."""
    closeness, vectors = closeness[:, : shape.titles], vectors[:, : shape.titles]
    share = np.exp((closeness - closeness.max(1, keepdims=True)) / shape.temperature)
    share /= share.sum(1, keepdims=True)
    return unit(np.einsum("qk,qkd->qd", share, vectors))


def picture_bridge(features: Features, space: Space, rows: np.ndarray, shape: BridgeShape, lasting: bool = False) -> Bridge:
    """From words to a picture: over the titles of ``rows`` that have a title and a picture (a sample of them, where they are many).

    ``lasting``: see :class:`~pinhole.vision.align.Pictures`.
    """
    rows = _some(rows[(features.has_image & features.has_text)[rows]])
    return Bridge(taken(features.text, rows), Pictures(space, features, rows, lasting), shape)


def memory(features: Features, part: Signals, asked: np.ndarray, learned: Vectors) -> Bridge:
    """From words to a learned vector: over the titles and the queries (``asked``: their vectors) of a training part.

    A query leads to the mean of its items' learned vectors. What a regression smooths away, single known texts keep
    (a memory beside a model, as in Khandelwal et al. 2020).
    """
    titled = part.items[(features.has_image & features.has_text)[part.items]]
    pictured = [query.rows[features.has_image[query.rows]] for query in part.queries]
    kept = [number for number, rows in enumerate(pictured) if len(rows)]
    chosen = _some(np.arange(len(titled) + len(kept)))
    rows, queries = titled[chosen[chosen < len(titled)]], [kept[number] for number in chosen[chosen >= len(titled)] - len(titled)]
    means = [unit(learned[pictured[number]].mean(0, keepdims=True)) for number in queries]
    texts = np.concatenate([taken(features.text, rows), asked[queries]]) if queries else taken(features.text, rows)
    return Bridge(np.asarray(texts, dtype=np.float32), np.concatenate([learned[rows], *means]), BridgeShape())


def _some(rows: np.ndarray) -> np.ndarray:
    return rows if len(rows) <= BRIDGE_MOST else np.sort(np.random.default_rng(0).choice(rows, BRIDGE_MOST, replace=False))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Columns of the ``count`` largest of each row, largest first, ties by column."""
    if count == values.shape[1]:
        return np.argsort(-values, axis=1, kind="stable")
    part = np.sort(np.argpartition(-values, count, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(values, part, 1), axis=1, kind="stable")
    return np.take_along_axis(part, order, 1)


class Scorer:
    """Scores of any rows of the features against any side."""

    def __init__(
        self, features: Features, space: Space, learned: Vectors, bridge: Bridge, memory: Bridge | None = None, lasting: bool = False
    ) -> None:
        """``learned`` (n, dim): the learned vectors that stand for the items. ``bridge`` leads to pictures, ``memory`` to learned vectors.

        With ``lasting`` what was read of the features stays in memory, for one who asks often.
        """
        self._taken = operator.getitem if lasting else taken
        self.features, self.space, self.learned, self.bridge, self.memory = features, space, learned, bridge, memory
        # A picture's score is (raw − mean)/deviation · q over its length: kept as one number an item, so that the raw block is read as it lies.
        self._length = _lengths(features, space)

    # -- sides ----------------------------------------------------------------------------------

    def words(self, text: np.ndarray) -> Side:
        """(q, text dim) of length 1: texts as queries. The learned vector is the query head's, and as much again of the memory's."""
        learned = self.space.query_vectors(text)
        if self.memory is not None:
            learned = unit(learned + self.memory(text))
        return Side(learned, self.bridge(text), unit(text))

    def items(self, rows: np.ndarray) -> Side:
        """One query for each of the rows: like this item."""
        image = self.space.picture(self._taken(self.features.image, rows)) * self.features.has_image[rows][:, None]
        return Side(self.learned[rows], image, self._taken(self.features.text, rows))

    def image(self, raw: np.ndarray) -> Side:
        """(q, image dim) as the encoder gave them: like this picture, of which nothing else is known."""
        return Side(self.space.seen_vectors(raw), self.space.picture(raw), np.zeros((len(raw), self.space.text_encoder.dim), np.float32))

    # -- scores ---------------------------------------------------------------------------------

    def block(self, rows: np.ndarray | None = None) -> Block:
        """The vectors of some rows; None is all of them, as they lie."""
        f = self.features
        if rows is None:
            learned = self.learned if isinstance(self.learned, np.ndarray) else self.learned[np.arange(len(f))]
            return Block(learned, f.image, f.text, self._length, f.has_image, f.has_text)
        return Block(
            self.learned[rows], self._taken(f.image, rows), self._taken(f.text, rows), self._length[rows], f.has_image[rows], f.has_text[rows]
        )

    def scores(self, side: Side, block: Block, column: str) -> np.ndarray:
        """(q, rows): cosines of one of :data:`COLUMNS`."""
        if column == "learned":
            return side.learned @ block.learned.T
        if column == "title":
            return side.title @ block.title.T
        turned = side.picture / self.space.weights["picture.deviation"]
        return np.asarray((turned @ block.image.T - (turned @ self.space.weights["picture.mean"])[:, None]) * block.length)

    def standardised(self, side: Side, block: Block, cohort: Block, columns: Collection[str] = COLUMNS) -> np.ndarray:
        """(columns, q, rows) by the cohort's mean and deviation; 0, the mean, where the item or the side lacks the vector.

        A column that is not among ``columns`` is not computed, and 0.
        """
        out = np.zeros((len(COLUMNS), len(side), len(block.length)), np.float32)
        for place, column in enumerate(COLUMNS):
            stands = cohort.has(column)
            given = np.abs(getattr(side, column)).max(1) > 0
            if column in columns and given.any() and stands.sum() > 1:
                scores = self.scores(side, block, column)
                base = scores if cohort is block else self.scores(side, cohort, column)
                out[place] = standardised(scores, base[:, stands]) * block.has(column) * given[:, None]
        return out


def _lengths(features: Features, space: Space, rows: int = 2048) -> np.ndarray:
    """(n,) one over the length of each standardised picture; 0 where there is none."""
    parts = []
    for start in range(0, len(features), rows):
        raw = taken(features.image, np.arange(start, min(start + rows, len(features))))
        length = np.linalg.norm((raw - space.weights["picture.mean"]) / space.weights["picture.deviation"], axis=1)
        parts.append(np.where(features.has_image[start : start + rows], 1 / np.maximum(length, 1e-12), 0))
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)
