"""One turn of a conversation: the model calls tools until it answers, within limits of steps, tokens and time.

References are resolved here, in code; whatever is wrong with a call goes back to the model as a
message. What is told to the person is true by construction: links come from what was found, never from what the
model wrote, and a turn whose answer is empty or fails still says what it found. Titles are data: nothing
here reads them for numbers or instructions. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pinhole.assistant.conversation import Conversation, ItemPart, PicturePart, Said, Transcript, also, link
from pinhole.assistant.tools import Found, Refused, Shop, Thing, Toolbox
from pinhole.config import AssistantConfig
from pinhole.engines.base import Call, Done, Engine, TextDelta, Usage
from pinhole.errors import PinholeError, SpaceMismatch, UsageError
from pinhole.graft.prompt import ToolSchema, counted

log = logging.getLogger(__name__)
REMEMBERED = 256  # finished turns whose exact messages are kept


@dataclass(frozen=True)
class Started:
    """A built-in tool begins."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ShownItem:
    k: int
    id: str
    title: str
    score: float | None


@dataclass(frozen=True)
class Shown:
    """What a tool found, under the numbers it has in this conversation."""

    items: list[ShownItem]


@dataclass(frozen=True)
class Text:
    """A piece of the answer, references already written as links."""

    delta: str


@dataclass(frozen=True)
class Problem:
    """Something went wrong on the way; the turn goes on."""

    message: str


@dataclass(frozen=True)
class Finished:
    """Always last. ``text`` is all the deltas; ``calls`` are calls of the client's own tools, which it must answer;
    ``reason`` is "stop", "length", "calls", "time" or "cancelled"."""

    text: str
    usage: Usage
    calls: list[Call]
    reason: str = "stop"


Event = Started | Shown | Text | Problem | Finished


class Linker:
    """Turns ``#2`` into a link as text streams by, and keeps the model from writing links of its own."""

    _HOLD = re.compile(r"(#[0-9]{0,3}|\](\((i(t(e(m)?)?)?)?)?)$")
    _REFERENCE = re.compile(r"#([0-9]{1,3})(?![0-9])")

    def __init__(self, things: dict[int, Thing]) -> None:
        self._things, self._held = things, ""
        self.mentioned: set[int] = set()

    def push(self, delta: str) -> str:
        text = self._held + delta
        held = self._HOLD.search(text)
        self._held = text[held.start() :] if held else ""
        return self._write(text[: held.start()] if held else text)

    def flush(self) -> str:
        text, self._held = self._held, ""
        return self._write(text)

    def _write(self, text: str) -> str:
        return self._REFERENCE.sub(self._link, text.replace("](item:", "] (item:"))

    def _link(self, match: re.Match[str]) -> str:
        k = int(match[1])
        if k not in self._things:
            return match[0]
        self.mentioned.add(k)
        return link(k, self._things[k])


class Assistant:
    """An engine, tools and a shop. Any number of threads may take turns; each turn belongs to one."""

    def __init__(self, engine: Engine, toolbox: Toolbox, shop: Shop, config: AssistantConfig | None = None) -> None:
        if engine.space != shop.space:
            raise SpaceMismatch(f"the model reads space {engine.space}, the catalogue's vectors are of {shop.space}", fix="run `pinhole build`")
        self.engine, self.toolbox, self.shop, self.config = engine, toolbox, shop, config or AssistantConfig()
        self._memory = Memory()

    def turn(
        self,
        conversation: Conversation,
        cancelled: Callable[[], bool] | None = None,
        *,
        tools: Sequence[ToolSchema] = (),
        tool_choice: str = "auto",
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        tokens_per_item: int | None = None,
    ) -> Iterator[Event]:
        """Answer the last message; the conversation then holds the answer too. ``tools`` are the client's own.

        The generator raises what is wrong with the request (``UnknownItem``, ``BadImage``, ``PromptTooLong``, ``Busy``,
        ``UsageError``) before its first event. Closing it stops the model.
        """
        if clash := [tool["name"] for tool in tools if tool["name"] in self.toolbox]:
            raise UsageError(f"`{clash[0]}` is a built-in tool", where="tools", fix="give yours another name")
        transcript = self._memory.open(conversation, lambda: Transcript(self.shop, self.engine.card))
        options: dict[str, Any] = {"max_tokens": max_tokens or self.config.max_tokens, "temperature": temperature or 0.0, "seed": seed or 0}
        options["tokens_per_item"] = tokens_per_item
        turn = _Turn(self, transcript, tuple(tools), tool_choice, options, cancelled)
        yield from turn.run()
        finished = turn.finished
        if finished is not None and not finished.calls and finished.text:
            conversation.said.append(Said("assistant", (finished.text,)))
            self._memory.keep(conversation, transcript)


@dataclass
class _Turn:
    """The state of one turn. ``run`` is the loop; each step is one answer of the model."""

    assistant: Assistant
    transcript: Transcript
    tools: tuple[ToolSchema, ...]
    tool_choice: str
    options: dict[str, Any]
    cancelled: Callable[[], bool] | None
    usage: Usage = Usage()
    said: str = ""
    raw: str = ""
    calls: set[str] = field(default_factory=set)
    shown: dict[int, None] = field(default_factory=dict)
    problem: str = ""
    failed: str = ""  # what is true where the last tool brought nothing: said in place of the model's words
    finished: Finished | None = None

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.assistant.config.max_turn_seconds
        self._schemas = (*self.assistant.toolbox.schemas, *self.tools)
        self._linker = Linker(self.transcript.things)
        self._must_talk = False
        self._reason = "stop"
        self._hush = False

    @property
    def late(self) -> bool:
        return time.monotonic() > self._deadline

    def stop(self) -> bool:
        return self._hush or self.late or self.cancelled is not None and self.cancelled()

    def run(self) -> Iterator[Event]:
        for step in range(self.assistant.config.max_steps + 1):
            choice = "none" if self._must_talk or step == self.assistant.config.max_steps else self.tool_choice
            call = yield from self._ask(choice)
            if call is None or choice == "none":
                break
            self.tool_choice = "auto"  # "required", or a tool's name, is about the first call
            if call.name not in self.assistant.toolbox:
                yield self._finish("calls", [call])
                return
            yield from self._do(call)
        yield from self._end()

    def _ask(self, tool_choice: str) -> Generator[Event, None, Call | None]:
        """One answer of the model: text goes out as it comes; a call is returned.

        A model whose tool has just brought nothing may try another call. Words are not asked of it: what is true is known.
        """
        call, raw, self._hush = None, "", False
        try:
            stream = self.assistant.engine.chat(
                self.transcript.prompt(self._schemas), self._schemas, tool_choice=tool_choice, cancelled=self.stop, **self.options
            )
            try:
                for event in stream:
                    if isinstance(event, TextDelta) and self.failed:
                        raw, self._hush = self.failed, True
                    elif isinstance(event, TextDelta):
                        raw += event.text
                        yield from self._say(self._linker.push(event.text))
                    elif isinstance(event, Call):
                        call = event
                    elif isinstance(event, Done):
                        self.usage += event.usage
                        self._reason = "stop" if event.reason == "call" else event.reason
            finally:
                stream.close()
        except Exception as error:
            if not self.shown and not self.said:
                raise
            self._trouble(error)
            yield Problem(self.problem)
        if self._hush:
            self._reason = "stop"
            yield from self._say(self._linker.push(self.failed))
        self.raw = raw
        return call

    def _say(self, text: str) -> Iterator[Event]:
        text = text if self.said else text.lstrip()
        if text:
            self.said += text
            yield Text(text)

    # -- tools ----------------------------------------------------------------------------------

    def _do(self, call: Call) -> Iterator[Event]:
        """Run a built-in tool and tell the model what came of it."""
        self.transcript.call(call.name, call.arguments, call.text)
        signature = json.dumps([call.name, call.arguments], sort_keys=True)
        if signature in self.calls:
            self._must_talk = True
            self.transcript.told("the same as before")
            return
        self.calls.add(signature)
        yield Started(call.name, call.arguments)
        try:
            outcome = self.assistant.toolbox.call(self.assistant.shop, call.name, call.arguments, self.transcript.resolve)
            if isinstance(outcome, Found):
                yield Shown(self._number(outcome))
                self.failed = "" if self.shown else "I found nothing. Try other words."
            else:
                self.transcript.told(outcome)
                self.failed = ""
        except Exception as error:
            self._trouble(error, call.name)
            self.transcript.told(self.problem)
            self.failed = "" if self.shown else f"{self.problem[:1].upper()}{self.problem[1:]}."
            yield Problem(self.problem)

    def _number(self, found: Found) -> list[ShownItem]:
        things = self.assistant.shop.things([id for id, _ in found.items])
        numbers = [self.transcript.number(thing) for thing in things]
        self.transcript.found(numbers, found.note)
        self.shown.update(dict.fromkeys(numbers))
        return [ShownItem(k, str(thing.id), thing.title, score) for k, thing, (_, score) in zip(numbers, things, found.items, strict=True)]

    def _trouble(self, error: Exception, where: str = "the model") -> None:
        if isinstance(error, (Refused, PinholeError)):
            self.problem = error.what if isinstance(error, PinholeError) else str(error)
        else:
            log.exception("%s failed", where)
            self.problem = f"{where} failed"

    # -- the end --------------------------------------------------------------------------------

    def _end(self) -> Iterator[Event]:
        if self._reason == "cancelled" and not self.late:
            yield self._finish("cancelled")
            return
        if self.late:
            self._reason = "time"
            yield Problem(f"the turn took longer than {self.assistant.config.max_turn_seconds:g} s")
        yield from self._say(self._linker.flush())
        if not self.said.strip():
            yield from self._say(self._fallback())
        rest = [k for k in self.shown if k not in self._linker.mentioned]
        links = [link(k, self.transcript.things[k]) for k in rest]
        yield from self._say(also(links, mentioned=bool(self._linker.mentioned)))
        yield self._finish(self._reason)

    def _fallback(self) -> str:
        """A short true answer where the model gave none."""
        if self.shown:
            self._linker.mentioned.update(self.shown)
            count = f"I found {counted(len(self.shown))}"
            self.raw = f"{count}: {', '.join(f'#{k}' for k in self.shown)}."
            return f"{count}: {', '.join(link(k, self.transcript.things[k]) for k in self.shown)}."
        self.raw = self.failed or (f"That did not work: {self.problem}." if self.problem else "I have no answer to that.")
        return self.raw

    def _finish(self, reason: str, calls: Sequence[Call] = ()) -> Finished:
        if self.raw.strip() and not calls:
            self.transcript.answer(self.raw)
        self.finished = Finished(self.said, self.usage, list(calls), reason)
        return self.finished


class Memory:
    """Transcripts of finished turns, found again by the whole conversation up to there.

    A stateless client sends the conversation back without the calls that were made; with them the model
    reads exactly what it read before, and its keys and values are still cached. The key is a hash of
    everything said, so nobody finds a transcript without having its conversation. Forgetting one costs quality,
    never correctness: the numbers are in the text.
    """

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._kept: OrderedDict[str, Transcript] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, conversation: Conversation, make: Callable[[], Transcript]) -> Transcript:
        """The model's side of the conversation: from the longest beginning that is remembered, the rest read anew."""
        keys = _keys(conversation.said)
        with self._lock:
            start = next((n for n in range(len(keys), 0, -1) if conversation.said[n - 1].role == "assistant" and keys[n - 1] in self._kept), 0)
            transcript = self._kept[keys[start - 1]].copy() if start else make()
        for said in conversation.said[start:]:
            transcript.add(said)
        return transcript

    def keep(self, conversation: Conversation, transcript: Transcript) -> None:
        with self._lock:
            self._kept[_keys(conversation.said)[-1]] = transcript
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)


def _keys(said: Sequence[Said]) -> list[str]:
    """For each message a hash of the conversation up to it."""
    running, keys = hashlib.sha256(), []
    for message in said:
        running.update(repr((message.role, message.calls, message.answers)).encode())
        for part in message.parts:
            content = part.data if isinstance(part, PicturePart) else part.id if isinstance(part, ItemPart) else part.strip()
            raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
            running.update(f"{type(part).__name__} {len(raw)} ".encode() + raw)
        keys.append(running.hexdigest())
    return keys
