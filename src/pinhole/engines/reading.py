"""From messages to what the model reads, the same for every engine: the system message, and what does not fit is refused."""

from __future__ import annotations

from collections.abc import Sequence

from pinhole.errors import PromptTooLong, UsageError
from pinhole.graft.prompt import Message, Prompt, Prompter, ToolSchema, system

CHARACTERS = 40  # a text with more characters than this for each token of the context is not even tokenised


def check_lengths(max_tokens: int, call_tokens: int) -> None:
    if min(max_tokens, call_tokens) < 1:
        raise UsageError(f"max_tokens is {min(max_tokens, call_tokens)}", fix="ask for one token at least")


def whole(messages: Sequence[Message], tools: Sequence[ToolSchema], context: int, where: str) -> list[Message]:
    """The messages behind a system message: their own, else the graft's. Raises :class:`UsageError` where nothing is said."""
    if not messages or not any(part for message in messages for part in message.parts):
        raise UsageError("nothing to answer", where="messages", fix="say something")
    characters = sum(len(message.text) for message in messages)
    if characters > context * CHARACTERS:
        raise PromptTooLong(f"the prompt has about {characters // 4:,} tokens, the model reads {context:,}", where=where, fix="send less")
    return [*messages] if messages[0].role == "system" else [system(tools), *messages]


def read(messages: Sequence[Message], prompter: Prompter, context: int, where: str, tokens_per_item: int | None = None) -> Prompt:
    """What the model will read, with room for one token at least. Raises :class:`PromptTooLong` with both numbers."""
    prompt = prompter.render(messages, tokens_per_item=tokens_per_item)
    if (tokens := len(prompt.tokens)) >= context:
        raise PromptTooLong(f"the prompt has {tokens:,} tokens, the model reads {context:,}", where=where, fix="send less")
    return prompt
