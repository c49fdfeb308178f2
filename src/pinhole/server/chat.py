"""``POST /v1/chat/completions``: OpenAI's wire form on one side, the assistant's events on the other.

A request becomes a `Conversation`; the events of its turn become one completion, or a stream of chunks. What the
assistant did on the way (calls, items shown, timings) stands in ``message.pinhole``, and in a stream in
``delta.pinhole``, one event at a time, so that ordinary clients can ignore it. Stateless: whatever must be
known in the next turn is in the text of the answer. Knows nothing of tools or of models.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from pinhole.assistant.conversation import Conversation
from pinhole.assistant.loop import Finished, Problem, Shown, Started, Text
from pinhole.errors import Busy, PinholeError, UsageError
from pinhole.server.bridge import Stream
from pinhole.server.edge import error_object, unexpected

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_MESSAGES = 2000


class Invalid(UsageError):
    """A field of the request that is missing or of the wrong type; ``param`` names it."""

    def __init__(self, param: str, what: str, fix: str = "") -> None:
        super().__init__(f"`{param}` {what}", fix=fix)
        self.param = param

    def __reduce__(self) -> Any:
        return (Invalid, (self.param, self.what.removeprefix(f"`{self.param}` "), self.fix))


class UnknownModel(UsageError):
    """The request names a model that is not served here."""

    status = 404


# -- the request ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatRequest:
    """What of the request body is used, checked: types here, meaning in the assistant."""

    messages: list[dict[str, Any]]
    stream: bool = False
    include_usage: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str = "auto"
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    tokens_per_item: int | None = None


def _typed(body: dict[str, Any], key: str, kind: type | tuple[type, ...], words: str) -> Any:
    value = body.get(key)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise Invalid(key, f"is not {words}")
    return value


def parse_request(body: dict[str, Any], model: str) -> ChatRequest:
    """Check the body of a chat request. Raises :class:`Invalid` naming the field, or :class:`UnknownModel`."""
    named = _typed(body, "model", str, "a string")
    if named is not None and named != model:
        raise UnknownModel(f"no model {named[:80]!r} here", fix=f"use {model!r}, or ask /v1/models")
    if (_typed(body, "n", int, "a whole number") or 1) != 1:
        raise Invalid("n", "can only be 1")
    limit = _typed(body, "max_completion_tokens", int, "a whole number")
    if limit is None:
        limit = _typed(body, "max_tokens", int, "a whole number")
    if limit is not None and limit < 1:
        raise Invalid("max_tokens", "is less than 1")
    temperature = _typed(body, "temperature", (int, float), "a number")
    if temperature is not None and not (math.isfinite(temperature) and 0 <= temperature <= 2):
        raise Invalid("temperature", "is not between 0 and 2")
    options = _typed(body, "stream_options", dict, "an object") or {}
    tools = _tools(body)
    return ChatRequest(
        messages=_messages(body.get("messages")),
        stream=bool(_typed(body, "stream", bool, "true or false")),
        include_usage=bool(_typed(options, "include_usage", bool, "true or false")),
        tools=tools,
        tool_choice=_tool_choice(body.get("tool_choice"), [tool["name"] for tool in tools]),
        max_tokens=limit,
        temperature=None if temperature is None else float(temperature),
        seed=_typed(body, "seed", int, "a whole number"),
        tokens_per_item=_typed(body, "tokens_per_item", int, "a whole number"),
    )


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise Invalid("messages", "is not a list with at least one message", 'send [{"role": "user", "content": "…"}]')
    if len(value) > MAX_MESSAGES:
        raise Invalid("messages", f"has {len(value):,} messages, more than {MAX_MESSAGES:,}", "start a new conversation")
    for i, message in enumerate(value):
        _message(message, f"messages[{i}]")
    last = value[-1]
    if last["role"] not in ("user", "tool", "function"):
        raise Invalid(f"messages[{len(value) - 1}]", f"is from the {last['role']}: there is nothing to answer", "end with a user message")
    if last["role"] == "user" and _empty(last.get("content")):
        raise Invalid(f"messages[{len(value) - 1}].content", "is empty", "say something, or send a picture")
    return value


def _message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise Invalid(where, "is not an object")
    if message.get("role") not in ROLES:
        raise Invalid(f"{where}.role", f"is not one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None:
        if message["role"] not in ("assistant", "tool", "function"):
            raise Invalid(f"{where}.content", "is missing")
    elif isinstance(content, list):
        for j, part in enumerate(content):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise Invalid(f"{where}.content[{j}]", "is not an object with a type", 'send {"type": "text", "text": "…"}')
    elif not isinstance(content, str):
        raise Invalid(f"{where}.content", "is neither a string nor a list of parts")


def _empty(content: Any) -> bool:
    if isinstance(content, str):
        return not content.strip()
    texts = [part.get("text") for part in content if part["type"] == "text"]
    return len(texts) == len(content) and not any(isinstance(text, str) and text.strip() for text in texts)


def _tools(body: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    tools = _typed(body, "tools", list, "a list") or []
    if len(tools) > 64:
        raise Invalid("tools", "has more than 64 tools")
    schemas = []
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type", "function") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise Invalid(f"tools[{i}]", "is not a function with a name", 'send {"type": "function", "function": {"name": …, "parameters": {…}}}')
        if not isinstance(function.get("parameters", {}), dict) or not isinstance(function.get("description", ""), str):
            raise Invalid(f"tools[{i}].function", "has a description or parameters of the wrong type")
        schemas.append({"name": function["name"], "description": function.get("description", ""), "parameters": function.get("parameters", {})})
    return tuple(schemas)


def _tool_choice(value: Any, names: list[str]) -> str:
    """ "auto", "none", "required", or the name of one of the client's tools."""
    if value is None or value in ("auto", "none", "required"):
        return value or "auto"
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name not in names:
        raise Invalid("tool_choice", "is neither auto, none, required nor one of the request's tools")
    return str(name)


# -- the answer -------------------------------------------------------------------------------------


def item_path(item_id: str) -> str:
    """The path of an item on this server; its picture is below, at ``/image``."""
    return f"/items/{quote(item_id, safe='')}"


@dataclass
class Account:
    """What happened in one turn, as ``message.pinhole`` tells it. A call's ``seconds`` are those until its items or its
    failure; a call that was answered to the model in words has none."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    _open: float | None = None  # since when the last call is at work

    def add(self, event: Any) -> dict[str, Any] | None:
        """Record an event; returns what a stream tells of it, or None where it tells nothing."""
        if isinstance(event, Started):
            self._open = time.perf_counter()
            self.calls.append({"name": event.name, "arguments": plain(event.arguments), "seconds": None, "items": 0})
            return {"type": "call", "call": len(self.calls) - 1, "name": event.name, "arguments": self.calls[-1]["arguments"]}
        if isinstance(event, Shown):
            shown = [self._item(item) for item in event.items]
            self.items.extend(shown)
            return {"type": "items", "items": shown, **self._close(len(shown))}
        if isinstance(event, Problem):
            self.problems.append(event.message)
            return {"type": "problem", "message": event.message, **self._close(0)}
        self._open = None
        if isinstance(event, Finished):
            self.usage = usage_details(event.usage)
            return {"type": "finished", "usage": self.usage}
        return None

    def _close(self, items: int) -> dict[str, Any]:
        if self._open is None:
            return {"call": None, "seconds": None}
        self.calls[-1].update(seconds=round(time.perf_counter() - self._open, 4), items=items)
        self._open = None
        return {"call": len(self.calls) - 1, "seconds": self.calls[-1]["seconds"]}

    @staticmethod
    def _item(item: Any) -> dict[str, Any]:
        path = item_path(item.id)
        score = None if item.score is None else round(float(item.score), 4)
        return {"id": item.id, "k": item.k, "title": item.title, "score": score, "url": path, "image": f"{path}/image"}

    def public(self) -> dict[str, Any]:
        return {"calls": self.calls, "items": self.items, "problems": self.problems, "usage": self.usage}


def plain(value: Any) -> Any:
    """Anything to what JSON can hold."""
    return json.loads(json.dumps(value, default=str))


def usage_details(usage: Any) -> dict[str, Any]:
    names = ("prompt_tokens", "cached_tokens", "completion_tokens", "first_token_s", "total_s")
    return {name: round(value, 4) if isinstance(value, float) else value for name in names if (value := getattr(usage, name, None)) is not None}


def openai_usage(usage: dict[str, Any]) -> dict[str, Any]:
    prompt, completion = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0)},
    }


class Answer:
    """The response to a chat request: pulls the turn's events and writes them in one of the two forms.

    A reader who leaves stops the turn. Nothing is written before the first event is there, so that a failure which
    shows at once (an unknown item, a prompt too long) has its own status; a later one ends a stream with an error event.
    """

    def __init__(self, request: ChatRequest, model: str, turn: Stream[Any]) -> None:
        self.request, self.model, self.turn = request, model, turn
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex[:24]}", int(time.time())
        self.account = Account()

    async def response(self, receive: Receive) -> Response:
        """Waits for the first event. Raises what the turn raises until then."""
        events = aiter(self.turn)
        watch = asyncio.create_task(_gone(receive))
        first: asyncio.Future[Any] = asyncio.ensure_future(anext(events))
        try:
            await asyncio.wait((watch, first), return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                raise ClientDisconnect
            head = first.result()
            if self.request.stream:
                return _Events(self._chunks(head, events), watch, self.turn.cancel)
            whole = asyncio.create_task(self._whole(head, events))
            await asyncio.wait((watch, whole), return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                whole.cancel()
                raise ClientDisconnect
            watch.cancel()
            return JSONResponse(whole.result())
        except BaseException:
            self.turn.cancel()
            first.cancel()
            watch.cancel()
            raise

    async def _whole(self, head: Any, events: AsyncIterator[Any]) -> dict[str, Any]:
        finished: Any = None
        async for event in _chain(head, events):
            self.account.add(event)
            finished = event if isinstance(event, Finished) else finished
        text, calls, reason = _outcome(finished)
        message: dict[str, Any] = {"role": "assistant", "content": text, "pinhole": self.account.public()}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return self._frame("chat.completion", [choice]) | {"usage": openai_usage(self.account.usage)}

    async def _chunks(self, head: Any, events: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        yield self._chunk({"role": "assistant", "content": ""})
        finished = None
        try:
            async for event in _chain(head, events):
                told = self.account.add(event)
                if isinstance(event, Text):
                    yield self._chunk({"content": event.delta})
                if not isinstance(event, Finished):
                    if told is not None:
                        yield self._chunk({"pinhole": told})
                    continue
                finished = event
                _, calls, reason = _outcome(event)
                if calls:
                    yield self._chunk({"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
                yield self._chunk({"pinhole": told})
                yield self._chunk({}, reason)
                if self.request.include_usage:
                    yield _sse(self._frame("chat.completion.chunk", []) | {"usage": openai_usage(self.account.usage)})
            if finished is None:
                raise cut_short()
        except PinholeError as error:
            yield _sse(error_object(error))
        except Exception as error:  # the stream has begun: its end is the only place to say so
            yield _sse(error_object(unexpected(error, "chat stream")))
        yield b"data: [DONE]\n\n"

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        return _sse(self._frame("chat.completion.chunk", [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]))


def cut_short() -> Busy:
    """A turn that ends without its last event while somebody still reads it was stopped by the server."""
    return Busy("the server is shutting down", fix="try again in a moment")


REASONS = {"stop": "stop", "calls": "tool_calls", "length": "length", "time": "length", "cancelled": "stop"}


def _outcome(finished: Any) -> tuple[str, list[dict[str, Any]], str]:
    """Text, the client's own tool calls in OpenAI's form, and the reason of the end."""
    if finished is None:
        raise cut_short()
    calls = [
        {"id": f"call_{uuid.uuid4().hex[:20]}", "type": "function", "function": {"name": call.name, "arguments": json.dumps(plain(call.arguments))}}
        for call in finished.calls
    ]
    return finished.text, calls, REASONS.get(finished.reason, "stop")


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _chain(head: Any, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield head
    async for event in events:
        yield event


async def _gone(receive: Receive) -> None:
    """Returns when the client has left (the request itself has been read whole by now)."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Events(Response):
    """Server-sent events; ``on_gone`` is called however the stream ends."""

    def __init__(self, chunks: AsyncIterator[bytes], watch: asyncio.Task[None], on_gone: Callable[[], None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.chunks, self.watch, self.on_gone = chunks, watch, on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def pump() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in self.chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        writer = asyncio.create_task(pump())
        try:
            await asyncio.wait((writer, self.watch), return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                await writer
        finally:
            self.on_gone()
            writer.cancel()
            self.watch.cancel()


def run_turn(assistant: Any, request: ChatRequest) -> Callable[[Callable[[], bool]], Iterator[Any]]:
    """The blocking half: rebuild the conversation, take one turn. Runs in the turn's own thread."""

    def make(cancelled: Callable[[], bool]) -> Iterator[Any]:
        return iter(
            assistant.turn(
                Conversation.from_openai(request.messages),
                cancelled,
                tools=request.tools,
                tool_choice=request.tool_choice,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                tokens_per_item=request.tokens_per_item,
                seed=request.seed,
            )
        )

    return make
