"""What a graft sees: exams on held-out pictures, in held-out words, with the floor and the ceiling beside them.

Titles and attributes of the pictures asked about are hidden. ``.blind`` is the same model with every
picture replaced by the mean one; ``.probe`` a linear classifier with cross-validated C on the same
vectors and items. Questions are drawn once from a seed, before any model is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pinhole.evaluation.answers import blinded, choose
from pinhole.evaluation.intervals import clustered, share
from pinhole.graft.model import Graft
from pinhole.graft.seeing import Lesson, Seeing
from pinhole.graft.world import World
from pinhole.processes import cores

EXAMS = {  # key: (kind of lesson, chance; 0 is the share of the commonest right answer: it depends on the data)
    "see.category.accuracy": ("category", 0.0),
    "see.match.accuracy": ("match", 0.0),
    "see.pick.accuracy": ("pick", 0.25),
    "board.theme.accuracy": ("theme", 0.2),
    "board.odd_one_out.accuracy": ("odd", 0.25),
}
_TRIES = 60  # draws for a question before a small catalogue is said to have no more


def questions(world: World, kind: str, n: int, seed: int) -> list[Lesson]:
    """``n`` different questions of one kind about held-out pictures; fewer where the data has fewer."""
    rng = random.Random(f"exam:{kind}:{seed}")
    seeing = Seeing(world, rng, held=True)
    found: list[Lesson] = []
    seen: set[tuple[str, ...]] = set()
    for lesson in _draws(seeing, kind, rng, n * _TRIES):
        key = (*lesson.expect["items"], lesson.answer if kind != "match" else lesson.messages[1].text)
        if key not in seen:
            seen.add(key)
            found.append(lesson)
        if len(found) == n:
            break
    return found


def _draws(seeing: Seeing, kind: str, rng: random.Random, tries: int) -> Iterator[Lesson]:
    """At most ``tries`` draws, without those that came to nothing."""
    if kind == "category":  # each held-out picture once, in a random order
        yield from (seeing.category([i], 0) for i in rng.sample(seeing.classed, len(seeing.classed)))
        return
    for _ in range(tries):
        if kind == "match" and seeing.named:
            lesson = seeing.match([rng.choice(seeing.named)], 0)
        elif kind == "pick" and len(seeing.pool) >= 8:
            lesson = seeing.pick(seeing.members(4), rng.randrange(4))
        elif kind in ("odd", "theme"):
            lesson = getattr(seeing, kind)()
        else:
            return
        if lesson:
            yield lesson


def seeing_exams(
    graft: Graft, world: World, n: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, float], list[tuple[Lesson, str]]]:
    """Figures, and every question with the answer that the model gave."""
    figures: dict[str, float] = {}
    answered: list[tuple[Lesson, str]] = []
    for step, (key, (kind, chance)) in enumerate(EXAMS.items()):
        asked = questions(world, kind, n, seed)
        said = choose(graft, asked)
        blind = choose(graft, [blinded(lesson, world.mean) for lesson in asked])
        figures |= _share(key, asked, [lesson.answer == answer for lesson, answer in zip(asked, said, strict=True)])
        figures |= {f"{key}.blind": _mean([lesson.answer == answer for lesson, answer in zip(asked, blind, strict=True)])}
        figures[f"{key}.chance"] = chance or _largest([lesson.answer for lesson in asked])
        if kind == "category":
            figures[f"{key}.probe"] = probe(world, asked)
        if kind == "theme":
            figures |= _new_boards(key, world, asked, said)
        for count in graft.nested[:-1]:  # the same model with fewer tokens a picture
            fewer = choose(graft, asked, tokens_per_item=count)
            figures |= _share(f"nested.{count}.{key}", asked, [lesson.answer == answer for lesson, answer in zip(asked, fewer, strict=True)])
        answered += zip(asked, said, strict=True)
        if progress:
            progress(step + 1, len(EXAMS))
    return figures, answered


def _new_boards(key: str, world: World, asked: Sequence[Lesson], said: Sequence[str]) -> dict[str, float]:
    """The same score on boards that training never showed as boards. (Other pictures of theirs may be training items, with names of their own.)"""
    new = {board.id for board in world.boards if board.held}
    about = [(lesson, lesson.answer == answer) for lesson, answer in zip(asked, said, strict=True) if lesson.expect["board"] in new]
    return _share(f"{key}.new", [lesson for lesson, _ in about], [right for _, right in about])


def _share(key: str, asked: Sequence[Lesson], right: Sequence[bool]) -> dict[str, float]:
    """Questions about boards are many, the boards few: what is told of other boards depends on those."""
    boards = [lesson.expect["board"] for lesson in asked if "board" in lesson.expect]
    return clustered(key, right, boards) if boards else share(key, right)


def probe(world: World, asked: Sequence[Lesson]) -> float:
    """Accuracy of a linear classifier trained on the training pictures' vectors, on the pictures asked about."""
    import joblib
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    if not asked:
        return 0.0
    kinds = set(world.categories)
    train = [i for i in world.train if world.pictures[i].category in kinds]
    held = [world.at[lesson.expect["items"][0]] for lesson in asked]
    scaler = StandardScaler().fit(world.vectors[train])
    classifier = LogisticRegressionCV(
        Cs=np.logspace(-5, -2, 4), cv=3, max_iter=2000, tol=1e-3, l1_ratios=(0,), scoring="accuracy", use_legacy_attributes=False, n_jobs=cores()
    )
    with joblib.parallel_config(backend="threading"), threadpool_limits(1):  # fits side by side, a thread each
        classifier.fit(scaler.transform(world.vectors[train]), [world.pictures[i].category for i in train])
    return float(classifier.score(scaler.transform(world.vectors[held]), [lesson.answer for lesson in asked]))


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _largest(answers: Sequence[str]) -> float:
    return max(answers.count(answer) for answer in set(answers)) / len(answers) if answers else 0.0
