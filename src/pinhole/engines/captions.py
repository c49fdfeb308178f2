"""Captions: what the model answers when it is asked to describe a picture, once for each, and how sure it is of that.

How sure: the chance of "yes" when it is asked whether the picture is of what it said (as in self-evaluation, Kadavath et al. 2022). Answers are kept
in the cache under the model and the picture's own hash: new pictures are asked about, others are not, and a killed run goes on. Knows nothing
of catalogues or of what captions are for.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from pinhole.engines.base import Done, Engine, TextDelta
from pinhole.graft.grader import GraftGrader
from pinhole.graft.prompt import Message, Soft, system
from pinhole.workspace import cache_dir, digest

ASK = "Describe #1."
TOKENS = 32  # of a caption, at most
LONGEST = 160  # characters
AT_ONCE = 16  # questions at a time for each engine
KEPT_EVERY = 128  # captions between two writes into the cache
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pictured:
    """A picture to be described: its number to the one who asks, the hash of its bytes, what the model sees of it."""

    row: int
    look: str
    soft: Soft


@dataclass(frozen=True)
class _Said:
    query: str
    row: int


def captions(
    engines: Sequence[Engine], grader: GraftGrader, pictures: Sequence[Pictured], model: str, progress: Progress
) -> dict[int, tuple[str, float]]:
    """For each row its caption and how sure the model is of it, in (0, 1); none where it said nothing. ``model`` names what answers; ``grader``
    sees the same rows."""
    path = cache_dir() / "captions" / f"{digest(model, ASK, TOKENS, LONGEST)}.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=60)) as kept:
        kept.execute("CREATE TABLE IF NOT EXISTS captions (look TEXT PRIMARY KEY, caption TEXT NOT NULL, confidence REAL NOT NULL)")
        found = {look: (caption, confidence) for look, caption, confidence in kept.execute("SELECT * FROM captions")}
        fresh = list({one.look: one for one in pictures if one.look not in found}.values())
        for start in range(0, len(fresh), KEPT_EVERY):
            some = fresh[start : start + KEPT_EVERY]
            said = _ask(engines, some)
            odds = grader.score([_Said(text, one.row) for one, text in zip(some, said, strict=True)], lambda done, total: None)
            sure = np.where(np.isfinite(odds), 1 / (1 + np.exp(-odds)), 0.0)
            more = [(one.look, text, float(chance)) for one, text, chance in zip(some, said, sure, strict=True)]
            with kept:
                kept.executemany("INSERT OR REPLACE INTO captions VALUES (?, ?, ?)", more)
            found |= {look: (text, chance) for look, text, chance in more}
            progress(start + len(some), len(fresh))
    return {one.row: found[one.look] for one in pictures if found[one.look][0]}


def _ask(engines: Sequence[Engine], pictures: Sequence[Pictured]) -> list[str]:
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(AT_ONCE)) for _ in engines]
        waiting = [pools[at % len(pools)].submit(_describe, engines[at % len(pools)], one.soft) for at, one in enumerate(pictures)]
        return [one.result() for one in waiting]


def _describe(engine: Engine, soft: Soft) -> str:
    messages = (system(()), Message.of("user", *engine.card(1, soft, ""), "\n" + ASK))
    text = ""
    for event in engine.chat(messages, (), max_tokens=TOKENS):
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, Done):
            break
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:LONGEST]
