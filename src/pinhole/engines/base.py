"""What every engine does: take messages and tools, give back a stream of events with their cost.

Knows nothing of where the model runs. An event is a piece of text, one whole call, or the end. A
stream is closed to cancel it; one that is dropped cancels itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pinhole.graft.prompt import Message, Part, Soft, ToolSchema

Reason = Literal["stop", "length", "call", "cancelled"]


@dataclass(frozen=True)
class Usage:
    """Tokens and seconds of one answer. ``cached_tokens`` of the prompt were not computed again."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float = 0.0
    total_s: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        """The cost of two answers one after the other; the first token is the first answer's."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.first_token_s or other.first_token_s,
            self.total_s + other.total_s,
        )


@dataclass(frozen=True)
class TextDelta:
    text: str


@dataclass(frozen=True)
class Call:
    """A tool call, already checked against the tool's schema. ``text`` is what the model wrote."""

    name: str
    arguments: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Done:
    """Always the last event, also of a cancelled stream that is still read."""

    reason: Reason
    usage: Usage


Event = TextDelta | Call | Done


class Stream(Protocol):
    """The events of one answer, in order."""

    def __iter__(self) -> Iterator[Event]: ...
    def __next__(self) -> Event: ...
    def close(self) -> None:
        """Stop the answer; nothing happens where it has ended."""


class Engine(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""

    @property
    def space(self) -> str:
        """Identity of the embedding space whose vectors this engine's model reads."""

    @property
    def nested(self) -> tuple[int, ...]:
        """How many soft tokens a picture may be for this engine's model, ascending."""

    def card(self, k: int, soft: Soft | None, title: str) -> tuple[Part, ...]:
        """An item in a prompt, in the form that this engine's model was trained on."""

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
    ) -> Stream:
        """Answer the last message, in text or with one call.

        A conversation that does not begin with a system message gets the graft's own, which lists
        ``tools``. ``tool_choice`` is "auto", "none", "required" or a tool's name. Text ends at ``max_tokens``; a call at
        ``call_tokens`` is closed by its grammar, so that it is valid all the same. Raises
        :class:`~pinhole.errors.PromptTooLong`, :class:`~pinhole.errors.Busy`, and
        :class:`~pinhole.errors.UsageError` for tools that no grammar can be made of, and for a number of soft tokens a
        picture that the graft does not read (its own default: the most it does); all at once, not at the first event.
        """
