"""The ranker's exam: queries that nothing was trained on, in the search as it is served, before and after it is ranked anew.

``ranker.ndcg`` counts the items that the query led to, ``ranker.graded.ndcg`` the teacher's grades of what either order shows first. The second
asks whether the student learned what the teacher thinks; only the first, and people, say whether that is any good.
``ranker.agreement`` sets teacher beside people (on held-out queries, calibrated on others) and student beside teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pinhole.catalogue.split import Split
from pinhole.config import Config
from pinhole.evaluation.intervals import resampled, share
from pinhole.retrieval.index import Question, Searcher
from pinhole.retrieval.ndcg import graded, logged
from pinhole.retrieval.ranker import Grader, Ranker, judged_pairs, some
from pinhole.retrieval.teacher import levels
from pinhole.vision.signals import Signals

DEPTHS = (10, 20)


def ranker_exams(searcher: Searcher, ranker: Ranker, grader: Grader, signals: Signals, config: Config) -> dict[str, float]:
    """``signals`` are all there are; queries come from the held-out share alone. Figures with ``.n``; nothing else where nothing was asked."""
    asked = some(signals.asked_apart(config.catalogue), config.ranker.exam)
    questions = [searcher.question(query.key) for query in asked]
    before = [question.rows for question in questions]
    after = [_moved(ranker, question, searcher) for question in questions]
    texts = [query.key for query in asked]
    pools = grader.pool([(text, orders) for text, *orders in zip(texts, before, after, strict=True)])
    found: dict[str, float] = {}
    for k in DEPTHS:
        pairs = [[logged(order, query.rows, k) for order in orders] for query, *orders in zip(asked, before, after, strict=True)]
        found |= _compared(f"ranker.ndcg@{k}", pairs, texts, config.evaluate.seed)
        judged = [(text, pool, orders) for text, pool, *orders in zip(texts, pools, before, after, strict=True) if any(pool.values())]
        pairs = [[graded(order, pool, k) for order in orders] for _, pool, orders in judged]
        found |= _compared(f"ranker.graded.ndcg@{k}", pairs, [text for text, *_ in judged], config.evaluate.seed)
    found |= _taught(searcher, ranker, list(zip(questions, pools, strict=True)))
    return found | _judged(grader, judged_pairs(grader.catalogue, searcher, Split(config.catalogue).query))


def _moved(ranker: Ranker, question: Question, searcher: Searcher) -> np.ndarray:
    new = question.scores + ranker.moves(question, question.rows, question.scores, searcher)
    return np.asarray(question.rows[np.lexsort((question.rows, -np.round(new, 5)))])


def _compared(key: str, pairs: Sequence[Sequence[float]], texts: Sequence[str], seed: int) -> dict[str, float]:
    """After, before, and their ratio with an interval by resampling the queries."""
    if not pairs:
        return {f"{key}.n": 0}
    values = np.array(pairs).T  # (before and after, queries)
    drawn = resampled(values, texts, seed)
    before, after = values.mean(1)
    low, high = np.quantile(drawn[1], (0.025, 0.975))
    found = {key: float(after), f"{key}.before": float(before), f"{key}.n": len(texts), f"{key}.low": float(low), f"{key}.high": float(high)}
    if before > 0:
        low, high = np.quantile(drawn[1] / np.maximum(drawn[0], 1e-9), (0.025, 0.975))
        found |= {
            f"{key}.ratio": float(after / before),
            f"{key}.ratio.n": len(texts),
            f"{key}.ratio.low": float(low),
            f"{key}.ratio.high": float(high),
        }
    return found


def _taught(searcher: Searcher, ranker: Ranker, asked: Sequence[tuple[Question, dict[int, float]]]) -> dict[str, float]:
    """Student beside teacher, over the graded results of held-out queries."""
    pairs = [(searcher.read(question, np.array(list(pool)), ranker.values), list(pool.values())) for question, pool in asked if pool]
    if not pairs:
        return {f"ranker.agreement.student_teacher.{name}.n": 0 for name in ("exact", "within_one", "rank")}
    student = np.concatenate([ranker.student(read)[:, 0] for read, _ in pairs])
    return agreement("ranker.agreement.student_teacher", student, np.concatenate([grades for _, grades in pairs]))


def _judged(grader: Grader, judged: Sequence[tuple[str, int, int]]) -> dict[str, float]:
    """Teacher beside people."""
    if not judged:
        return {}
    grades, people = grader([(text, row) for text, row, _ in judged]), np.array([grade for _, _, grade in judged], np.float64)
    there = np.isfinite(grades)
    return agreement("ranker.agreement.teacher_human", grades[there], people[there])


def agreement(key: str, one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Shares of equal levels and of levels at most one apart, and Spearman's correlation of the grades themselves."""
    from scipy.stats import spearmanr

    apart = np.abs(levels(one) - levels(other))
    found = share(f"{key}.exact", (apart == 0).tolist()) | share(f"{key}.within_one", (apart <= 1).tolist())
    if len(one) < 2 or not (np.ptp(one) and np.ptp(other)):
        return found | {f"{key}.rank.n": 0}
    return found | {f"{key}.rank": float(spearmanr(one, other).statistic), f"{key}.rank.n": len(one)}
