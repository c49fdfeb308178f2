"""Learning which words an owner would give to an item: probes on its vectors, and the votes of its nearest neighbours.

For each name in ``[tags] attributes`` the values that enough training items bear. A *probe* is one ridge regression for all values (Alain and Bengio
2017), on what an item has: its picture's content, its title's vector, or both. A *vote* is the share of the nearest training items that bear
the value (as tag relevance in Li et al. 2009). A logistic regression joins the two, a monotone curve makes a
confidence of it: of a hundred guesses at .8 about eighty are right. Both are fitted on training items that the probes of that
moment had not seen. A value that is a held-out query is never guessed, for exams ask about it. Knows nothing of where guesses are kept or used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pinhole.config import TagsConfig
from pinhole.retrieval.trials import without_twins
from pinhole.vision.align import Learned, Pictures, Space
from pinhole.vision.features import Features, taken

SAMPLE = 20_000  # items that probes are fitted on and that vote, at most
PIECE = 2048  # items that are computed with at once
RIDGE = 1.0  # times the number of inputs, whose variance is about 1
VOTERS = 20
NEAR = 0.1  # difference of cosine at which a vote counts e times less
PROPOSED = 20  # values of a name that an item is asked about
TRUSTED = 20  # guesses of a name that its threshold is found on, at least
FLOOR = 0.1  # confidence below which nothing is guessed, however right the rest is
LONGEST = 40  # characters of a value
HAS = ((True, True), (True, False), (False, True))  # what an item may have to go by: (picture, title)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Labels:
    """Values of one attribute, and which rows bear them."""

    name: str
    values: tuple[str, ...]
    """The commonest first."""
    borne: list[list[int]]
    """For each row the numbers of its values."""
    told: np.ndarray
    """(n,) bool: rows whose owner says anything under this name."""
    one: bool
    """No item has more than one value."""

    def rows(self, of: np.ndarray) -> np.ndarray:
        """(of, values) float32, 1 where a row bears a value."""
        out = np.zeros((len(of), len(self.values)), np.float32)
        for place, row in enumerate(of.tolist()):
            out[place, self.borne[row]] = 1
        return out


def read_labels(name: str, said: Sequence[object], items: np.ndarray, left_out: Callable[[str], bool], config: TagsConfig) -> Labels:
    """``said`` is each row's attribute as it is; values are those of the training ``items``."""
    listed = [values_of(value) for value in said]
    counts = Counter(value for row in items.tolist() for value in listed[row] if not left_out(value))
    values = tuple(value for value, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])) if count >= config.least)[: config.most]
    place = {value: number for number, value in enumerate(values)}
    borne = [[place[value] for value in row if value in place] for row in listed]
    return Labels(name, values, borne, np.array([bool(row) for row in listed], dtype=bool), all(len(row) < 2 for row in listed))


def values_of(value: object) -> list[str]:
    """Distinct short texts in an attribute; a number or a sentence is no value that another item could bear."""
    texts = value if isinstance(value, list) else [value]
    found = (" ".join(text.split()) for text in texts if isinstance(text, str) and text.isprintable())
    return list(dict.fromkeys(text for text in found if 0 < len(text) <= LONGEST))


# -- evidence -----------------------------------------------------------------------------------


class Evidence:
    """What probes and voters read of an item."""

    def __init__(self, features: Features, space: Space) -> None:
        self.features, self.space = features, space
        self.learned = Learned(space, features)

    def having(self, rows: np.ndarray, has: tuple[bool, bool], exactly: bool = True) -> np.ndarray:
        """Those of ``rows`` with just these of a picture and a title, or with these at least."""
        there = (self.features.has_image[rows], self.features.has_text[rows])
        return rows[np.logical_and(*((one == wanted) | (not exactly and not wanted) for one, wanted in zip(there, has, strict=True)))]

    def __call__(self, rows: np.ndarray, has: tuple[bool, bool]) -> np.ndarray:
        """(rows, width) float32 with variance about 1, and a column of ones."""
        parts = [np.ones((len(rows), 1), np.float32)]
        if has[0]:
            image = taken(self.features.image, rows)
            parts.append(self.space.content(image, self.space.seen_vectors(image)))
        if has[1]:
            parts.append(taken(self.features.text, rows) * np.float32(np.sqrt(self.space.text_encoder.dim)))
        return np.concatenate(parts, axis=1)

    def probe(self, rows: np.ndarray, has: tuple[bool, bool], labels: Labels) -> np.ndarray:
        """(width, values): ridge regression on ``rows``; zeros where there are none."""
        gram: np.ndarray | None = None
        for piece in pieces(rows):
            x = self(piece, has)
            if gram is None:
                gram, cross = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], len(labels.values)))
            gram += x.T @ x
            cross += x.T @ labels.rows(piece)
        if gram is None:
            return np.zeros((self(rows, has).shape[1], len(labels.values)), np.float32)
        strength = np.full(len(gram), RIDGE * len(gram))
        strength[0] = 1e-6  # the mean is not drawn to zero
        return np.linalg.solve(gram + np.diag(strength), cross).astype(np.float32)


def pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[begin : begin + PIECE] for begin in range(0, len(rows), PIECE))


# -- one fit ------------------------------------------------------------------------------------


class Guesser:
    """Probes and voters of some training ``items`` for one attribute."""

    def __init__(self, evidence: Evidence, items: np.ndarray, labels: Labels) -> None:
        self.evidence, self.labels = evidence, labels
        items = items[labels.told[items]]  # an item that nothing is said of teaches nothing, not even what it is not
        self.voters = items if len(items) <= SAMPLE else np.sort(np.random.default_rng(0).choice(items, SAMPLE, replace=False))
        self.probes = {has: evidence.probe(evidence.having(self.voters, has, exactly=False), has, labels) for has in HAS}

    @cached_property
    def _vectors(self) -> np.ndarray:
        return self.evidence.learned[self.voters]

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, values) twice: what the probes say and how the neighbours vote. An item that has nothing to go by gets zeros."""
        said = np.zeros((len(rows), len(self.labels.values)), np.float32)
        place = {row: number for number, row in enumerate(rows.tolist())}
        for has in HAS:
            some = self.evidence.having(rows, has)
            if len(some):
                said[[place[row] for row in some.tolist()]] = self.evidence(some, has) @ self.probes[has]
        return said, self._votes(rows)

    def _votes(self, rows: np.ndarray) -> np.ndarray:
        if not len(self.voters):
            return np.zeros((len(rows), len(self.labels.values)), np.float32)
        near = self.evidence.learned[rows] @ self._vectors.T
        near[rows[:, None] == self.voters[None, :]] = -np.inf  # nobody votes for himself
        count = min(VOTERS, near.shape[1])
        chosen = np.argpartition(-near, count - 1, axis=1)[:, :count]
        closeness = np.take_along_axis(near, chosen, 1)
        share = np.exp((closeness - closeness.max(1, keepdims=True)) / NEAR)
        share /= np.maximum(share.sum(1, keepdims=True), 1e-9)
        borne = self.labels.rows(self.voters[np.unique(chosen)])
        where = np.searchsorted(np.unique(chosen), chosen)
        return np.asarray(np.einsum("rv,rvl->rl", share, borne[where]), dtype=np.float32)


@dataclass(frozen=True)
class Proposed:
    """For some rows the values that may be theirs, best first."""

    rows: np.ndarray
    values: np.ndarray
    """(rows, k) numbers of values."""
    said: np.ndarray
    """(rows, k, 2): probe and vote."""


def propose(guesser: Guesser, rows: np.ndarray) -> Proposed:
    count = min(1 if guesser.labels.one else PROPOSED, len(guesser.labels.values))
    values, said = [np.zeros((0, count), np.int64)], [np.zeros((0, count, 2), np.float32)]
    for piece in pieces(rows):
        both = np.stack(guesser(piece), axis=2)
        best = np.argsort(-both.sum(2), axis=1, kind="stable")[:, :count]
        values.append(best)
        said.append(np.take_along_axis(both, best[:, :, None], 1))
    return Proposed(rows, np.concatenate(values), np.concatenate(said))


# -- how sure -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Confidence:
    """From (…, 2) probe and vote to a chance; below ``least`` nothing is guessed."""

    weights: tuple[float, float, float]
    scores: tuple[float, ...]
    chances: tuple[float, ...]
    least: float

    def __call__(self, said: np.ndarray) -> np.ndarray:
        return np.interp(said @ np.array(self.weights[:2]) + self.weights[2], self.scores, self.chances)


NEVER = Confidence((0.0, 0.0, 0.0), (0.0,), (0.0,), 2.0)


def confident(said: np.ndarray, right: np.ndarray, precision: float) -> Confidence:
    """From guesses (n, 2) that were ``right`` (n,) or not: logistic regression (Platt 1999), then isotonic (Zadrozny and Elkan 2002).

    The threshold is the lowest above which ``precision`` of them are right; :data:`NEVER` where there is none.
    """
    if right.sum() < TRUSTED:
        return NEVER
    if right.all():
        return Confidence((0.0, 0.0, 0.0), (0.0,), (len(right) / (len(right) + 1),), FLOOR)
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    line = LogisticRegression(C=10.0).fit(said, right)
    weights = (float(line.coef_[0, 0]), float(line.coef_[0, 1]), float(line.intercept_[0]))
    scores = said @ np.array(weights[:2]) + weights[2]
    curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, right)
    chances = curve.predict(scores)
    order = np.argsort(-chances, kind="stable")
    ends = np.append(chances[order][1:] < chances[order][:-1], True)  # guesses of one chance go together
    among = np.arange(1, len(order) + 1)
    good = np.flatnonzero((np.cumsum(right[order]) / among >= precision) & ends & (among >= TRUSTED))
    least = max(float(chances[order][good[-1]]), FLOOR) if len(good) else 2.0
    return Confidence(weights, tuple(map(float, curve.X_thresholds_)), tuple(map(float, curve.y_thresholds_)), least)


# -- one attribute ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guessed:
    """An attribute's guesses of some rows: (rows, k) numbers of values and confidences, best first."""

    labels: Labels
    rows: np.ndarray
    values: np.ndarray
    chances: np.ndarray
    least: float

    @property
    def right(self) -> np.ndarray:
        """(rows, k) bool: the owner says so too."""
        return np.array([[value in self.labels.borne[row] for value in values] for row, values in zip(self.rows.tolist(), self.values, strict=True)])


def learn_attribute(
    evidence: Evidence, labels: Labels, items: np.ndarray, inner: tuple[np.ndarray, np.ndarray], config: TagsConfig
) -> tuple[Guesser, Confidence]:
    """``items`` are the training items, ``inner`` the same parted once more: confidences are learned on the second part, :func:`fresh`, by probes
    of the first."""
    inside, outside = inner
    tried = propose(Guesser(evidence, inside, labels), outside[labels.told[outside]])
    right = Guessed(labels, tried.rows, tried.values, tried.said[:, :, 0], 0.0).right
    sure = confident(tried.said.reshape(-1, 2).astype(np.float64), right.ravel(), config.precision) if right.size else NEVER
    return Guesser(evidence, items, labels), sure


def fresh(features: Features, rows: np.ndarray, seen: np.ndarray, pictures: Pictures) -> np.ndarray:
    """The ``rows`` without those whose picture one of ``seen`` nearly repeats."""
    pictured, others = rows[features.has_image[rows]], rows[~features.has_image[rows]]
    return np.sort(np.concatenate([without_twins(pictured, seen[features.has_image[seen]], pictures), others]))


def guess(guesser: Guesser, sure: Confidence, rows: np.ndarray) -> Guessed:
    found = propose(guesser, rows)
    chances = sure(found.said) if found.said.size else np.zeros(found.values.shape)
    order = np.argsort(-chances, axis=1, kind="stable")
    return Guessed(guesser.labels, rows, np.take_along_axis(found.values, order, 1), np.take_along_axis(chances, order, 1), sure.least)
