"""The ranker: the first 200 hits of a search in words, in an order that a teacher's grades taught.

    student.*            the student, see ``student``
    popularity.parquet   see ``item_values``
    ranker.json          the weight of the student's opinion, the log's share in it, whether the teacher saw pictures; written last

The student's opinion is its guess of the grade and its guess of what the log leads to, mixed by a share. The opinion and the search's own score, both
standardised over the hits, are mixed by a weight. Share and weight are chosen on queries of
the training part that the student in question did not learn from, among those that make neither the log's items nor the teacher's grades
rank worse there; a weight of 0 is always among them. Knows nothing of who the teacher is, nor of what is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.catalogue.records import attributes
from pinhole.catalogue.split import Split, query_key
from pinhole.config import Config, RankerConfig
from pinhole.errors import MissingArtefact
from pinhole.retrieval.declared import Declared
from pinhole.retrieval.item_values import NONE, ItemValues, load_popularity, own_clicks, popularity, save_popularity
from pinhole.retrieval.ndcg import graded, logged
from pinhole.retrieval.scores import memory
from pinhole.retrieval.student import FEW, Student, distil
from pinhole.retrieval.teacher import Calibration, Pair, Teacher, calibrated, scored
from pinhole.vision.align import Asked
from pinhole.vision.signals import Group, Signals, inner
from pinhole.workspace import read_json, write_json

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.retrieval.index import Question, Searcher

RANKED = 200  # hits that are put in another order
PART = "ranker"  # what a hit's score is moved by
WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)
MIXES = ((0.0, 0.0), *((weight, share) for weight in WEIGHTS for share in SHARES))
FOLDS = 4  # parts of the queries: what search remembers of a query's own part is hidden while pairs are drawn
DEEP = 20  # results that are graded to compare two orders
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ranker:
    """The student, how much it counts, and what it reads of items."""

    student: Student
    weight: float
    """Of its opinion; the rest is the search's own score."""
    share: float
    """Of the log in its opinion; the rest is the teacher."""
    sees: bool
    """Items without text were graded too. Otherwise these keep the search's own score."""
    values: ItemValues

    def moves(self, question: Question, rows: np.ndarray, scores: np.ndarray, searcher: Searcher) -> np.ndarray:
        """(rows,) what each of the ``rows`` gains or loses on its search ``scores``: the best :data:`RANKED` among themselves, the rest as one."""
        out = np.zeros(len(rows), np.float32)
        first = np.lexsort((rows, -np.round(scores, 5)))[:RANKED]
        if not self.weight or len(first) < 2:
            return out
        grades = self.student(searcher.read(question, rows[first], self.values))
        new = blend(scores[first], opinion(grades, self.share), self.weight, self.known(searcher, rows[first]))
        out[first] = new - scores[first]
        rest = np.setdiff1d(np.arange(len(rows)), first)
        if len(rest):
            out[rest] = min(0.0, float(new.min() - scores[rest].max()))
        return out

    def known(self, searcher: Searcher, rows: np.ndarray) -> np.ndarray:
        """Mask of the rows that are like those the teacher graded."""
        return np.ones(len(rows), dtype=bool) if self.sees else np.asarray(searcher.features.has_full_text[rows])

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue, config: RankerConfig, space: str) -> Ranker:
        """Raises :class:`MissingArtefact`, ``Corrupt``, and ``SpaceMismatch`` where it was trained in another space or on other features."""
        if not (folder / "ranker.json").exists():
            raise MissingArtefact("no ranker", where=str(folder), fix="run `pinhole build ranker`")
        meta = read_json(folder / "ranker.json")
        student = Student.load(folder)
        student.check(space, written(config), str(folder))
        return cls(student, meta["weight"], meta["share"], meta["sees"], ItemValues(catalogue, Declared.of(config.features), load_popularity(folder)))


def opinion(found: np.ndarray, share: float) -> np.ndarray:
    """(n, 2) of a student to (n,): the grade, and what the log leads to by its ``share``."""
    return np.asarray((1 - share) * found[:, 0] + share * found[:, 1])


def blend(scores: np.ndarray, grades: np.ndarray, weight: float, known: np.ndarray) -> np.ndarray:
    """(n,) search scores and (n,) opinions to one score on the scale of the first; what is not ``known`` keeps its own."""
    if known.sum() < 2:
        return scores
    mean, deviation = scores.mean(), max(float(scores.std()), 1e-6)
    standard = (scores - mean) / deviation
    judged = (grades - grades[known].mean()) / max(float(grades[known].std()), 1e-6)
    # Those that cannot be graded stand at the mean of the ones that can: their opinion is the search's own.
    return np.asarray(np.where(known, mean + deviation * ((1 - weight) * standard + weight * judged), scores))


def written(config: RankerConfig) -> tuple[str, ...]:
    """What makes two sets of features the same."""
    return tuple(f"{one.name} = {one.expression} or {one.default!r}" for one in config.features)


# -- what is graded -------------------------------------------------------------------------------


class Grader:
    """A teacher in front of one catalogue: rows to texts, scores to grades."""

    def __init__(self, catalogue: Catalogue, searcher: Searcher, teacher: Teacher, reads: Sequence[str]) -> None:
        self.catalogue, self.teacher = catalogue, teacher
        self.calibration = Calibration(teacher.grades)
        self.texts = read_texts(catalogue, searcher.features.ids, reads)
        self.looks: list[Any] = searcher.features.rows["image"].to_pylist()

    def scores(self, pairs: Sequence[tuple[str, int]], progress: Progress = lambda done, total: None) -> np.ndarray:
        """(pairs,) the teacher's own numbers for (query, row); NaN where it cannot say."""
        asked = [Pair(query, row, self.texts[row], str(self.looks[row] or "")) for query, row in pairs]
        return scored(self.teacher, asked, progress)

    def __call__(self, pairs: Sequence[tuple[str, int]], progress: Progress = lambda done, total: None) -> np.ndarray:
        """(pairs,) grades in [0, 4]."""
        return self.calibration(self.scores(pairs, progress))

    def calibrate(self, judged: Sequence[tuple[str, int, int]]) -> int:
        """Bend the grades to (query, row, grade) of people; how many of them there were to go by."""
        scores = self.scores([(query, row) for query, row, _ in judged])
        self.calibration = calibrated(self.teacher, scores, np.array([grade for _, _, grade in judged], np.float64))
        return int(np.isfinite(scores).sum()) if self.calibration.scores else 0

    def pool(self, asked: Sequence[tuple[str, Sequence[np.ndarray]]], progress: Progress = lambda done, total: None) -> list[dict[int, float]]:
        """For each query and its orders the grades of the first :data:`DEEP` of all of them together."""
        rows = [sorted({int(row) for order in orders for row in order[:DEEP]}) for _, orders in asked]
        pairs = [(query, row) for (query, _), some in zip(asked, rows, strict=True) for row in some]
        grades = iter(self(pairs, progress).tolist())
        found = [{row: next(grades) for row in some} for some in rows]
        return [{row: grade for row, grade in one.items() if np.isfinite(grade)} for one in found]


def read_texts(catalogue: Catalogue, ids: Sequence[str], reads: Sequence[str]) -> list[str]:
    """What a teacher reads of the features' rows: columns and attributes, one after the other; "" where an item has none."""
    table = catalogue.items(["id", "title", "description", "attributes"])
    found: dict[str, str] = {}
    for id, title, description, more in zip(
        *(table[name].to_pylist() for name in ("id", "title", "description")), attributes(table) if len(table) else [], strict=True
    ):
        values = [{"title": title, "description": description}.get(name, more.get(name)) for name in reads]
        flat = [", ".join(map(str, value)) if isinstance(value, list) else str(value).strip() for value in values if value not in (None, "", [])]
        found[id] = ". ".join(flat)
    return [found.get(id, "") for id in ids]


def judged_pairs(catalogue: Catalogue, searcher: Searcher, keep: Callable[[str], bool]) -> list[tuple[str, int, int]]:
    """(query, row, grade) of people's judgements about items that are there, for the queries that ``keep`` allows."""
    table = catalogue.judgements()
    rows = {id: row for row, id in enumerate(searcher.features.ids)}
    listed = zip(*(table[name].to_pylist() for name in ("text", "item", "grade")), strict=True)
    return [(text, rows[item], grade) for text, item, grade in listed if item in rows and keep(text)]


# -- the stage ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """A training query with what search, which does not remember it, finds among the training items, and its own clicks, by item: it is read
    as one that nobody asked before."""

    query: Group
    question: Question
    searcher: Searcher
    clicks: Mapping[str, int]

    def read(self, rows: np.ndarray, values: ItemValues) -> np.ndarray:
        return self.searcher.read(self.question, rows, partial(values, less=self.clicks))

    @cached_property
    def led(self) -> frozenset[int]:
        """Rows that it led to."""
        return frozenset(self.query.rows.tolist())


def build_ranker(
    catalogue: Catalogue, searcher: Searcher, signals: Signals, asked: Asked, teacher: Teacher, config: Config, out: Path, progress: Progress
) -> tuple[Ranker, Grader, dict[str, float]]:
    """The stage ``ranker``: grades, the student, its weight. ``signals`` is the training part alone, ``asked`` has its queries' vectors.

    Returns the ranker, the calibrated grader and figures for the manifest. Raises :class:`~pinhole.errors.ConfigError` for a feature that cannot
    be evaluated, and what the teacher raises; a killed run finds in the cache what was graded.
    """
    settings, split = config.ranker, Split(config.catalogue)
    declared = Declared.of(settings.features)
    declared.check({name for values in attributes(catalogue.items(["attributes"])) for name in values} if declared.asked else ())
    counts = popularity(catalogue, split, config.graph)
    values = ItemValues(catalogue, declared, counts)
    grader = Grader(catalogue, searcher, teacher, settings.reads)
    judged = grader.calibrate(judged_pairs(catalogue, searcher, lambda text: not split.query(text)))
    seen = _look(searcher, signals, asked, some(signals.queries, settings.queries), own_clicks(catalogue))
    inside = np.isin(np.arange(len(searcher.features)), signals.items)
    drawn = [(one, row) for one in seen for row in _draw(one, inside, settings)]
    grades = grader([(one.query.key, row) for one, row in drawn], lambda done, total: progress(700 * done // max(total, 1), 1000))
    read = _read(drawn, values) if drawn else np.zeros((0, FEW + values.width + searcher.space.dim), np.float32)
    known = np.isfinite(grades)
    apart = Split(inner(config.catalogue))
    outer = np.array([apart.query(one.query.key) for one, _ in drawn], dtype=bool)
    led = np.array([row in one.led for one, row in drawn], dtype=bool)

    def made(kept: np.ndarray) -> Student:
        return _taught(read[kept], grades[kept], led[kept], settings, searcher.space.identity)

    first = made(known & ~outer)
    asked_apart = [one for one in seen if apart.query(one.query.key)][: settings.exam]
    sees = teacher.sees
    choice = [(one, *_ordered(Ranker(first, 1.0, 0.0, sees, values), one, inside)) for one in asked_apart]
    weight, share = _choose(choice, grader) if (known & ~outer).any() else MIXES[0]
    progress(900, 1000)
    ranker = Ranker(made(known), weight, share, sees, values)
    ranker.student.save(out)
    save_popularity(counts, out)
    write_json(out / "ranker.json", {"weight": weight, "share": share, "sees": sees, "teacher": teacher.identity, "judged": judged})
    figures = {"queries": len(seen), "pairs": len(drawn), "graded": int(known.sum()), "led": int(led[known].sum()), "chosen_on": len(choice)}
    chosen = {"weight": weight, "share": share, "judged": judged}
    return ranker, grader, {name: float(value) for name, value in {**figures, **chosen}.items()}


def some(queries: Sequence[Group], n: int) -> list[Group]:
    """At most ``n`` of them, the same ones whatever others there are."""
    return sorted(queries, key=lambda query: hashlib.sha256(query.key.encode()).digest())[:n]


def _look(searcher: Searcher, signals: Signals, asked: Asked, queries: Sequence[Group], clicks: Mapping[str, Mapping[str, int]]) -> list[_Seen]:
    """Search remembers where training queries led: for each the memory leaves out its own fold, else it would know the answer."""
    others = []
    for number in range(FOLDS):
        part = signals.without({query.key for query in signals.queries if _fold(query.key) == number})
        others.append(searcher.remembering(memory(searcher.features, part, asked.of([query.key for query in part.queries]), searcher.learned)))
    return [
        _Seen(query, other.question(query.key), other, clicks.get(query_key(query.key), NONE))
        for query in queries
        for other in [others[_fold(query.key)]]
    ]


def _fold(text: str) -> int:
    return int.from_bytes(hashlib.sha256(query_key(text).encode()).digest()[:4], "big") % FOLDS


def _draw(one: _Seen, inside: np.ndarray, config: RankerConfig) -> list[int]:
    """Rows to be graded: some that the query led to, the first hits, some behind them, and some of the rest of the pool (hard cases)."""
    seed = int.from_bytes(hashlib.sha256(one.query.key.encode()).digest()[:4], "big")
    draw = np.random.default_rng([config.seed, seed])
    hits = one.question.rows[inside[one.question.rows]][:RANKED]
    third = -(-config.hits // 3)
    near, far = draw.permutation(hits[third : 4 * third])[:third], draw.permutation(hits[4 * third :])[:third]
    chosen = np.concatenate([draw.permutation(one.query.rows)[: config.logged], hits[:third], near, far])
    return [int(row) for row in dict.fromkeys(chosen.tolist())]


def _read(drawn: Sequence[tuple[_Seen, int]], values: ItemValues) -> np.ndarray:
    """(pairs, width), a query at a time."""
    out, start = [], 0
    while start < len(drawn):
        one, end = drawn[start][0], start
        while end < len(drawn) and drawn[end][0] is one:
            end += 1
        out.append(one.read(np.array([row for _, row in drawn[start:end]]), values))
        start = end
    return np.concatenate(out)


def _taught(read: np.ndarray, grades: np.ndarray, led: np.ndarray, config: RankerConfig, space: str) -> Student:
    """Where nothing was graded, a student that has no opinion."""
    if not len(read):
        read, grades, led = np.zeros((1, read.shape[1]), np.float32), np.zeros(1), np.zeros(1, dtype=bool)
    return distil(read, grades, led, config, space, written(config))


def _ordered(ranker: Ranker, one: _Seen, inside: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Training items that the query led to, and the pool's rows in the order of each of :data:`MIXES`."""
    kept = inside[one.question.rows]
    rows, scores = one.question.rows[kept][:RANKED], one.question.scores[kept][:RANKED]
    if not len(rows):
        return one.query.rows, [rows for _ in MIXES]
    found, known = ranker.student(one.read(rows, ranker.values)), ranker.known(one.searcher, rows)
    mixed = [blend(scores, opinion(found, share), weight, known) for weight, share in MIXES]
    return one.query.rows, [rows[np.lexsort((rows, -scores))] for scores in mixed]


def _choose(choice: Sequence[tuple[_Seen, np.ndarray, list[np.ndarray]]], grader: Grader) -> tuple[float, float]:
    """The mix that gains most in both nDCG@10 together, among those that lose in neither."""
    if not choice:
        return MIXES[0]
    pools = grader.pool([(one.query.key, orders) for one, _, orders in choice])
    gains = np.array(
        [[[logged(order, right, 10), graded(order, pool, 10)] for order in orders] for (_, right, orders), pool in zip(choice, pools, strict=True)]
    ).mean(0)  # (mixes, 2)
    harmless = (gains >= gains[0] - 1e-9).all(1)
    return MIXES[int(np.argmax(np.where(harmless, gains.sum(1), -np.inf)))]
