"""How fast the engine is, beside what it could be at best: the same model's bare forward pass, in the same run.

    speed.first_token_s             a short question under a system prompt that is cached, to the first token
    speed.first_token_over_forward  that, over the forward pass of its new tokens alone (no cache, no engine)
    speed.tool_call_s               the whole call that such a question leads to
    engine.tokens_per_s             decoding, one conversation by itself; ``.together`` eight at once
    engine.cached_over_uncached     first token of a long conversation, with its keys and values kept over without
    engine.packed_over_plain        forward pass of the new tokens, weights packed over as they come
    nested.<k>.first_token_s        a question about four pictures, never shown before, of k soft tokens each (where there is more than one k)

Every ratio is of medians of rounds that take turns, so that a busy machine slows both sides. Knows
nothing of whether the answers are right.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from pinhole.engines.base import Done
from pinhole.engines.local import LocalEngine
from pinhole.graft.prompt import Message, Part, Prompt, Soft, ToolSchema, call_text, results

QUESTIONS = ("show me {}", "find pictures of {}", "i am looking for {}", "do you have {}?")
SUBJECTS = (
    "winter trees",
    "a red car",
    "birds",
    "old houses",
    "blue flowers",
    "musical instruments",
    "a sleeping cat",
    "mountains",
    "kitchen things",
    "fish",
)
PICTURES = 4
SEARCH: ToolSchema = {
    "name": "search",
    "description": "find pictures",
    "parameters": {
        "type": "object",
        "properties": {"text": {"type": "string"}, "like": {"type": "string", "pattern": "^#[0-9]{1,3}$"}},
        "required": [],
    },
}


def measure(
    engine: LocalEngine, tools: Sequence[ToolSchema] = (SEARCH,), *, rounds: int = 20, progress: Callable[[int, int], None] | None = None
) -> dict[str, float]:
    """Flat figures, ``.n`` beside those that have rounds. Takes about a minute with the default model on two quiet cores."""
    engine.warm(tools)
    questions = [QUESTIONS[i % len(QUESTIONS)].format(SUBJECTS[i % len(SUBJECTS)]) + f" {i}" for i in range(rounds + 2)]
    first: list[float] = []
    bare: list[float] = []
    plain: list[float] = []
    calls: list[float] = []
    tokens: list[float] = []
    for i, question in enumerate(questions):
        messages = [Message.of("user", question)]
        done = _ask(engine, messages, tools, tool_choice="search")
        new = _tail(engine.prompt(messages, tools), done.usage.prompt_tokens - done.usage.cached_tokens)
        measured = (done.usage.first_token_s, _forward(engine, engine.lm, new), _forward(engine, engine.graft.lm, new))
        if i >= 2:  # the first rounds warm up
            for times, seconds in zip((first, bare, plain), measured, strict=True):
                times.append(seconds)
            calls.append(done.usage.total_s)
            tokens.append(float(done.usage.completion_tokens))
        if progress:
            progress(i + 1, len(questions))
    figures = {
        "speed.first_token_s": _median(first),
        "speed.first_token_over_forward": _median(first) / _median(bare),
        "speed.tool_call_s": _median(calls),
        "speed.tool_call_tokens": _median(tokens),
        "engine.packed_over_plain": _median(bare) / _median(plain),
    }
    figures = {name: figure for key, value in figures.items() for name, figure in ((key, value), (f"{key}.n", float(rounds)))}
    return figures | _decoding(engine) | _long(engine, max(3, rounds // 4)) | _nested(engine, rounds)


def _ask(engine: LocalEngine, messages: Sequence[Message], tools: Sequence[ToolSchema], **options: Any) -> Done:
    *_, done = engine.chat(messages, tools, **options)
    assert isinstance(done, Done)
    return done


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def _tail(prompt: Prompt, tokens: int) -> Prompt:
    return Prompt(prompt.tokens[len(prompt.tokens) - tokens :], prompt.soft, (False,) * tokens)


@torch.inference_mode()
def _forward(engine: LocalEngine, lm: Any, prompt: Prompt) -> float:
    """Seconds of the library's forward pass over these tokens, nothing cached, logits of the last one."""
    with engine.threads:
        embedded = engine.graft.embed(prompt)
        began = time.perf_counter()
        lm(inputs_embeds=embedded, use_cache=False, logits_to_keep=1)
        return time.perf_counter() - began


def _decoding(engine: LocalEngine) -> dict[str, float]:
    """Tokens a second, alone and eight at once."""

    def go(i: int) -> Done:
        return _ask(engine, [Message.of("user", f"tell a long story about {SUBJECTS[i]}")], (), temperature=1.0, seed=i, max_tokens=48)

    alone = go(0).usage
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        said = sum(done.usage.completion_tokens for done in pool.map(go, range(1, 9)))
    together = said / (time.perf_counter() - began)
    return {
        "engine.tokens_per_s": alone.completion_tokens / max(1e-9, alone.total_s - alone.first_token_s),
        "engine.tokens_per_s.n": alone.completion_tokens,
        "engine.tokens_per_s.together": together,
        "engine.tokens_per_s.together.n": said,
    }


def _long(engine: LocalEngine, rounds: int) -> dict[str, float]:
    """A conversation that has shown a good many pictures: its next turn, kept and read anew."""
    vectors = np.random.default_rng(0).standard_normal((30, engine.graft.projector.content_dim)).astype(np.float32)
    cards: list[tuple[Part, ...]] = [
        engine.card(i + 1, Soft(f"speed:{i}", vector), "an old wooden house by a lake") for i, vector in enumerate(vectors)
    ]
    cached, uncached = [], []
    for i in range(rounds + 1):
        history = [Message.of("user", f"houses {i}"), Message.of("assistant", call_text("search", {"text": "houses"})), results(cards)]
        cold = _ask(engine, history, (), max_tokens=1).usage
        warm = _ask(engine, [*history, Message.of("assistant", "I found 30 pictures."), Message.of("user", "more like #2")], (), max_tokens=1).usage
        anew = [Message.of("user", f"again {i}"), *history[1:], Message.of("assistant", "I found 30 pictures."), Message.of("user", "more like #2")]
        full = _ask(engine, anew, (), max_tokens=1).usage
        if i and cold.prompt_tokens:
            cached.append(warm.first_token_s)
            uncached.append(full.first_token_s)
    return {"engine.cached_over_uncached": _median(cached) / _median(uncached), "engine.cached_over_uncached.n": float(rounds)}


def _nested(engine: LocalEngine, rounds: int) -> dict[str, float]:
    """First token of a question about four pictures, by soft tokens a picture; in turns."""
    counts, projector = engine.graft.nested, engine.graft.projector
    if len(counts) == 1:
        return {}
    random, spent = np.random.default_rng(0), {count: list[float]() for count in counts}
    for i in range(rounds + 1):
        for count in counts:
            cards: list[Part] = []
            for k in range(PICTURES):
                cells = random.standard_normal((counts[-1], projector.cell_dim)).astype(np.float32)
                vector = random.standard_normal(projector.content_dim).astype(np.float32)
                cards += ["\n", *engine.card(k + 1, Soft(f"nested:{i}:{count}:{k}", vector, cells=cells), "")]
            asked = [Message.of("user", *cards[1:], f"\nwhich of them is red? {i}")]
            done = _ask(engine, asked, (), tokens_per_item=count, max_tokens=1)
            if i:  # the first round warms up
                spent[count].append(done.usage.first_token_s)
    figures = {f"nested.{count}.first_token_s": _median(seconds) for count, seconds in spent.items()}
    return figures | {f"{key}.n": float(rounds) for key in figures}
