"""A conversation: what the client said in OpenAI's form, and what the model reads of it.

The server keeps nothing, so whatever has a number must be found again in the messages: an answer names
items as ``[#2 title](item:ID)``, and reading the messages gives every item its number back. A title
inside such a link is for people; it is never read for numbers or ids, and never shown to the model as
anything but a card. Pictures come as data: URLs; no address is ever fetched.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote

from pinhole.assistant.tools import Refused, Shop, Thing
from pinhole.errors import BadImage, UnknownItem, UsageError
from pinhole.graft.prompt import Message, Part, call_text, lines, result, results, short_title, system

LAST = 999  # the largest number that a reference can have
CARDS = 40  # more items in one message are written as bare soft tokens
PICTURES = 16  # pictures in one conversation, each is decoded and encoded
WORDS = 8  # of a person's message, where the search it led to must be guessed
LINK = re.compile(r"\[#([0-9]{1,3})((?:\\.|[^\]\\])*)\]\(item:([^)\s]*)\)")
ALSO = re.compile(r"\s*\n\n(?:Also shown|Shown): " + LINK.pattern + r"(?: · " + LINK.pattern + r")*\s*$")
_MARKDOWN = re.compile(r"([\\`*_\[\](){}<>#|~!])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")

Card = Callable[..., tuple[Part, ...]]  # (k, soft, title) → parts, in the form the model was trained on


def link(k: int, thing: Thing) -> str:
    """``[#2 title](item:ID)``: the title escaped for markdown, the id quoted for a URL. A sent picture is only its number."""
    if thing.id is None:
        return f"#{k}"
    title = _MARKDOWN.sub(r"\\\1", _CONTROL.sub(" ", short_title(thing.title, 12)))
    return f"[#{k} {title}".rstrip() + f"](item:{quote(thing.id, safe='')})"


def also(links: Sequence[str], *, mentioned: bool) -> str:
    """The last line of an answer, so that a client can refer to what was shown and not mentioned."""
    return f"\n\n{'Also shown' if mentioned else 'Shown'}: {' · '.join(links)}" if links else ""


# -- what the client said -------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemPart:
    id: str


@dataclass(frozen=True)
class PicturePart:
    data: bytes


@dataclass(frozen=True)
class Said:
    """One message of the client's. ``calls`` are (id, name, arguments) of its own tools; ``answers`` the id that a tool result belongs to."""

    role: str
    parts: tuple[str | ItemPart | PicturePart, ...] = ()
    calls: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    answers: str = ""

    @property
    def text(self) -> str:
        return "\n".join(part for part in self.parts if isinstance(part, str))


@dataclass
class Conversation:
    said: list[Said] = field(default_factory=list)

    @classmethod
    def from_openai(cls, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """Read OpenAI-style messages. Raises :class:`UsageError` naming the message, or ``BadImage``; items are looked up later."""
        said = [_said(message, f"messages[{i}]") for i, message in enumerate(messages)]
        last = said[-1] if said else Said("user")
        if last.role not in ("user", "tool"):
            raise UsageError("there is nothing to answer", where="messages", fix="end with a user message")
        if last.role == "user" and not any(part.strip() if isinstance(part, str) else part for part in last.parts):
            raise UsageError("the message is empty", where=f"messages[{max(0, len(said) - 1)}]", fix="say something, or send a picture")
        if sum(isinstance(part, PicturePart) for message in said for part in message.parts) > PICTURES:
            raise UsageError(f"more than {PICTURES} pictures", where="messages", fix="start a new conversation")
        return cls(said)

    def say(self, *parts: str | ItemPart | PicturePart) -> Conversation:
        """Add a user message."""
        self.said.append(Said("user", parts))
        return self


def _said(message: Mapping[str, Any], where: str) -> Said:
    role = {"developer": "system", "function": "tool"}.get(str(message.get("role")), message.get("role"))
    if role not in ("system", "user", "assistant", "tool"):
        raise UsageError(f"unknown role {str(role)[:40]!r}", where=where, fix="roles: system, user, assistant, tool")
    content = message.get("content")
    if content is None:
        content = []
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise UsageError("content is neither text nor a list of parts", where=where)
    parts = tuple(_part(part, f"{where}.content[{j}]") for j, part in enumerate(content))
    calls = tuple(_call(call, f"{where}.tool_calls[{j}]") for j, call in enumerate(message.get("tool_calls") or ())) if role == "assistant" else ()
    return Said(role, parts, calls, str(message.get("tool_call_id") or message.get("name") or "") if role == "tool" else "")


def _part(part: Any, where: str) -> str | ItemPart | PicturePart:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "item" and isinstance(part.get("id"), str) and part["id"]:
        return ItemPart(part["id"])
    if kind == "image_url":
        address = part.get("image_url")
        return PicturePart(_data(address.get("url") if isinstance(address, Mapping) else address, where))
    fix = 'parts: {"type": "text", "text": …}, {"type": "image_url", "image_url": {"url": "data:…"}}, {"type": "item", "id": …}'
    raise UsageError("a content part of an unknown form", where=where, fix=fix)


def _data(address: Any, where: str) -> bytes:
    """The bytes of a data: URL. Any other address is refused."""
    if not isinstance(address, str) or not address.startswith("data:"):
        raise UsageError("a picture's address is not fetched", where=where, fix="send the picture itself, as a data: URL in base64")
    head, comma, body = address.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadImage("not a base64 data: URL", where=where, fix='send "data:image/png;base64,…"')
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadImage("the data: URL is not valid base64", where=where) from None


def _call(call: Any, where: str) -> tuple[str, str, dict[str, Any]]:
    function = call.get("function") if isinstance(call, Mapping) else None
    try:
        if not isinstance(function, Mapping):
            raise TypeError
        name, arguments = function["name"], json.loads(function.get("arguments") or "{}")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise TypeError
    except (TypeError, KeyError, ValueError, RecursionError):
        raise UsageError("not a function call with JSON arguments", where=where) from None
    return str(call.get("id") or name), name, arguments


# -- what the model reads -------------------------------------------------------------------------


class Transcript:
    """The model's side of a conversation: messages with cards in them, and who has which number."""

    def __init__(self, shop: Shop, card: Card) -> None:
        self.shop, self._card = shop, card
        self.messages: list[Message] = []
        self.things: dict[int, Thing] = {}
        self.guidance = ""  # system messages of the client's
        self._gone: set[int] = set()
        self._calls: dict[str, tuple[str, dict[str, Any]]] = {}

    def copy(self) -> Transcript:
        other = Transcript(self.shop, self._card)
        other.messages, other.things, other.guidance = list(self.messages), dict(self.things), self.guidance
        other._gone, other._calls = set(self._gone), dict(self._calls)
        return other

    # -- numbers --------------------------------------------------------------------------------

    def number(self, thing: Thing) -> int:
        """The number of a thing: the one it has, else the next."""
        for k, known in self.things.items():
            if thing.id is not None and known.id == thing.id:
                return k
        k = max([0, *self.things, *self._gone]) + 1
        if k > LAST:
            raise UsageError(f"this conversation has shown {LAST} items", where="messages", fix="start a new one")
        self.things[k] = thing
        return k

    def resolve(self, reference: str) -> Thing:
        """``#2`` → what it is. Raises :class:`Refused`, in words for the model."""
        match = re.fullmatch(r"#([0-9]{1,3})", reference.strip())
        k = int(match[1]) if match else 0
        if k in self.things:
            return self.things[k]
        if k in self._gone:
            raise Refused(f"#{k} is no longer in the catalogue")
        known = sorted(self.things)
        there = f"there are #{known[0]} to #{known[-1]}" if known else "nothing has been shown yet"
        raise Refused(f"there is no {reference[:10]}; {there}")

    def card(self, k: int) -> tuple[Part, ...]:
        return self._card(k, self.things[k].soft, self.things[k].title)

    # -- messages -------------------------------------------------------------------------------

    def add(self, said: Said) -> None:
        """One message of the client's. Raises :class:`UnknownItem` for an item that a person names, and ``BadImage``."""
        if said.role == "system":
            self.guidance = f"{self.guidance}\n{said.text}".strip()
        elif said.role == "user":
            self._user(said)
        elif said.role == "tool":
            self._tool_result(said)
        else:
            self._assistant(said)

    def _user(self, said: Said) -> None:
        shown = [self._thing(part) for part in said.parts if not isinstance(part, str)]
        text = LINK.sub(self._known, said.text).strip()
        if len(shown) > CARDS:
            parts: list[Part] = [replace(thing.soft, cells=None) for thing in shown if thing.soft is not None]  # a token each
        else:
            parts = list(lines([self.card(self.number(thing)) for thing in shown]))
        if text:
            parts.append(f"\n{text}" if parts else text)
        self.messages.append(Message("user", tuple(parts)))

    def _thing(self, part: ItemPart | PicturePart) -> Thing:
        return self.shop.things([part.id])[0] if isinstance(part, ItemPart) else self.shop.picture(part.data)

    def _known(self, match: re.Match[str]) -> str:
        """A link that a person pasted: its number, where it is the number of that very item."""
        thing = self.things.get(int(match[1]))
        return f"#{match[1]}" if thing is not None and thing.id == unquote(match[3]) else match[0]

    def _assistant(self, said: Said) -> None:
        if said.calls:
            self._calls.update({id: (name, arguments) for id, name, arguments in said.calls})
            return
        new = self._claimed(said.text)
        if new:
            self.call("search", {"text": self._asked()})
            self.found(new)
        self.answer(said.text)

    def _claimed(self, text: str) -> list[int]:
        """Give the links of an answer their numbers back; returns the numbers that are new, in order."""
        new = []
        for match in LINK.finditer(text):
            k, id = int(match[1]), unquote(match[3])
            if k < 1 or k in self.things or k in self._gone:
                continue
            try:
                [self.things[k]] = self.shop.things([id])
                new.append(k)
            except UnknownItem:  # it was there when the answer was given
                self._gone.add(k)
        return sorted(new)

    def _asked(self) -> str:
        """What the last search was about, as far as the person's own words tell."""
        users = [message.text for message in self.messages if message.role == "user"]
        return " ".join(users[-1].split()[:WORDS]) if users else ""

    def _tool_result(self, said: Said) -> None:
        if said.answers not in self._calls:
            raise UsageError(f"a tool result belongs to no call: {said.answers[:60]!r}", where="messages", fix="send the call's `tool_call_id`")
        name, arguments = self._calls.pop(said.answers)
        self.call(name, arguments)
        self.told(said.text)

    # -- what happens in a turn -----------------------------------------------------------------

    def call(self, name: str, arguments: Mapping[str, Any], text: str = "") -> None:
        self.messages.append(Message.of("assistant", text or call_text(name, arguments)))

    def found(self, numbers: Sequence[int], note: str = "") -> None:
        """Results of a tool, as cards."""
        self.messages.append(results([self.card(k) for k in numbers], note))

    def told(self, text: str) -> None:
        """A result in words."""
        self.messages.append(result(text))

    def answer(self, text: str) -> None:
        """An answer as the model wrote it: numbers instead of links, without the line that lists the rest."""
        plain = LINK.sub(lambda match: f"#{match[1]}", ALSO.sub("", text)).strip()
        if plain:
            self.messages.append(Message.of("assistant", plain))

    def prompt(self, schemas: Sequence[Mapping[str, Any]]) -> list[Message]:
        """All of it, under the system prompt for these tools."""
        head = system(schemas)
        if self.guidance:
            head = Message("system", (*head.parts, f"\n{self.guidance}"))
        return [head, *self.messages]
