"""How a model answers a question that has few possible answers: the most likely one of them.

All choices of many questions are scored in packed rows, so that what they share is read once. This
is what decoding under a grammar of the choices would say; it is the same for the model, for the
blind model and for any other. Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from pinhole.graft.fast import fast_rows
from pinhole.graft.model import Graft
from pinhole.graft.packing import Row, batches
from pinhole.graft.prompt import Message, Part, Soft
from pinhole.graft.scoring import answer_scores
from pinhole.graft.seeing import Lesson

ROW_TOKENS = 512
ROWS = 4


def blinded(lesson: Lesson, mean: np.ndarray) -> Lesson:
    """The same question with every picture replaced by the mean one."""

    def dark(part: Part) -> Part:
        if not isinstance(part, Soft):
            return part
        return Soft("mean", mean, cells=None if part.cells is None else np.zeros_like(part.cells))

    messages = tuple(Message(m.role, tuple(map(dark, m.parts))) for m in lesson.messages)
    return replace(lesson, messages=messages)


@torch.inference_mode()
def choose(
    graft: Graft, lessons: Sequence[Lesson], progress: Callable[[int, int], None] | None = None, *, tokens_per_item: int | None = None
) -> list[str]:
    """For each lesson the choice whose tokens (with the end of turn) have the largest log-probability.

    Pictures are of as many soft tokens as the graft reads at most, or of ``tokens_per_item``.
    """
    render = partial(graft.prompter.render, generate=False, tokens_per_item=tokens_per_item)
    rows: list[Row] = []
    places: list[tuple[int, str, Row, list[int]]] = []
    asked: dict[tuple[tuple[int | str, ...], ...], int] = {}  # to a blind model many questions are the same
    same: list[int] = []
    for number, lesson in enumerate(lessons):
        prompts = [render((*lesson.messages[:-1], Message.of("assistant", choice))) for choice in lesson.choices]
        same.append(asked.setdefault(tuple(prompt.keys() for prompt in prompts), number))
        if same[-1] != number:
            continue
        probe = Row()
        for prompt in prompts:
            probe.add(prompt)
        if not rows or len(rows[-1].tokens) + len(probe.tokens) > ROW_TOKENS:
            rows.append(Row())
        places += [(number, choice, rows[-1], rows[-1].add(prompt)) for choice, prompt in zip(lesson.choices, prompts, strict=True)]
    with fast_rows(graft.lm):
        scores = _scores(graft, rows, progress)
    best: dict[int, tuple[float, str]] = {}
    for number, choice, row, answer in places:
        score = float(scores[id(row)][answer].sum())
        if number not in best or score > best[number][0]:
            best[number] = (score, choice)
    return [best[number][1] for number in same]


def _scores(graft: Graft, rows: Sequence[Row], progress: Callable[[int, int], None] | None) -> dict[int, np.ndarray]:
    """Log-probability of every answer token of every row."""
    found: dict[int, np.ndarray] = {}
    for batch in batches(rows, ROWS):
        chosen = answer_scores(graft, batch).cpu().numpy()
        start = 0
        for row in batch:
            found[id(row)] = chosen[start : start + len(row.learn_token)]
            start += len(row.learn_token)
        if progress:
            progress(len(found), len(rows))
    return found
