"""The engine on servers of its own: stock vLLM, asked over HTTP; here are only the projector and the tokenizer.

Keeps nothing of a conversation: any number of these may stand before the same servers. What the model says comes back as
token ids and is told as the engine in process tells it; a call is followed token by token in the same grammar that
the server was given. A server that fails before its first token is replaced unseen, one that fails
later ends that answer. After Yu et al. 2022 (Orca) and Kwon et al. 2023 (vLLM), whose batching this leaves to them.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pinhole.config import EngineConfig
from pinhole.engines.base import Call, Done, Event, Reason, TextDelta, Usage
from pinhole.engines.grammar import CallGuide, Grammar, Vocabulary
from pinhole.engines.handshake import Handshake, refused
from pinhole.engines.reading import check_lengths, read, whole
from pinhole.engines.replicas import Replica, Replicas
from pinhole.engines.upstream import Slow, Upstream, Watch, addresses
from pinhole.engines.wire import Letter, Wire
from pinhole.errors import EngineDown, EngineError, UsageError
from pinhole.graft.lens import Lens
from pinhole.graft.prompt import Message, Part, Prompt, Soft, ToolSchema, card, parse_call

log = logging.getLogger(__name__)
COMPLETIONS = "/v1/chat/completions"
# How to choose among tokens, said in full: a checkpoint's own settings may say otherwise.
PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
LOOK = 0.05  # seconds between two looks at whether answers are still wanted


class VllmEngine:
    """A graft, served elsewhere under the name ``model``. Any number of threads may call :meth:`chat`.

    Raises on opening whatever is wrong with a server that answers, and :class:`EngineDown` where none does.
    """

    def __init__(self, lens: Lens, config: EngineConfig, *, model: str, name: str = "pinhole") -> None:
        self.lens, self.config, self.model, self.name = lens, config, model, name
        self.wire = Wire(lens)
        self._vocabulary = Vocabulary(lens.tokenizer, lens.vocabulary, lens.ends)
        self._silent = {str(token): -100 for token in np.flatnonzero(self._vocabulary.silent)}
        self._handshake = Handshake(lens, self.wire, model, config.first_token_seconds)
        servers = [(url, Upstream(url, config.connect_seconds)) for url in addresses(config.url)]
        self.replicas = Replicas(servers, self._handshake.check, most=config.busy, pause=config.pause_seconds)
        self.replicas.open()
        self._streams: weakref.WeakSet[VllmStream] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=_watch, args=(weakref.ref(self), self._closed), name="pinhole-vllm", daemon=True).start()

    @property
    def context(self) -> int:
        return min(self.lens.context, self._handshake.context)

    @property
    def space(self) -> str:
        return self.lens.space

    @property
    def nested(self) -> tuple[int, ...]:
        return self.lens.prompter.nested

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is being answered; the servers stay."""
        self._closed.set()
        for stream in self.open_streams():
            stream.close()

    def card(self, k: int, soft: Soft | None, title: str) -> tuple[Part, ...]:
        return card(k, soft, title, self.lens.card, self.lens.card_words)

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), tokens_per_item: int | None = None) -> Prompt:
        """What the model will read. Raises :class:`PromptTooLong` with both numbers."""
        return read(whole(messages, tools, self.context, self.name), self.lens.prompter, self.context, self.name, tokens_per_item)

    def warm(self, tools: Sequence[ToolSchema] = ()) -> None:
        """Make the grammar; the servers keep the system prompt from its first use on."""
        self._vocabulary.grammar(tools)

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        *,
        tool_choice: str = "auto",
        max_tokens: int = 160,
        call_tokens: int = 96,
        temperature: float = 0.0,
        seed: int = 0,
        tokens_per_item: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> VllmStream:
        """See :class:`~pinhole.engines.base.Engine`. Also raises :class:`SpaceMismatch` for vectors of another width, before anything is sent."""
        began = time.perf_counter()
        check_lengths(max_tokens, call_tokens)
        grammar = self._vocabulary.grammar(tools, tool_choice)
        messages = whole(messages, tools, self.context, self.name)
        prompt = read(messages, self.lens.prompter, self.context, self.name, tokens_per_item)
        room = self.context - len(prompt.tokens)
        limits = Limits(min(max_tokens, room), min(call_tokens, room))
        letter = self.wire.letter(messages, prompt, tokens_per_item)
        body = self._body(letter, grammar, limits, temperature, seed)
        stream = VllmStream(self, Asked(body, letter, _beginning(messages), began), Teller(grammar, limits), cancelled)
        with self._lock:
            self._streams.add(stream)
        return stream

    def open_streams(self) -> list[VllmStream]:
        with self._lock:
            return list(self._streams)

    def _body(self, letter: Letter, grammar: Grammar, limits: Limits, temperature: float, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": letter.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "max_tokens": max(limits.text, limits.call) if grammar.may_call else limits.text,
            "temperature": temperature,
            "seed": seed & 0x7FFF_FFFF_FFFF_FFFF,
            "stop_token_ids": self._vocabulary.ends.nonzero()[0].tolist(),
        } | PLAIN
        if grammar.lark:
            return body | {"structured_outputs": {"grammar": grammar.lark}}
        return body | {"logit_bias": self._silent}


def _watch(engine: weakref.ref[VllmEngine], closed: threading.Event) -> None:
    """Whoever reads an answer waits in a socket: somebody else must look whether it is still wanted."""
    while not closed.wait(LOOK):
        held = engine()
        if held is None:
            return
        for stream in held.open_streams():
            stream.look()
        del held


def _beginning(messages: Sequence[Message]) -> str:
    """What a conversation is known by as it grows: all up to its first question."""
    end = next((i for i, message in enumerate(messages) if message.role == "user"), len(messages) - 1)
    parts = ((message.role, *(part.key if isinstance(part, Soft) else part for part in message.parts)) for message in messages[: end + 1])
    return repr(list(parts))


@dataclass(frozen=True)
class Limits:
    """Tokens of an answer in text, and of a call."""

    text: int
    call: int


@dataclass(frozen=True)
class Asked:
    body: dict[str, Any]
    letter: Letter
    key: str
    began: float


class Teller:
    """Token ids as they come → events. ``reason`` is set at the end; ``cut`` where the end is ours, and the server would go on."""

    def __init__(self, grammar: Grammar, limits: Limits) -> None:
        self._grammar, self._limits = grammar, limits
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._guide: CallGuide | None = None
        self._spoke = self.cut = False
        self.said = 0
        self.reason: Reason | None = None

    def take(self, token: int) -> Iterator[Event]:
        vocabulary = self._grammar.vocabulary
        if self.reason is not None:
            return
        if vocabulary.ends[token]:
            yield from self.end("stop")
            return
        self.said += 1
        if self.said == 1:
            self._guide = self._grammar.call(token)
        elif self._guide is not None:
            self._guide.consume(token)
        if self._guide is None:
            yield from self._speak(self._bytes.decode(vocabulary.tokens.decode_bytes([token])))
            self.cut = self.said >= self._limits.text
        else:
            self.cut = self.said >= self._limits.call and not self._guide.complete
        if self.cut or self._guide is not None and self._guide.complete:
            yield from self.end("length")

    def end(self, reason: Reason) -> Iterator[Event]:
        """What is still to be said. A call that was cut off is closed by its grammar."""
        if self.reason is not None:
            return
        self.reason = reason
        if self._guide is None:
            yield from self._speak(self._bytes.decode(b"", final=True))
        elif self._guide.complete or reason != "cancelled" and self._guide.close():
            self.said, call = len(self._guide.tokens), parse_call(self._guide.text)
            if call is not None:
                self.reason = "call"
                yield Call(*call, text=self._guide.text)

    def _speak(self, text: str) -> Iterator[Event]:
        if not self._spoke:
            text = text.lstrip(" ")
        if text:
            self._spoke = True
            yield TextDelta(text)


class VllmStream:
    """The events of one answer. Closing it, or dropping it, ends it on the server too."""

    def __init__(self, engine: VllmEngine, asked: Asked, teller: Teller, cancelled: Callable[[], bool] | None) -> None:
        self._config, self._replicas, self._asked, self._teller, self._cancelled = engine.config, engine.replicas, asked, teller, cancelled
        self._closed = self._unwanted = self._ended = False
        self._watch = Watch()
        self._first_at = 0.0
        self._cached = 0
        self._events = self._run()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if self._closed:
            raise StopIteration
        return next(self._events)

    def close(self) -> None:
        self._closed = True
        self._watch.end()
        with contextlib.suppress(ValueError):  # somebody is reading it: the end of the connection ends that
            self._events.close()

    def __del__(self) -> None:
        self.close()

    def look(self) -> None:
        """End the wait for an answer that nobody wants any more."""
        if not self._unwanted and self._no_longer_wanted():
            self._watch.end()

    def _no_longer_wanted(self) -> bool:
        try:
            self._unwanted = self._unwanted or self._cancelled is not None and bool(self._cancelled())
        except Exception:  # whoever asked cannot say any more whether the answer is wanted
            self._unwanted = True
        return self._unwanted

    # -- asking ---------------------------------------------------------------------------------

    def _run(self) -> Generator[Event, None, None]:
        tried: set[Replica[Upstream]] = set()
        while True:
            with self._replicas.lease(self._asked.key, tried) as replica:
                try:
                    yield from self._answer(replica.server)
                    return
                except EngineDown as error:
                    if self._closed:
                        return
                    if self._unwanted:
                        yield from self._end("cancelled")
                        return
                    self._replicas.failed(replica, error)
                    if self._teller.said or isinstance(error, Slow):
                        raise
                    tried.add(replica)
                    if len(tried) == len(self._replicas.all):
                        raise
                except EngineError as error:
                    log.warning("%s", error)
                    raise

    def _answer(self, server: Upstream) -> Iterator[Event]:
        """One server's answer, told as it comes."""
        lines = server.lines("POST", COMPLETIONS, self._asked.body, self._config.first_token_seconds, self._watch)
        try:
            if lines.status != 200:
                raise refused(lines, server.url)
            for data in lines.events(self._patience()):
                if self._no_longer_wanted():
                    yield from self._end("cancelled")
                    return
                if data == b"[DONE]":
                    lines.rest(self._config.token_seconds)  # to its very end: then the connection can be kept
                    yield from self._end("stop")
                    return
                yield from self._chunk(data, server.url)
                if self._teller.cut and not self._ended:
                    yield from self._end("length")
                    return
            raise EngineDown("the engine's server ended in the middle of an answer", where=server.url, fix="ask again")
        finally:
            lines.close()

    def _patience(self) -> Iterator[float]:
        """Seconds that the next read may take."""
        deadline = self._asked.began + self._config.first_token_seconds
        while True:
            yield self._config.token_seconds if self._teller.said else deadline - time.perf_counter()

    def _chunk(self, data: bytes, url: str) -> Iterator[Event]:
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise EngineDown(f"the engine's server gave up: {str(chunk['error'].get('message'))[:200]}", where=url, fix="ask again")
            read = chunk.get("prompt_token_ids")
            tokens = [token for choice in chunk["choices"] for token in choice.get("token_ids") or ()]
            ended = [choice["finish_reason"] for choice in chunk["choices"] if choice.get("finish_reason")]
            details = (chunk.get("usage") or {}).get("prompt_tokens_details") or {}
            self._cached = int(details.get("cached_tokens") or self._cached)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise EngineDown("the engine's server said something that is no answer", where=url, fix="name the address of a vLLM server") from None
        if read is not None and tuple(read) != self._asked.letter.ids:
            raise EngineError("the engine's server read another prompt than it was sent", where=url, fix="restart it on this graft's export")
        for token in tokens:
            self._first_at = self._first_at or time.perf_counter()
            yield from self._told(token, url)
        if ended:
            self._ended = True
            yield from self._teller.end("length" if ended[0] == "length" else "stop")

    def _told(self, token: int, url: str) -> Iterator[Event]:
        try:
            yield from self._teller.take(token)
        except (RuntimeError, IndexError, UsageError):
            fix = "start it with --structured-outputs-config.backend guidance"
            raise EngineError("the engine's server does not keep to the grammar", where=url, fix=fix) from None

    def _end(self, reason: Reason) -> Iterator[Event]:
        yield from self._teller.end(reason)
        now = time.perf_counter()
        first = (self._first_at or now) - self._asked.began
        usage = Usage(len(self._asked.letter.ids), self._cached, self._teller.said, first, now - self._asked.began)
        yield Done(self._teller.reason or reason, usage)
