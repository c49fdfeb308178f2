"""The graft grades as its own log-probabilities say, whatever pairs stand beside one another."""

from __future__ import annotations

import numpy as np
import torch

from pinhole.graft.grader import QUESTION, GraftGrader
from pinhole.graft.packing import Row
from pinhole.graft.prompt import Message, card, system
from pinhole.graft.scoring import answer_scores
from pinhole.retrieval.teacher import Pair
from toy_model import tiny_graft
from toy_world import tiny_world


def silent(done: int, total: int) -> None:
    pass


def test_a_score_is_yes_over_no_alone_and_in_company() -> None:
    graft, world = tiny_graft(), tiny_world()
    shown = lambda row: (world.soft(row), world.pictures[row].title) if row < 12 else None  # noqa: E731
    teacher = GraftGrader(graft, shown, "tiny")
    pairs = [Pair(f"more like {row}", row, "") for row in range(13)]
    together = teacher.score(pairs, silent)
    assert np.isnan(together[12]) and len(set(together[:12].tolist())) == 12
    np.testing.assert_allclose(together[:12], [teacher.score([pair], silent)[0] for pair in pairs[:12]], atol=2e-4)
    odds = []
    for answer in ("yes", "no"):
        parts = (*card(1, world.soft(3), world.pictures[3].title, graft.card, graft.card_words), "\n" + QUESTION.format(query="more like 3"))
        messages = (system(()), Message.of("user", *parts), Message.of("assistant", answer))
        row = Row()
        row.add(graft.prompter.render(messages, generate=False))
        with torch.inference_mode():
            odds.append(float(answer_scores(graft, [row]).sum()))
    assert abs(together[3] - (odds[0] - odds[1])) < 2e-4
    assert (np.diff(teacher.grades(np.sort(together[:12]))) > 0).all() and teacher.sees
