"""How people put things: frames from ``phrasings.toml``, one half for lessons and another for exams.

The two halves share no verb and no sentence frame. Knows nothing of pictures, tools or tokens.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

_QUOTED = 0.15  # share of the names in lessons that stand in quotation marks

Bank = Mapping[str, Sequence[str]]  # "lessons" and "exams"


@cache
def banks() -> dict[str, Any]:
    """The whole file; parsed once."""
    return tomllib.loads(files("pinhole.graft").joinpath("phrasings.toml").read_text(encoding="utf-8"))


class Phrases:
    """One half of the banks: the lessons' or, with ``held``, the exams'."""

    def __init__(self, rng: random.Random, *, held: bool) -> None:
        self.rng, self.held, self.half = rng, held, "exams" if held else "lessons"
        self.banks = banks()

    def pick(self, bank: Bank) -> str:
        return self.rng.choice(bank[self.half])

    def adjective(self) -> str:
        return self.pick(self.banks["adjectives"])

    def name(self, name: str) -> str:
        """As people write it: some quote it, and its first token is another one then. Exams quote where their frames do."""
        return f'"{name}"' if not self.held and self.rng.random() < _QUOTED else name

    def seeing(self, intent: str, **values: str) -> str:
        """A question about pictures."""
        return self.finish(self.pick(self.banks["seeing"][intent]).format(**values))

    def search(self, subject: str) -> str:
        """A request for pictures of something."""
        parts = (self.pick(self.banks["openers"]), self.pick(self.banks["verbs"]), " ", self.pick(self.banks["nouns"]), subject)
        return self.finish("".join(parts) + self.pick(self.banks["closers"]))

    def frame(self, intent: str, **values: str) -> str:
        """A request that is more than words to look for."""
        said = self.pick(self.banks["frames"][intent]).format(v=self.pick(self.banks["verbs"]), **values)
        return self.finish(self.pick(self.banks["openers"]) + said + (self.pick(self.banks["closers"]) if self.rng.random() < 0.5 else ""))

    def politely(self, request: str) -> str:
        return self.finish(self.pick(self.banks["openers"]) + request)

    def chat(self) -> tuple[str, str]:
        """A message that needs no tool, and what to say to it (nothing, for exams)."""
        if self.held:
            return self.finish(self.pick(self.banks["chat"])), ""
        group = self.rng.choice(self.banks["chat"]["lessons"])
        return self.finish(self.rng.choice(group["messages"])), group["answer"]

    def finish(self, text: str) -> str:
        """Some people begin with a capital, some do not; nobody ends with "?."."""
        text = " ".join(text.split())
        if text.endswith(("??", "?.")):
            text = text[:-1]
        return text[:1].upper() + text[1:] if self.rng.random() < 0.3 else text
