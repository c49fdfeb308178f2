"""Tools that no catalogue has, so that a model learns to read schemas and not our names.

Each entry of ``toolbank.toml`` is a made-up tool: synonyms for its name and its arguments, what each
argument takes, and how people ask for it. ``LESSONS`` are trained on; ``EXAM`` tools, words and frames
appear in no lesson.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True)
class Invented:
    """``args`` maps synonyms ("item|picture") to a kind: ``#``, ``text``, ``number``, ``person``, ``city``, or choices "a/b/c"."""

    names: str
    about: str
    args: Mapping[str, str]
    frames: Sequence[str]


@cache
def bank() -> dict[str, Any]:
    """The whole file; parsed once."""
    return tomllib.loads(files("pinhole.graft").joinpath("toolbank.toml").read_text(encoding="utf-8"))


def _tools(half: str) -> tuple[Invented, ...]:
    return tuple(Invented(tool["names"], tool["about"], tool["args"], tuple(tool["frames"])) for tool in bank()[half])


def _halves(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(bank()[kind]["lessons"]), tuple(bank()[kind]["exam"])


LESSONS: Sequence[Invented] = _tools("lessons")
EXAM: Sequence[Invented] = _tools("exam")
PEOPLE = _halves("people")  # by `held`
CITIES = _halves("cities")
_EXAM_NUMBERS = (2, 3, 4, 5, 6, 8, 10, 12, 20, 45, 90, 100, 200, 300, 400, 500, 640, 800, 1000)


def schema(tool: Invented, rng: random.Random | None = None) -> Schema:
    """The function schema, under the first names, or under names drawn by ``rng``."""
    draw = rng.choice if rng else (lambda names: names[0])
    properties = {draw(names.split("|")): _property(kind) for names, kind in tool.args.items()}
    return {
        "name": draw(tool.names.split("|")),
        "description": tool.about,
        "parameters": {"type": "object", "properties": properties, "required": list(properties)},
    }


def _property(kind: str) -> dict[str, Any]:
    if kind == "#":
        return {"type": "string", "pattern": "^#[0-9]{1,3}$"}
    if kind == "number":
        return {"type": "integer"}
    if "/" in kind:
        return {"type": "string", "enum": kind.split("/")}
    return {"type": "string"}


def value(kind: str, rng: random.Random, held: bool, subject: str, reference: str) -> Any:
    """Something that an argument of this kind may hold."""
    if kind == "#":
        return reference
    if kind == "number":
        return rng.choice(_EXAM_NUMBERS) if held else rng.randint(1, rng.choice((20, 20, 20, 20, 200, 2000)))
    if kind == "person":
        return rng.choice(PEOPLE[held])
    if kind == "city":
        return rng.choice(CITIES[held])
    return rng.choice(kind.split("/")) if "/" in kind else subject
