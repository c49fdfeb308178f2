"""The graft as a teacher of ranking: it looks at an item and says whether it is what the query names.

A pair's score is how much likelier "yes" is than "no", to a question as the lessons of seeing put it; the item's soft token and short
title are what it sees. Knows nothing of what is done with the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from pinhole.graft.fast import fast_rows
from pinhole.graft.model import Graft
from pinhole.graft.packing import Row, batches
from pinhole.graft.prompt import Message, Prompt, Soft, card, system
from pinhole.graft.scoring import answer_scores
from pinhole.workspace import digest

ROW_TOKENS = 512
ROWS = 4
AT_ONCE = 64  # pairs whose rows are in memory
QUESTION = "Is #1 a picture of {query}?"
BEST = 4  # the grade of a sure yes


class Asked(Protocol):
    """A query and an item."""

    @property
    def query(self) -> str: ...
    @property
    def row(self) -> int: ...


class GraftGrader:
    """``soft`` gives a row of the features as the graft sees it, and its title; None where there is no picture."""

    sees = True

    def __init__(self, graft: Graft, soft: Callable[[int], tuple[Soft, str] | None], identity: str) -> None:
        self.graft, self.soft = graft, soft
        self.identity = digest("graft", identity, QUESTION)

    def score(self, pairs: Sequence[Asked], progress: Callable[[int, int], None]) -> np.ndarray:
        """(pairs,) log-odds of yes; NaN where the item has no picture."""
        out = np.full(len(pairs), np.nan)
        for start in range(0, len(pairs), AT_ONCE):
            out[start : start + AT_ONCE] = self._some(pairs[start : start + AT_ONCE])
            progress(min(start + AT_ONCE, len(pairs)), len(pairs))
        return out

    def grades(self, scores: np.ndarray) -> np.ndarray:
        """The chance of a yes, in five levels."""
        return np.asarray(BEST / (1 + np.exp(-scores)))

    @torch.inference_mode()
    def _some(self, pairs: Sequence[Asked]) -> np.ndarray:
        rows: list[Row] = []
        places: list[tuple[int, bool, Row, list[int]]] = []
        for number, pair in enumerate(pairs):
            shown = self.soft(pair.row)
            if shown is None:
                continue
            asked = [self._prompt(shown, pair.query, answer) for answer in ("yes", "no")]
            probe = Row()
            for prompt in asked:
                probe.add(prompt)
            if not rows or len(rows[-1].tokens) + len(probe.tokens) > ROW_TOKENS:
                rows.append(Row())
            places += [(number, yes, rows[-1], rows[-1].add(prompt)) for yes, prompt in zip((True, False), asked, strict=True)]
        out = np.full(len(pairs), np.nan)
        scores: dict[int, Any] = {}
        with fast_rows(self.graft.lm):
            for batch in batches(rows, ROWS):
                found, start = answer_scores(self.graft, batch).cpu().numpy(), 0
                for row in batch:
                    scores[id(row)] = found[start : start + len(row.learn_from)]
                    start += len(row.learn_from)
        for number, yes, row, answer in places:
            said = float(scores[id(row)][answer].sum())
            out[number] = said if yes else out[number] - said
        return out

    def _prompt(self, shown: tuple[Soft, str], query: str, answer: str) -> Prompt:
        soft, title = shown
        parts = (*card(1, soft, title, self.graft.card, self.graft.card_words), "\n" + QUESTION.format(query=" ".join(query.split()[:32])))
        messages = (system(()), Message.of("user", *parts), Message.of("assistant", answer))
        return self.graft.prompter.render(messages, generate=False)
