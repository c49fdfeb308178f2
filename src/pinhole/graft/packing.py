"""Packing: many lessons in one row, with what they share read once.

Lessons of one batch share their system prompt and often their pictures. A row is the prefix tree of
its lessons: each token attends to its ancestors only and has the position it would have alone, so
every answer is predicted exactly as if its lesson stood by itself, at a fraction of the tokens.
Knows nothing of what the tokens mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pinhole.graft.prompt import Prompt, Soft
from pinhole.graft.said import Said


@dataclass
class Row:
    """A prefix tree laid flat, parents before children."""

    tokens: list[int] = field(default_factory=list)  # ids; -1-j for soft[j]
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)  # index in the row, -1 for a root
    learn_from: list[int] = field(default_factory=list)  # indices whose logits are wanted …
    learn_token: list[int] = field(default_factory=list)  # … and the token each must predict
    learn_weight: list[float] = field(default_factory=list)  # a lesson's weight is spread over the tokens of its answer
    soft: list[Soft] = field(default_factory=list)
    taught_at: list[int] = field(default_factory=list)  # places in ``learn_from`` where a teacher's view is known …
    taught_ids: list[list[int]] = field(default_factory=list)  # … the tokens it expects there …
    taught_logs: list[list[float]] = field(default_factory=list)  # … how much it does, as in :class:`Said` …
    taught_weight: list[float] = field(default_factory=list)  # … and what that weighs
    lessons: int = 0
    plain_tokens: int = 0  # what the lessons would have cost unpacked
    _children: dict[tuple[int, int | str], int] = field(default_factory=dict)
    _learned: dict[tuple[int, int], int] = field(default_factory=dict)  # (where, token) → its place in ``learn_from``
    _taught: dict[int, int] = field(default_factory=dict)  # its place there → in ``taught_at``

    def cost(self, prompt: Prompt) -> int:
        """Tokens that adding this lesson would add."""
        here, keys = -1, prompt.keys()[: _read(prompt)]
        for i, key in enumerate(keys):
            child = self._children.get((here, key))
            if child is None:
                return len(keys) - i
            here = child
        return 0

    def add(self, prompt: Prompt, weight: float = 1.0, said: Said | None = None, distil: float = 1.0) -> list[int]:
        """Lay a lesson into the tree; returns where its answer's tokens stand in ``learn_from``.

        ``said`` is what a teacher said, token by token the prompt's answer; its view weighs ``distil`` times as much as its words.
        """
        self.lessons += 1
        self.plain_tokens += len(prompt.tokens)
        here, answer, read = -1, [], _read(prompt)
        weight /= max(1, sum(prompt.learn))
        for i, (token, key, learn) in enumerate(zip(prompt.tokens, prompt.keys(), prompt.learn, strict=True)):
            if learn and here >= 0:
                answer.append(self._learn(here, token, weight))
            if i == read:
                break
            child = self._children.get((here, key))
            here = self._append(here, token, key, prompt) if child is None else child
        for place, ids, logs in zip(answer, said.ids, said.logs, strict=True) if said else ():
            self._teach(place, ids, logs, distil * weight)
        return answer

    def _teach(self, place: int, ids: np.ndarray, logs: np.ndarray, weight: float) -> None:
        """A teacher that read the same expects the same: another lesson through this place adds weight only."""
        at = self._taught.setdefault(place, len(self.taught_at))
        if at == len(self.taught_at):
            self.taught_at.append(place)
            self.taught_ids.append(ids.tolist())
            self.taught_logs.append(logs.tolist())
            self.taught_weight.append(0.0)
        self.taught_weight[at] += weight

    def _learn(self, here: int, token: int, weight: float) -> int:
        """That ``token`` comes after ``here`` weighs so much more; returns its place in ``learn_from``."""
        place = self._learned.setdefault((here, token), len(self.learn_from))
        if place == len(self.learn_from):
            self.learn_from.append(here)
            self.learn_token.append(token)
            self.learn_weight.append(0.0)
        self.learn_weight[place] += weight
        return place

    def _append(self, parent: int, token: int, key: int | str, prompt: Prompt) -> int:
        if token < 0:
            self.soft.append(prompt.soft[-1 - token])
            token = -len(self.soft)
        self.tokens.append(token)
        self.parents.append(parent)
        self.positions.append(self.positions[parent] + 1 if parent >= 0 else 0)
        index = len(self.tokens) - 1
        self._children[(parent, key)] = index
        return index

    def mask(self, size: int | None = None) -> np.ndarray:
        """(size, size) bool: may row i look at column j? Padding looks at itself only."""
        n = len(self.tokens)
        size = n if size is None else size
        allowed = np.zeros((size, size), dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                allowed[i, :i] = allowed[parent, :i]
            allowed[i, i] = True
        allowed[np.arange(n, size), np.arange(n, size)] = True
        return allowed


def _read(prompt: Prompt) -> int:
    """How many of its tokens a model has to read: what comes after the last place of the answer tells nothing."""
    places = [i for i, learn in enumerate(prompt.learn) if learn]
    return places[-1] if places else len(prompt.tokens)


def pack(prompts: Iterable[Prompt], tokens: int) -> list[Row]:
    """Fill rows of at most ``tokens`` in order; a lesson longer than that gets a row of its own."""
    rows: list[Row] = []
    for prompt in prompts:
        if not rows or len(rows[-1].tokens) + rows[-1].cost(prompt) > tokens and rows[-1].lessons:
            rows.append(Row())
        rows[-1].add(prompt)
    return rows


def batches(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Rows of like length together, so that padding is small; the batches keep the rows' rough order."""
    window = 8 * size
    out = []
    for start in range(0, len(rows), window):
        chunk = sorted(rows[start : start + window], key=lambda row: len(row.tokens))
        out += [chunk[i : i + size] for i in range(0, len(chunk), size)]
    return out
