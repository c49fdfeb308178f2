"""The claim: a question about a board of 1,000 pictures is answered in under a second, as fast as one about as many words.

The workspace's graft or, with none, the default language model under an untrained projector, in the engine that serves. The
system prompt is cached and nothing else. In turns: a board that was never seen, its pictures as bare soft tokens, up to the first
token; the next question about that board, whose keys and values are kept; and as many ordinary tokens of text.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pinhole.workspace import Workspace

ROUNDS = 9
Progress = Callable[[int, int], None]


def run(workspace: Workspace | None = None, progress: Progress | None = None, items: int = 1000) -> dict[str, float]:
    """``board.n<items>.first_token_s``, ``.next_question_s``, ``.text_s`` are medians of seconds, ``.over_text`` is first ÷ text;
    ``.render_s`` and ``.embed_s`` (projector and embedding) the parts of the first that text does not have.

    Raises ``DownloadError`` where the default model cannot be had, ``PromptTooLong`` where the model does not read so many tokens.
    """
    from pinhole.benchmarks.engine import _graft
    from pinhole.engines.local import LocalEngine

    graft = _graft(workspace)
    times: dict[str, list[float]] = {}
    with LocalEngine(graft) as engine:
        engine.warm()
        asking = _Asking(engine, items)
        for number in range(-1, ROUNDS):  # the first is a warm-up
            for name, seconds in asking.round(number):
                if number >= 0:
                    times.setdefault(name, []).append(seconds)
            if progress:
                progress(number + 2, ROUNDS + 1)
    spent = {name: statistics.median(seconds) for name, seconds in times.items()}
    found = {f"board.n{items}.{name}": seconds for name, seconds in spent.items()}
    found |= {f"{key}.n": float(ROUNDS) for key in found}
    ratio, tokens = spent["first_token_s"] / spent["text_s"], float(asking.tokens)
    return found | {f"board.n{items}.over_text": ratio, f"board.n{items}.prompt_tokens": tokens}


class _Asking:
    """Boards and texts of the same length, new ones in every round."""

    def __init__(self, engine: Any, items: int) -> None:
        self.engine, self.items, self.tokens = engine, items, 0
        self.words = _words(engine.graft)

    def round(self, number: int) -> Sequence[tuple[str, float]]:
        """Seconds of every side; board and text take turns in being first."""
        found: list[tuple[str, float]] = []
        sides = (self._board, self._text)
        for side in sides if number % 2 else sides[::-1]:
            found += side(number)
        return found

    def _board(self, number: int) -> list[tuple[str, float]]:
        from pinhole.graft.prompt import Message, Soft

        vectors = np.random.default_rng(number + 1).standard_normal((self.items, self.engine.graft.projector.content_dim)).astype(np.float32)
        pictures = [Soft(f"board:{number}:{i}", vector) for i, vector in enumerate(vectors)]
        asked = Message.of("user", *self._head(), *pictures, "\nwhat is on this board?")
        first = self._ask([asked])
        self.tokens = first.prompt_tokens
        later = self._ask([asked, Message.of("assistant", "Many things."), Message.of("user", "which of them are for the winter?")])
        assert later.cached_tokens >= self.items, "the board's keys and values were not kept"
        prompt = self.engine.prompt([asked])
        parts = {"render_s": lambda: self.engine.prompt([asked]), "embed_s": lambda: self._embed(prompt)}
        found = [("first_token_s", first.first_token_s), ("next_question_s", later.first_token_s)]
        return [*found, *((name, _seconds(part)) for name, part in parts.items())]

    def _text(self, number: int) -> list[tuple[str, float]]:
        from pinhole.graft.prompt import Message

        words = "".join(random.Random(number).choices(self.words, k=self.items))
        usage = self._ask([Message.of("user", *self._head(), words, "\nwhat is on this board?")])
        return [("text_s", usage.first_token_s)]

    def _head(self) -> tuple[str, str]:
        from pinhole.graft.prompt import board_note

        return board_note("all of it", self.items), "\n"

    def _ask(self, messages: Sequence[Any]) -> Any:
        *_, done = self.engine.chat(messages, (), max_tokens=1)
        return done.usage

    def _embed(self, prompt: Any) -> None:
        import torch

        with torch.inference_mode(), self.engine.threads:
            self.engine._embed(prompt.tokens, prompt.soft)


def _seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def _words(graft: Any, most: int = 500) -> list[str]:
    """Words, with the space before them, that are one token each wherever they stand."""
    tokenizer, found = graft.tokenizer, []
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if text.startswith(" ") and text[1:].isascii() and text[1:].isalpha() and graft.prompter._tokenise_text(f"{text}{text}") == (token, token):
            found.append(text)
            if len(found) == most:
                break
    return found
