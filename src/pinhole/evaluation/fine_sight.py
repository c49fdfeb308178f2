"""Which of two boards, or kinds, that are much alike does a held-out picture belong to?

The pairs are nearest neighbours by the middles of their training pictures' frozen vectors; pictures of both are not
asked about. ``base`` is a linear classifier for each pair on the frozen vectors, ``probe`` one on what the graft reads.
Boards are known to training, the picture is not. Without a graft the two classifiers stand alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pinhole.evaluation.answers import blinded, choose
from pinhole.evaluation.intervals import clustered
from pinhole.evaluation.twins import twins
from pinhole.graft.model import Graft
from pinhole.graft.seeing import Lesson, Seeing
from pinhole.graft.world import World

KEY = "see.fine.accuracy"
_TRAINED = 5  # pictures of each of the two, at least, that a classifier is trained on
_MOST = 200  # pictures of each, at most
_PENALTY = 0.1  # of the ridge, times the mean diagonal of the kernel


@dataclass(frozen=True)
class Choice:
    """A held-out picture, the title of its group and that of the near twin, and what a classifier may learn the two from."""

    picture: int
    titles: tuple[str, str]
    own: np.ndarray
    others: np.ndarray

    @property
    def pair(self) -> str:
        return " | ".join(sorted(self.titles))


def frozen(world: World) -> np.ndarray:
    """(n, width) of length 1: pictures as the encoder gives them, standardised by the training ones."""
    raw = world.whole(range(len(world.pictures))) if world.whole else world.vectors
    known = raw[world.train]
    centred = (raw - known.mean(0)) / np.maximum(known.std(0), 1e-6)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12))


def choices(world: World, n: int, seed: int) -> list[Choice]:
    """At most ``n`` questions, the same for one seed, drawn evenly over all that there are."""
    vectors, found = frozen(world), []
    boards = {board.title: np.array(board.pictures, int) for board in world.boards if not board.held and board.title}
    kinds = {kind: np.array([*world.by_category[False][kind], *world.by_category[True][kind]], int) for kind in world.categories}
    held = np.array([picture.held for picture in world.pictures], dtype=bool)
    for groups in (boards, kinds):
        titles = [title for title, rows in groups.items() if (~held[rows]).sum() >= _TRAINED]
        training = [groups[title][~held[groups[title]]] for title in titles]
        for twin in twins(training, vectors, seed, _TRAINED):
            mine, other = titles[twin.group], titles[twin.other]
            asked = np.setdiff1d(groups[mine][held[groups[mine]]], groups[other])
            found += [Choice(int(row), (mine, other), twin.own, twin.others) for row in asked]
    rng = random.Random(f"exam:fine:{seed}")
    return rng.sample(found, min(n, len(found)))


def linear(vectors: np.ndarray, asked: Sequence[Choice]) -> list[bool]:
    """Whether a ridge classifier (as many training pictures of either) says the right one; ``vectors`` (n, width)."""
    known: dict[tuple[str, str], tuple[np.ndarray, float]] = {}
    right = []
    for one in asked:
        if one.titles not in known:
            known[one.titles] = _fitted(vectors[one.own[:_MOST]], vectors[one.others[:_MOST]])
        weights, least = known[one.titles]
        right.append(bool(vectors[one.picture] @ weights > least))
    return right


def _fitted(own: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, float]:
    """(width,) weights and the score from which a picture is one's own. The dual form: there are fewer pictures than numbers of each."""
    known = np.concatenate([own, others]).astype(np.float64)
    middle = known.mean(0)
    known -= middle
    kernel = known @ known.T  # (pictures, pictures)
    penalty = _PENALTY * max(float(np.trace(kernel)) / len(kernel), 1e-9)
    weights = known.T @ np.linalg.solve(kernel + penalty * np.eye(len(kernel)), np.repeat([1.0, -1.0], [len(own), len(others)]))
    return weights, float(middle @ weights)


def fine_sight(graft: Graft | None, world: World, n: int, seed: int) -> dict[str, float]:
    """Figures of :data:`KEY`; those of the two classifiers alone without a graft."""
    asked = choices(world, n, seed)
    if not asked:
        return {f"{KEY}.n": 0}
    pairs = [one.pair for one in asked]
    ways = {"probe": world.vectors, "base": frozen(world)}
    found = {f"{KEY}.{name}": sum(linear(vectors, asked)) / len(asked) for name, vectors in ways.items()}
    if graft is not None:
        lessons = _lessons(world, asked, seed)
        right = [lesson.answer == said for lesson, said in zip(lessons, choose(graft, lessons), strict=True)]
        dark = choose(graft, [blinded(lesson, world.mean) for lesson in lessons])
        found |= clustered(KEY, right, pairs)
        found[f"{KEY}.blind"] = sum(lesson.answer == said for lesson, said in zip(lessons, dark, strict=True)) / len(lessons)
    return found | {f"{KEY}.n": len(asked), f"{KEY}.chance": 0.5}


def _lessons(world: World, asked: Sequence[Choice], seed: int) -> list[Lesson]:
    rng = random.Random(f"exam:fine:said:{seed}")
    seeing, lessons = Seeing(world, rng, held=True), []
    for one in asked:
        options = rng.sample(one.titles, 2)
        question = seeing.say.seeing("theme", x=", ".join(options))
        lessons.append(seeing.lesson("fine", [one.picture], question, one.titles[0], options))
    return lessons
