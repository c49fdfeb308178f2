"""A tiny real language model that has learned a few lines by heart, over a toy shop.

A scripted engine is asked first and what it is asked is noted; then a model of 60,000 weights is trained
until it says the same. So the whole way (prompt, soft tokens, grammar, cache, queue, loop) is real, and what is
said is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pinhole.assistant.conversation import Conversation
from pinhole.assistant.loop import Assistant, Finished
from pinhole.assistant.tools import Thing, Toolbox
from pinhole.config import AssistantConfig
from pinhole.engines.base import Call, Done, TextDelta, Usage
from pinhole.engines.local import LocalEngine
from pinhole.graft.model import Graft
from pinhole.graft.projector import Projector
from pinhole.graft.prompt import Message, Soft, call_text, card
from toy_model import DIM, SPACE, tiny_tokenizer

# What is said last → what the model says next: a call, or words.
SAYS: dict[str, Any] = {
    "fruit, please": ("search", {"text": "fruit, please"}),  # as it is rebuilt from a client that keeps only the text
    "results of fruit, please": "Here: #1 and #2.",
    "more like #2": ("related", {"item": "#2"}),
    "results of more like #2": "Look at #4.",
    "hello": "Hello.",
}


class ToyShop:
    """A shop over a toy catalogue: fruit are found in their order, related is what follows."""

    results = 3
    space = SPACE

    def __init__(self, catalogue: Any) -> None:
        self.catalogue = catalogue
        self.ids = [id for id in catalogue.items(columns=["id"])["id"].to_pylist() if id.startswith("fruit/")]

    def search(self, text: str, like: Sequence[Thing], unlike: Sequence[Thing], category: str) -> list[tuple[str, float]]:
        return [(id, 1 / n) for n, id in enumerate(self.ids[: self.results], 1)]

    def related(self, thing: Thing) -> list[tuple[str, float]]:
        return [(id, 0.5) for id in self.ids[self.results :]]

    def details(self, id: str) -> Mapping[str, Any]:
        return {"title": self.catalogue.item(id)["title"]}

    def category(self, name: str) -> tuple[str, Sequence[str]]:
        return "", ["fruit"]

    def board(self, title: str) -> tuple[str, Sequence[str], Sequence[str]]:
        return "", [], ["sour"]

    def things(self, ids: Sequence[str]) -> list[Thing]:
        return [Thing(id, self.catalogue.item(id)["title"], Soft(f"{SPACE}:{id}", _vector(id.encode()))) for id in ids]

    def picture(self, data: bytes) -> Thing:
        from pinhole.vision.images import decode

        decode(data, 16)  # raises what is wrong with it
        return Thing(None, "", Soft(f"{SPACE}:sent", _vector(b"sent")), data)


def _vector(seed: bytes) -> np.ndarray:
    digest = hashlib.sha256(seed).digest()[:DIM]
    return (np.frombuffer(digest, np.uint8).astype(np.float32) - 127.5) / 74


class Script:
    """An engine that answers from SAYS and notes what it was asked."""

    name, space, context = "script", SPACE, 4096

    def __init__(self) -> None:
        self.noted: list[tuple[list[Message], str]] = []

    card = staticmethod(card)

    def chat(self, messages: Sequence[Message], tools: Any = (), **_: Any) -> Any:
        asked = [message.text.splitlines()[-1] for message in messages if message.role == "user" and not message.text.startswith("results")]
        key = f"results of {asked[-1]}" if messages[-1].text.startswith("results") else asked[-1]
        says = SAYS[key]
        text = says if isinstance(says, str) else call_text(*says)
        self.noted.append((list(messages), text))
        return _Events(TextDelta(says) if isinstance(says, str) else Call(*says, text=text))


class _Events:
    def __init__(self, event: Any) -> None:
        self._events = iter([event, Done("stop", Usage(1, 0, 1, 0.01, 0.01))])

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._events)

    def close(self) -> None:
        pass


def lessons(shop: ToyShop, *conversations: Sequence[Any]) -> list[tuple[list[Message], str]]:
    """What the model is asked in these conversations, and what it shall say."""
    script = Script()
    assistant = Assistant(script, Toolbox(), shop, AssistantConfig())  # type: ignore[arg-type]
    for lines in conversations:
        messages: list[dict[str, Any]] = []
        for line in lines:
            messages.append({"role": "user", "content": line})
            finished = list(assistant.turn(Conversation.from_openai(messages)))[-1]
            assert isinstance(finished, Finished)
            messages.append({"role": "assistant", "content": finished.text})
    return script.noted


def learned(shop: ToyShop, taught: Sequence[tuple[list[Message], str]], most: int = 400) -> Graft:
    """Train until every lesson is said without a mistake."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    words = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(words) + 5, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=4096, eos_token_id=words.eos_token_id, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    graft = Graft(LlamaForCausalLM(config).float(), words, Projector(DIM, 48, 16), space=SPACE, card="#{k}{soft} {title}", card_words=8)
    prompts = [graft.prompter.render([*messages, Message.of("assistant", says)], generate=False) for messages, says in taught]
    longest = max(len(prompt.tokens) for prompt in prompts)
    tokens = torch.full((len(prompts), longest), words.eos_token_id)  # padded on the right, where nothing looks back from
    learn = torch.zeros((len(prompts), longest), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt.tokens)] = torch.tensor(prompt.tokens).clamp_min(0)
        learn[row, : len(prompt.tokens)] = torch.tensor(prompt.learn)
    where, targets = learn[:, 1:], tokens[:, 1:][learn[:, 1:]]
    optimizer = torch.optim.AdamW(graft.parameters(), lr=5e-3)
    for _ in range(most):
        pad = [torch.nn.functional.pad(graft.embed(prompt)[0], (0, 0, 0, longest - len(prompt.tokens))) for prompt in prompts]
        logits = graft.lm.lm_head(graft.lm.model(inputs_embeds=torch.stack(pad)).last_hidden_state[:, :-1][where])
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        if losses.max() < 0.05:  # far from any other choice, in bfloat16 too
            return graft.eval()
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    raise AssertionError("the toy model did not learn its lines")


def toy_assistant(catalogue: Any) -> Assistant:
    shop = ToyShop(catalogue)
    taught = lessons(shop, ["fruit, please", "more like #2"], ["hello"])
    graft = learned(shop, taught)
    return Assistant(LocalEngine(graft, name="toy"), Toolbox(), shop, AssistantConfig())  # type: ignore[arg-type]
