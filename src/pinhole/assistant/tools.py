"""Tools: typed, documented Python functions whose schemas are derived from them.

A tool's first parameter is the shop; the others are its arguments, and a line ``name: words`` in the
docstring describes each. An argument of type :class:`Thing` is written ``#k`` by the model and has
been looked up by the time the function runs. Whatever is wrong with a call is :class:`Refused`: a
message to the model, never a crash. The built-in tools register like everybody else's. Knows nothing
of prompts or of the model.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import numpy as np

from pinhole.graft.prompt import Soft, ToolSchema, board_note, unknown

REFERENCE = "^#[0-9]{1,3}$"
WORDS = 100  # characters of a text argument


class Refused(Exception):
    """A call that cannot be done; the text is for the model, and for the person behind it."""


@dataclass(frozen=True, eq=False)
class Thing:
    """Something with a number in a conversation: an item, or a picture that a person sent (``id`` None).

    ``seen`` is what its encoder made of a sent picture, (image dim,): what a search is given in place of an id.
    """

    id: str | None
    title: str
    soft: Soft | None
    seen: np.ndarray | None = None


@dataclass(frozen=True)
class Found:
    """Items a tool found, best first: (id, score). ``note`` is one line about them."""

    items: Sequence[tuple[str, float | None]]
    note: str = ""


class Shop(Protocol):
    """What tools see of a catalogue. Nothing here writes, and nothing private comes out of it."""

    results: int
    """Items a search shows."""

    @property
    def space(self) -> str:
        """Identity of the embedding space of its soft tokens."""

    def search(self, text: str, like: Sequence[Thing], unlike: Sequence[Thing], category: str) -> list[tuple[str, float]]: ...
    def related(self, thing: Thing) -> list[tuple[str, float]]: ...
    def details(self, id: str) -> Mapping[str, Any]:
        """What is known of an item, in words. Raises ``UnknownItem``."""

    def category(self, name: str) -> tuple[str, Sequence[str]]:
        """The known category that a name means ("" where none does), and the nearest ones."""

    def board(self, title: str) -> tuple[str, Sequence[str], Sequence[str]]:
        """The public board that a title means ("" where none does), its items, and the nearest titles."""

    def things(self, ids: Sequence[str]) -> list[Thing]:
        """Items, in order. Raises ``UnknownItem`` for one that is not there."""

    def picture(self, data: bytes) -> Thing:
        """A picture from outside. Raises ``BadImage``."""


# -- the built-in tools ---------------------------------------------------------------------------


def search(shop: Shop, text: str = "", like: Thing | None = None, unlike: Thing | None = None, category: str = "") -> Found:
    """find pictures

    text: words for what is wanted
    like: a picture that the results should resemble
    unlike: a picture that they should not resemble
    category: only this kind of thing
    """
    if not text.strip() and like is None and not category.strip():
        raise Refused("say what to search for: text, like or category")
    kind = ""
    if category.strip():
        kind, near = shop.category(category)
        if not kind:
            raise Refused(unknown("category", _short(category), near))
    found = shop.search(text.strip(), [like] if like else [], [unlike] if unlike else [], kind)
    return Found(found)


def related(shop: Shop, item: Thing) -> Found:
    """pictures that go with one

    item: the picture
    """
    return Found(shop.related(item))


def item(shop: Shop, item: Thing) -> str:
    """details of one picture

    item: the picture
    """
    if item.id is None:
        return "a picture that was sent, not one of the catalogue"
    return "; ".join(f"{name}: {value}" for name, value in shop.details(item.id).items())


def board(shop: Shop, title: str) -> Found:
    """open a board by its title

    title: the board's title, or part of it
    """
    found, items, near = shop.board(title)
    if not found:
        raise Refused(unknown("board", _short(title), near))
    return Found([(id, None) for id in items[: shop.results]], note=board_note(_short(found), len(items)))


def _short(text: str) -> str:
    return " ".join(text.split())[:60]


BUILT_IN = (search, related, item, board)


# -- from a function to a schema ------------------------------------------------------------------


@dataclass(frozen=True)
class Tool:
    name: str
    run: Callable[..., Any]
    schema: ToolSchema
    things: frozenset[str]
    """Names of the arguments that are references."""

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Derive a tool from a function. Raises ``TypeError`` for a parameter that has no JSON type: a programmer's error."""
        hints = get_type_hints(function)
        summary, described = _documentation(function)
        properties, required, things = {}, [], set()
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            kind = _plain(hints[parameter.name])
            properties[parameter.name] = _schema(kind, f"{function.__name__}({parameter.name})")
            if parameter.name in described:
                properties[parameter.name]["description"] = described[parameter.name]
            if parameter.default is inspect.Parameter.empty:
                required.append(parameter.name)
            if kind is Thing:
                things.add(parameter.name)
        parameters = {"type": "object", "properties": properties, "required": required}
        return cls(function.__name__, function, {"name": function.__name__, "description": summary, "parameters": parameters}, frozenset(things))

    def arguments(self, given: Mapping[str, Any], resolve: Callable[[str], Thing]) -> dict[str, Any]:
        """Checked arguments, references looked up. Raises :class:`Refused` with what is wrong."""
        properties = self.schema["parameters"]["properties"]
        if strange := [name for name in given if name not in properties]:
            raise Refused(f'{self.name} has no argument "{_short(strange[0])}"; it takes {", ".join(properties)}')
        if missing := [name for name in self.schema["parameters"]["required"] if name not in given]:
            raise Refused(f"{self.name} needs {missing[0]}")
        return {name: self._value(name, value, properties[name], resolve) for name, value in given.items()}

    def _value(self, name: str, value: Any, schema: Mapping[str, Any], resolve: Callable[[str], Thing]) -> Any:
        if name in self.things:
            return resolve(str(value))
        kinds: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}
        wrong = not isinstance(value, kinds[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean")
        if wrong or ("enum" in schema and value not in schema["enum"]):
            wanted = f"one of {', '.join(map(str, schema['enum']))}" if "enum" in schema else f"a {schema['type']}"
            raise Refused(f"{name} of {self.name} is {wanted}")
        return value


def _documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first line, and the lines ``name: words``."""
    lines = inspect.cleandoc(function.__doc__ or "").splitlines() or [""]
    pairs = (re.match(r"(\w+): (.+)", line) for line in lines[1:])
    return lines[0], {match[1]: match[2] for match in pairs if match}


def _plain(hint: Any) -> Any:
    """``X`` of ``X | None``."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        return inner[0] if len(inner) == 1 else hint
    return hint


def _schema(kind: Any, where: str) -> dict[str, Any]:
    simple: dict[Any, dict[str, Any]] = {
        str: {"type": "string", "maxLength": WORDS},
        int: {"type": "integer"},
        float: {"type": "number"},
        bool: {"type": "boolean"},
        Thing: {"type": "string", "pattern": REFERENCE},
    }
    if kind in simple:
        return dict(simple[kind])
    if get_origin(kind) is Literal:
        return {"type": "string", "enum": list(get_args(kind))}
    raise TypeError(f"{where}: {kind} has no JSON type; use str, int, float, bool, Literal or Thing")


class Toolbox:
    """The tools on offer, by name."""

    def __init__(self, functions: Iterable[Callable[..., Any]] = BUILT_IN) -> None:
        self._tools: dict[str, Tool] = {}
        for function in functions:
            self.add(function)

    def add(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register a function as a tool; works as a decorator."""
        tool = Tool.of(function)
        self._tools[tool.name] = tool
        return function

    @property
    def schemas(self) -> tuple[ToolSchema, ...]:
        return tuple(tool.schema for tool in self._tools.values())

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    def call(self, shop: Shop, name: str, given: Mapping[str, Any], resolve: Callable[[str], Thing]) -> Found | str:
        """Run a tool. Raises :class:`Refused`; what else a tool raises is its own fault and comes through."""
        if name not in self._tools:
            raise Refused(f'no tool "{_short(name)}"; there are {", ".join(self._tools)}')
        tool = self._tools[name]
        outcome = tool.run(shop, **tool.arguments(given, resolve))
        return outcome if isinstance(outcome, Found) else str(outcome)
