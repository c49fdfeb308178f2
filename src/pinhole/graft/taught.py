"""Lessons with a teacher's answers, kept on disk: a model that sees says what it sees, and each answer costs once.

Scenes are a pure function of the seed and their number. Shards of them appear by one rename each, so a killed run goes
on after the last; one says which questions and pictures it answers, so that it also serves a later build that asks
the same. Knows nothing of who the teacher is.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pinhole.config import GraftConfig
from pinhole.errors import UsageError
from pinhole.graft.prompt import Message, Part, Soft
from pinhole.graft.said import Said
from pinhole.graft.seeing import Lesson, Seeing
from pinhole.graft.world import World
from pinhole.workspace import digest, disk_errors, write_atomic

FOLDER = "taught"  # in the artefact, beside the graft
SHARD = 64  # scenes
_SHOWN = 3  # names in a message
_NOTHING = np.zeros(0, np.float32)

Progress = Callable[[int, int], None]


class Teacher(Protocol):
    """Whoever sees pictures. ``identity`` changes when its answers would; ``tokenizer`` is that of its words."""

    @property
    def identity(self) -> str: ...
    @property
    def tokenizer(self) -> Any: ...
    def answer(self, lessons: Sequence[Lesson]) -> list[Said]:
        """What it says to each, by the most likely token at every place. Pictures are known by their items."""
        ...


@dataclass(frozen=True)
class Taught:
    """``scenes`` that a teacher answered, and which ``share`` of all they are to be."""

    scenes: list[list[Lesson]]
    share: float

    def figures(self, tokenizer: Any) -> dict[str, float]:
        """How many lessons the teacher answered, and which share of them as the tables would."""
        lessons = [lesson for scene in self.scenes for lesson in scene if lesson.said]
        said = [tokenizer.decode(lesson.said.tokens, skip_special_tokens=True).strip() for lesson in lessons if lesson.said]
        right = sum(one == lesson.answer for one, lesson in zip(said, lessons, strict=True))
        return {"graft.taught.right": right / len(lessons), "graft.taught.right.n": len(lessons)}


def teach(
    teacher: Teacher, world: World, tokenizer: Any, config: GraftConfig, out: Path, before: Path | None = None, progress: Progress | None = None
) -> Taught:
    """Let the teacher answer ``taught_scenes``, or read what it answered already in ``out``, or in the artefact ``before``.

    ``tokenizer`` is the student's. Raises :class:`UsageError` where the teacher's is another.
    """
    check_tokenizer(teacher.tokenizer, tokenizer)
    name = Path(FOLDER) / digest(teacher.identity)
    with disk_errors(out):
        (out / name).mkdir(parents=True, exist_ok=True)
    scenes = drawn(world, config.seed)
    found: list[list[Lesson]] = []
    for start in range(0, config.taught_scenes, SHARD):
        some = list(islice(scenes, min(SHARD, config.taught_scenes - start)))
        file = f"{start // SHARD:05d}.safetensors"
        found += _answered(some, teacher, asked(world, some), out / name / file, before / name / file if before else None)
        if progress:
            progress(len(found), config.taught_scenes)
    taught = Taught([scene for scene in found if scene], config.taught_share)
    if not taught.scenes:
        raise UsageError("no scene for a teacher to answer", where="graft", fix="ingest more items or boards")
    return taught


def check_tokenizer(teacher: Any, student: Any) -> None:
    """Raises :class:`UsageError` that names what differs: a teacher's tokens mean nothing to a student that numbers them otherwise."""
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    odd = sorted(token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token))
    if odd:
        named = ", ".join(f"{token!r} is {theirs.get(token, 'nothing')} and {ours.get(token, 'nothing')}" for token in odd[:_SHOWN])
        what = f"teacher and graft number {len(odd):,} tokens differently: {named}{' …' if len(odd) > _SHOWN else ''}"
        raise UsageError(what, where="[graft] teacher", fix="a graft can learn from a teacher with the same tokenizer")


def drawn(world: World, seed: int) -> Iterator[list[Lesson]]:
    """Scene after scene, each picture with the word it is asked by, and without what it looks like."""
    rng = random.Random()
    seeing = Seeing(world, rng, lean=1.0)
    number = 0
    while True:
        rng.seed(f"{seed}:taught:{number}")
        yield [_bare(lesson) for lesson in seeing.scene()]
        number += 1


def _bare(lesson: Lesson) -> Lesson:
    def bare(part: Part) -> Part:
        return Soft(part.item, _NOTHING, word=part.word, item=part.item) if isinstance(part, Soft) else part

    return replace(lesson, messages=tuple(Message(m.role, tuple(map(bare, m.parts))) for m in lesson.messages))


def asked(world: World, scenes: Sequence[Sequence[Lesson]]) -> str:
    """A hash of the questions, and of what the encoder sees in their pictures."""
    items = {id: world.at[id] for scene in scenes for lesson in scene for id in lesson.expect["items"]}
    rows = list(items.values())
    seen = world.whole(rows) if world.whole else world.vectors[rows]
    pictures = hashlib.sha256(np.ascontiguousarray(seen, np.float32).tobytes()).hexdigest()
    return digest(list(items), pictures, [[m.plain() for m in lesson.messages] for scene in scenes for lesson in scene])


# -- shards ---------------------------------------------------------------------------------------


def _answered(scenes: list[list[Lesson]], teacher: Teacher, questions: str, path: Path, before: Path | None) -> list[list[Lesson]]:
    lessons = [lesson for scene in scenes for lesson in scene]
    said = read_shard(path, questions)
    if said is None:
        said = (read_shard(before, questions) if before else None) or teacher.answer(lessons)
        write_shard(path, questions, said)
    answers = iter(said)
    return [[replace(lesson, said=next(answers)) for lesson in scene] for scene in scenes]


def write_shard(path: Path, questions: str, said: Sequence[Said]) -> None:
    """One file: answers end to end, and how long each is. Whole or absent however the process ends."""
    arrays = {
        "lengths": np.array([len(one.tokens) for one in said], np.int32),
        "tokens": np.concatenate([one.tokens for one in said] or [np.zeros(0)]).astype(np.int32),
        "ids": np.concatenate([one.ids for one in said] or [np.zeros((0, 0))]).astype(np.int32),
        "logs": np.concatenate([one.logs for one in said] or [np.zeros((0, 1))]).astype(np.float32),
    }
    with disk_errors(path.parent):
        write_atomic(path, save(arrays, {"questions": questions}))


def read_shard(path: Path, questions: str) -> list[Said] | None:
    """None where there is none, or a damaged one, or one that answers something else."""
    try:
        with safe_open(path, "np") as file:
            if file.metadata().get("questions") != questions:
                return None
            lengths, tokens, ids, logs = (file.get_tensor(name) for name in ("lengths", "tokens", "ids", "logs"))
    except (OSError, SafetensorError):
        return None
    ends = np.cumsum(lengths)
    return [Said(tokens[a:b], ids[a:b], logs[a:b]) for a, b in zip(ends - lengths, ends, strict=True)]
