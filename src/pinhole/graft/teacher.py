"""Who teaches: a model that sees pictures in its own way, asked as the graft will be.

Each says the most likely token at every place, until it ends its turn, and what else it thought of. Knows nothing of
files, nor of how the graft learns from it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pinhole.graft.distil import likeliest
from pinhole.graft.fast import fast_rows
from pinhole.graft.model import Graft
from pinhole.graft.packing import Row
from pinhole.graft.prompt import Prompt
from pinhole.graft.said import Said
from pinhole.graft.scoring import answer_logits
from pinhole.graft.seeing import Lesson, Seeing
from pinhole.graft.world import World
from pinhole.workspace import digest

K = 32  # tokens of the teacher's distribution that are kept at each place
MOST = 24  # tokens of an answer
_ROW = 1024  # tokens of a packed row


class GraftTeacher:
    """A graft that sees the same catalogue in a ``world`` of its own: with more soft tokens a picture, or by its patches."""

    def __init__(self, graft: Graft, world: World, identity: str) -> None:
        self.graft, self.world = graft, world
        self.identity = digest(identity, world.space, K, MOST)

    @property
    def tokenizer(self) -> Any:
        return self.graft.tokenizer

    @torch.inference_mode()
    def answer(self, lessons: Sequence[Lesson]) -> list[Said]:
        """All lessons side by side in packed rows.

        The right answer is guessed, then any other that is allowed: as far as the teacher says the same, one pass reads it all (as in
        speculative decoding, Leviathan et al. 2023).
        """
        shown = Seeing(self.world, random.Random(0)).again(lessons)
        prompter = self.graft.prompter
        answers = [_Answer.begin(lesson.prompt(prompter), [prompter.text(choice) for choice in lesson.choices]) for lesson in shown]
        with fast_rows(self.graft.lm):
            while waiting := [answer for answer in answers if not answer.done]:
                for row, some in _rows(waiting):
                    logits, _ = answer_logits(self.graft, [row])
                    ids, logs = (found.cpu().numpy() for found in likeliest(logits, K))
                    for answer, places in some:
                        answer.hear(ids[places], logs[places])
        return [answer.said() for answer in answers]


@dataclass
class _Answer:
    """An answer as far as it is known, and how it may go on."""

    asked: Prompt
    guess: list[int]
    end: int
    allowed: list[list[int]]
    ids: list[Any] = field(default_factory=list)  # (k,) each; the first is what is said
    logs: list[Any] = field(default_factory=list)
    done: bool = False

    @classmethod
    def begin(cls, prompt: Prompt, choices: Sequence[Sequence[int]] = ()) -> _Answer:
        right = [token for token, learn in zip(prompt.tokens, prompt.learn, strict=True) if learn]
        return cls(prompt.asked(), right[:MOST], right[-1], [[*choice, right[-1]] for choice in choices])

    def hear(self, ids: Any, logs: Any) -> None:
        """What comes at each place of the guess, (n, k) and (n, k + 1); it counts up to the first that is not as guessed."""
        for guessed, id, log in zip(self.guess, ids, logs, strict=True):
            self.ids.append(id)
            self.logs.append(log)
            self.done = id[0] == self.end or len(self.ids) == MOST
            if self.done or id[0] != guessed:
                break
        said = self.tokens()
        likely = next((choice for choice in self.allowed if choice[: len(said)] == said), [*said, self.end])
        self.guess = likely[len(said) : MOST]

    def tokens(self) -> list[int]:
        return [int(id[0]) for id in self.ids]

    def prompt(self) -> Prompt:
        return self.asked.then(self.tokens(), learn=False).then(self.guess)

    def said(self) -> Said:
        ids, logs = np.array(self.ids, np.int32), np.array(self.logs, np.float32)
        return Said(ids[:, 0], ids, logs)


def _rows(answers: Sequence[_Answer]) -> list[tuple[Row, list[tuple[_Answer, list[int]]]]]:
    """Rows in order, each with its answers and where their guesses stand in it."""
    rows: list[tuple[Row, list[tuple[_Answer, list[int]]]]] = []
    for answer in answers:
        prompt = answer.prompt()
        if not rows or len(rows[-1][0].tokens) + rows[-1][0].cost(prompt) > _ROW:
            rows.append((Row(), []))
        row, some = rows[-1]
        some.append((answer, row.add(prompt)))
    return rows
