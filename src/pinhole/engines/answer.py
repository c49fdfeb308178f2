"""One answer being made: what the model must read next, and what its last logits mean.

Lives on the engine's worker thread; the reader has the other end of a queue. Knows nothing of other
answers: the engine decides whose turn it is.
"""

from __future__ import annotations

import codecs
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pinhole.engines.base import Call, Done, Event, Reason, TextDelta, Usage
from pinhole.engines.grammar import CallGuide, Grammar
from pinhole.engines.kv_cache import Entry, KVCache
from pinhole.engines.ragged import Piece
from pinhole.graft.prompt import Prompt, Soft, parse_call

# Token ids (negative for pictures) and the pictures they stand for → (tokens, hidden)
Embed = Callable[[Sequence[int], Sequence[Soft]], Tensor]


@dataclass(frozen=True)
class Settings:
    max_tokens: int
    call_tokens: int
    temperature: float
    seed: int
    pin: bool = False  # read the prompt, keep it for good, and say nothing


class Answer:
    """A job of the fair queue. ``prompt`` must leave room for one token at least."""

    def __init__(
        self, prompt: Prompt, ids: np.ndarray, settings: Settings, grammar: Grammar, cancelled: Callable[[], bool] | None, began: float
    ) -> None:
        self.prompt, self.ids, self.settings, self.grammar, self._cancelled = prompt, ids, settings, grammar, cancelled
        self.events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self.closed = threading.Event()
        self.done = False
        self._began, self._first_at, self._reused = began, 0.0, 0
        self._entry: Entry | None = None
        self._cache: KVCache | None = None
        self._pending: list[int] = []  # said, but not read back by the model yet
        self._said: list[int] = []
        self._guide: CallGuide | None = None
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._spoke = False
        self._random = torch.Generator().manual_seed(settings.seed & 0x7FFF_FFFF_FFFF_FFFF) if settings.temperature > 0 else None

    # -- a job of the queue ---------------------------------------------------------------------

    def abandoned(self) -> bool:
        try:
            return not self.done and (self.closed.is_set() or self._cancelled is not None and bool(self._cancelled()))
        except Exception:  # whoever asked cannot say any more whether the answer is wanted
            return True

    def begin(self) -> None:
        """Nothing yet: the keys and values are taken at the first step, when all that is cached is there."""

    def end(self, error: BaseException | None) -> None:
        if error is None:
            self._finish("cancelled")
            return
        self.done = True
        if self._entry is not None and self._cache is not None:
            self._cache.drop(self._entry)
        self.events.put(error)

    # -- reading --------------------------------------------------------------------------------

    @property
    def reading(self) -> int:
        """Tokens of the prompt that are still to be read; 0 once the answer has begun."""
        return len(self.ids) - self._entry.kv.length if self._entry is not None and not self._said else 0

    def take(self, cache: KVCache) -> None:
        if self._entry is None:
            self._cache = cache
            self._entry = cache.take(self.ids, len(self.ids) + max(self.settings.max_tokens, self.settings.call_tokens))
            self._reused = self._entry.kv.length

    def piece(self, embed: Embed, most: int) -> Piece:
        """The next tokens to read, no more than ``most`` of a prompt."""
        assert self._entry is not None
        kv = self._entry.kv
        if not self._said:
            end = min(len(self.ids), kv.length + most)
            return Piece(kv, self._embed_prompt(embed, kv.length, end), wants_logits=end == len(self.ids))
        kv.reserve(kv.length + len(self._pending))
        return Piece(kv, embed(self._pending, ()), wants_logits=True)

    def _embed_prompt(self, embed: Embed, start: int, end: int) -> Tensor:
        tokens, soft = [], []
        for token in self.prompt.tokens[start:end]:
            if token < 0:
                soft.append(self.prompt.soft[-1 - token])
                token = -len(soft)
            tokens.append(token)
        return embed(tokens, soft)

    # -- saying ---------------------------------------------------------------------------------

    def accept(self, logits: Tensor) -> None:
        """(vocabulary,) float32 after the last token read: choose the next one and say what it completes."""
        if self.settings.pin:
            self._finish("stop")
            return
        first = not self._said
        if first:
            token = self._choose(logits, self.grammar.first)
            self._first_at = time.perf_counter()
            self._guide = self.grammar.call(token)
        elif self._guide is not None:
            token = self._choose(logits, self._guide.allowed())
            self._guide.consume(token)
        else:
            token = self._choose(logits, self.grammar.later)
        if self._guide is not None:
            self._continue_call(self._guide, token)
        else:
            self._continue_text(token)

    def _choose(self, logits: Tensor, allowed: np.ndarray) -> int:
        scores = np.where(allowed, logits.cpu().numpy(), -np.inf)
        best = int(scores.argmax())
        if not np.isfinite(scores[best]):
            raise RuntimeError("the model gave no finite score for any token")
        if self._random is None:
            return best
        odds = torch.softmax(torch.from_numpy(scores) / self.settings.temperature, dim=0)
        return int(torch.multinomial(odds, 1, generator=self._random))

    def _continue_text(self, token: int) -> None:
        if self.grammar.vocabulary.ends[token]:
            self._finish("stop")
            return
        self._said.append(token)
        self._pending = [token]
        self._speak(self._bytes.decode(self.grammar.vocabulary.tokens.decode_bytes([token])))
        if len(self._said) >= self.settings.max_tokens:
            self._finish("length")

    def _speak(self, text: str) -> None:
        if not self._spoke:
            text = text.lstrip(" ")
        if text:
            self._spoke = True
            self.events.put(TextDelta(text))

    def _continue_call(self, guide: CallGuide, token: int) -> None:
        self._pending = [token, *guide.forced()]
        self._said = guide.tokens
        if not guide.complete and len(self._said) >= self.settings.call_tokens:
            guide.close()
        if guide.complete:
            call = parse_call(guide.text)
            if call is not None:
                self.events.put(Call(*call, text=guide.text))
            self._finish("call" if call is not None else "length")
        elif len(self._said) >= self.settings.call_tokens:
            self._finish("length")

    def _finish(self, reason: Reason) -> None:
        """Say the last word and hand the keys and values back."""
        self.done = True
        if self._guide is None:
            self._speak(self._bytes.decode(b"", final=True))
        if self._entry is not None and self._cache is not None:
            self._cache.give(self._entry, self._said, pin=self.settings.pin)
        now = time.perf_counter()
        first = (self._first_at or now) - self._began
        self.events.put(Done(reason, Usage(len(self.ids), self._reused, len(self._said), first, now - self._began)))


class Events:
    """The reader's end of an answer. Closing it, or dropping it, cancels the answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._ended = False

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if self._ended or self._answer.closed.is_set():
            raise StopIteration
        event = self._answer.events.get()
        if isinstance(event, BaseException):
            self._ended = True
            raise event
        self._ended = isinstance(event, Done)
        return event

    def close(self) -> None:
        self._answer.closed.set()

    def __del__(self) -> None:
        self.close()
