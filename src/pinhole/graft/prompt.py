"""What the language model reads: messages with pictures in them, as token ids and soft tokens.

One template for an item's card, one for tool signatures, one for results and one for calls, so that
lessons and serving cannot drift apart. Content is tokenised with special tokens switched off:
nobody can write an end-of-turn token into a title or a message. Knows nothing of tools' meaning, of
the catalogue, or of tensors beyond carrying an item's vector along.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2 import TemplateError

from pinhole.errors import ConfigError, UsageError
from pinhole.vision.grid import apart

ToolSchema = Mapping[str, Any]

SYSTEM = "You help people explore a catalogue of pictures. Answer in a sentence or two and point at pictures by #number."
TOOLS = "To use a tool, answer with one JSON call and nothing else. Tools:"
RESULTS = "results:"
NOTHING = "results: none"


@dataclass(frozen=True, eq=False)
class Soft:
    """One picture in a prompt. ``key`` names the vector for caches; ``vector`` is (content_dim,); ``item`` is whose picture it is, for people.

    ``cells`` (edge · edge, cell_dim) tell what each part of the picture has that the whole has not; without them it is one token
    whatever is asked. In early lessons the token leans on a ``word``: ``lean`` is the word's share of it, 0 everywhere else.
    """

    key: str
    vector: np.ndarray
    word: str = ""
    lean: float = 0.0
    item: str = ""
    cells: np.ndarray | None = None

    def tokens(self, count: int) -> tuple[Soft, ...]:
        """Itself, or one for each cell of its grid, pooled to ``count``: then each has one cell."""
        if self.cells is None or count == 1:
            return (self if self.cells is None else replace(self, cells=None),)
        cells = apart(self.cells[None], math.isqrt(count))[0]
        return tuple(replace(self, key=f"{self.key}/{count}.{j}", cells=cells[j : j + 1]) for j in range(count))

    def leaning(self, word: str, lean: float) -> Soft:
        return replace(self, key=f"{self.key}~{lean:.3f}~{word}", word=word, lean=lean) if word and lean > 0 else self


Part = str | Soft


@dataclass(frozen=True)
class Message:
    role: str
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, role: str, *parts: Part) -> Message:
        return cls(role, parts)

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    def plain(self) -> dict[str, Any]:
        """As JSON: text parts as strings, pictures as ``{"item": id}``."""
        return {"role": self.role, "parts": [{"item": part.item} if isinstance(part, Soft) else part for part in self.parts]}


@dataclass(frozen=True)
class Prompt:
    """``tokens[i]`` is a token id, or -1-j for the soft token of ``soft[j]``; ``learn[i]`` marks the answer: a last message of the assistant's."""

    tokens: tuple[int, ...]
    soft: tuple[Soft, ...]
    learn: tuple[bool, ...]

    def keys(self) -> tuple[int | str, ...]:
        """The sequence as a cache must see it: a soft token is its vector's key, never its position."""
        return tuple(token if token >= 0 else self.soft[-1 - token].key for token in self.tokens)

    def asked(self) -> Prompt:
        """What comes before the answer."""
        end = self.learn.index(True) if True in self.learn else len(self.tokens)
        return Prompt(self.tokens[:end], self.soft, self.learn[:end])

    def then(self, tokens: Sequence[int], learn: bool = True) -> Prompt:
        """Go on with these words; they are an answer, or read only."""
        return Prompt((*self.tokens, *tokens), self.soft, (*self.learn, *[learn] * len(tokens)))


# -- the templates --------------------------------------------------------------------------------


def short_title(title: str, words: int) -> str:
    """The first words of a title on one line."""
    return " ".join(title.split()[:words])[:80]


def card(k: int, soft: Soft | None, title: str, template: str = "#{k}{soft} {title}", words: int = 8) -> tuple[Part, ...]:
    """An item in a prompt, by the template of ``[graft] card``; what is missing leaves no gap."""
    text = template.replace("{k}", str(k)).replace("{title}", short_title(title, words))
    before, mark, after = text.partition("{soft}")
    if not mark:
        raise ConfigError("`graft.card` has no {soft}", where="pinhole.toml", fix='the default is "#{k}{soft} {title}"')
    after = after.rstrip()
    return tuple(part for part in (before, soft, after) if part)


def lines(cards: Sequence[Sequence[Part]]) -> Iterator[Part]:
    """Cards, one a line."""
    for i, parts in enumerate(cards):
        if i:
            yield "\n"
        yield from parts


def results(cards: Sequence[Sequence[Part]], note: str = "") -> Message:
    """Pictures that a tool found, counted, as the user message that follows the call; ``note`` says what they are."""
    if not cards:
        return Message.of("user", NOTHING)
    head = f"{RESULTS} {counted(len(cards))}" + (f"; {note}" if note else "")
    return Message.of("user", head, "\n", *lines(cards))


def result(text: str) -> Message:
    """A tool's result in words."""
    return Message.of("user", f"{RESULTS}\n{text}")


def counted(n: int) -> str:
    return f"{n} picture{'' if n == 1 else 's'}"


def board_note(title: str, count: int) -> str:
    return f'board "{title}", {counted(count)}'


def unknown(kind: str, name: str, near: Sequence[str]) -> str:
    """What a tool says of a name that nothing has."""
    return f'no {kind} "{name}"' + (f"; nearest: {', '.join(near)}" if near else "")


def system(tools: Sequence[ToolSchema] = ()) -> Message:
    return Message.of("system", f"{SYSTEM}\n{TOOLS}\n{tools_text(tools)}" if tools else SYSTEM)


def tools_text(tools: Sequence[ToolSchema]) -> str:
    """One line a tool: ``search(text, like=#, category): find pictures``."""
    return "\n".join(
        f"{tool['name']}({_signature(tool)}): {tool.get('description', '').splitlines()[0] if tool.get('description') else ''}" for tool in tools
    )


def _signature(tool: ToolSchema) -> str:
    return ", ".join(name + _kind(schema) for name, schema in tool.get("parameters", {}).get("properties", {}).items())


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "=" + "|".join(map(str, schema["enum"]))
    if "#" in schema.get("pattern", ""):
        return "=#"
    if schema.get("type") in ("integer", "number"):
        return "=number"
    if schema.get("type") == "boolean":
        return "=true|false"
    return ""


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as the model writes it: short, because latency is decode.

    Words in it begin with a space, as words in a message do: so that to copy one is to repeat its token, and not to spell it.
    """
    return json.dumps({"tool": name, **{key: spaced(value) for key, value in arguments.items()}}, separators=(",", ":"), ensure_ascii=False)


def spaced(value: Any) -> Any:
    return f" {value}" if isinstance(value, str) and not value.startswith("#") else value


def parse_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """The inverse of :func:`call_text`; None where the text is no call."""
    text = text.strip()
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("tool"), str):
        return None
    name = value.pop("tool")
    return name, {key: one.removeprefix(" ") if isinstance(one, str) else one for key, one in value.items()}


# -- tokens ---------------------------------------------------------------------------------------

_MARK = re.compile("\ue000(\\d+)\ue001")


def runs(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts with text that stands together joined: how it is read does not depend on where it was cut."""
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield text
        text = ""
        yield part
    if text:
        yield text


class Prompter:
    """Messages → tokens, through the base model's own chat template."""

    def __init__(self, tokenizer: Any, nested: Sequence[int] = (1,)) -> None:
        self.tokenizer = tokenizer
        self.nested = tuple(nested)  # how many soft tokens a picture may be, ascending: the most is what it is unless somebody asks
        self.end: int = tokenizer.eos_token_id
        self._switch = threading.Lock()  # whether special tokens are read is a setting of the one tokenizer: two threads must not cross
        self.text = lru_cache(maxsize=65_536)(self._tokenise_text)  # a run of content → ids
        self.literal = lru_cache(maxsize=4096)(self._tokenise_literal)  # a piece of the template → ids
        self.layout = lru_cache(maxsize=4096)(self._template)

    def _tokenise_text(self, text: str) -> tuple[int, ...]:
        with self._switch:
            return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Of each token of a run of content the characters (start, end) it stands for."""
        with self._switch:
            read = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        return [(int(start), int(end)) for start, end in read["offset_mapping"]]

    def _tokenise_literal(self, text: str) -> tuple[int, ...]:
        with self._switch:
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _template(self, roles: tuple[str, ...], generate: bool) -> tuple[str | int, ...]:
        """The chat template around the messages: literal pieces, and message numbers where content goes.

        Some templates take content as a string, some only as a list of parts. Where one writes nothing special after an answer,
        the tokenizer's end stands there. Raises :class:`UsageError` for a template that drops or repeats messages.
        """
        reason = ""
        for form in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
            messages = [{"role": role, "content": form(f"\ue000{i}\ue001")} for i, role in enumerate(roles)]
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
            except (TemplateError, TypeError, ValueError) as error:
                reason = reason or str(error)
                continue
            pieces = _MARK.split(text)
            if pieces[1::2] == [str(i) for i in range(len(roles))]:
                found = [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]
                return tuple(piece for piece in self._ended(found, roles) if piece != "")
        where = "chat template of [graft] base"
        what = f"the chat template does not write these messages, each once and in order: {', '.join(roles)}" + (f" ({reason})" if reason else "")
        raise UsageError(what, where=where, fix="put one that does into chat_template.jinja in its folder")

    def _ended(self, pieces: Sequence[str | int], roles: tuple[str, ...]) -> Iterator[str | int]:
        """``pieces`` with an end after every answer: what is learned there is what stops the model."""
        special = tuple(self.tokenizer.all_special_tokens)
        for i, piece in enumerate(pieces):
            yield piece
            after = pieces[i + 1] if i + 1 < len(pieces) else ""
            if isinstance(piece, int) and roles[piece] == "assistant" and not str(after).startswith(special):
                yield self.tokenizer.eos_token

    def render(self, messages: Sequence[Message], *, generate: bool = True, tokens_per_item: int | None = None) -> Prompt:
        """Token ids of a conversation; with ``generate`` it ends where the assistant begins to speak.

        A picture takes ``tokens_per_item`` soft tokens, if it has cells. Raises :class:`UsageError` for a number that is not among ``nested``.
        """
        each = self.nested[-1] if tokens_per_item is None else tokens_per_item
        if each not in self.nested:
            raise UsageError(f"{each} tokens a picture", where="tokens_per_item", fix=f"this graft reads {' or '.join(map(str, self.nested))}")
        tokens: list[int] = []
        learn: list[bool] = []
        soft: list[Soft] = []
        spoke = False  # the last content was the answer: its end-of-turn token is learned too
        for piece in self.layout(tuple(message.role for message in messages), generate):
            if isinstance(piece, str):
                ids = self.literal(piece)
                tokens += ids
                learn += [spoke] + [False] * (len(ids) - 1)
                spoke = False
                continue
            message = messages[piece]
            spoke = message.role == "assistant" and piece == len(messages) - 1
            for part in runs(message.parts):
                if isinstance(part, Soft):
                    for one in part.tokens(each):
                        soft.append(one)
                        tokens.append(-len(soft))
                        learn.append(False)
                else:
                    ids = self.text(part)
                    tokens += ids
                    learn += [spoke] * len(ids)
        return Prompt(tuple(tokens), tuple(soft), tuple(learn))
