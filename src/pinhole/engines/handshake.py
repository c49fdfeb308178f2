"""Whether a server is the one that was meant: vLLM, this graft, its tokenizer and template, and what it must have switched on.

Asked before the first conversation, and again before a server that failed gets another one. A server that does not
answer is :class:`~pinhole.errors.EngineDown`; one that answers and is another raises :class:`~pinhole.errors.UsageError`,
which says what it is and how to start the right one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pinhole.engines.upstream import Lines, Reply, Upstream
from pinhole.engines.wire import Wire
from pinhole.errors import EngineDown, PinholeError, UsageError
from pinhole.graft.export import FLAGS
from pinhole.graft.lens import Lens
from pinhole.graft.prompt import Message, Soft, card, system

START = "start vLLM on the folder that `pinhole export` wrote, as its README.md says"
SMALL = 10.0  # seconds for a question that no model is needed for
GRAMMAR = 'start: call | text\ncall: %json {"const": {"tool": "none"}}\ntext: /[^{](.|\\n)*/'


class Handshake:
    """``context`` is the least that any server checked so far reads."""

    def __init__(self, lens: Lens, wire: Wire, model: str, seconds: float) -> None:
        self._model, self._seconds = model, seconds
        self.context = lens.context
        # A conversation with everything that tokenizers and templates differ in, and what nobody may be able to write.
        picture = Soft("handshake", np.zeros(lens.projector.content_dim, np.float32))
        forged = "".join(str(token.content) for token in list(lens.tokenizer.added_tokens_decoder.values())[:8])
        shown = card(1, picture, "été 1950's,  \t中文 🍋", lens.card, lens.card_words)
        talk = [
            system(),
            Message.of("user", *shown, picture, "\n", f"\n {forged} "),
            Message.of("assistant", '{"tool":"none"}'),
            Message.of("user", " ok\n"),
        ]
        self._letter = wire.letter(talk, lens.prompter.render(talk))

    def check(self, server: Upstream) -> None:
        self._models(server)
        self._reads(server)
        self._answers(server)

    def _models(self, server: Upstream) -> None:
        models = _json(server.get("/v1/models", SMALL), server.url)
        found = models.get("data") if isinstance(models, dict) else None
        if not isinstance(found, list) or not all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in found):
            raise UsageError("does not speak the protocol of vLLM (/v1/models)", where=server.url, fix=START)
        mine = next((one for one in found if one["id"] == self._model), None)
        if mine is None:
            served = ", ".join(one["id"] for one in found[:3]) or "nothing"
            raise UsageError(f"the engine's server serves {served}, this workspace's graft is {self._model}", where=server.url, fix=START)
        if isinstance(mine.get("max_model_len"), int):
            self.context = min(self.context, mine["max_model_len"])

    def _reads(self, server: Upstream) -> None:
        reply = server.post("/tokenize", {"model": self._model, "messages": self._letter.messages}, SMALL)
        if reply.status == 400 and "enable-prompt-embeds" in reply.message:
            raise UsageError("the engine's server takes no embeddings", where=server.url, fix=f"start it with {FLAGS}")
        if reply.status == 400 and "hidden_size" in reply.message:
            raise UsageError(f"the engine's server has a model of another width: {reply.message}", where=server.url, fix=START)
        found = _json(reply, server.url)
        tokens = found.get("tokens") if isinstance(found, dict) else None
        if not isinstance(tokens, list):
            raise UsageError("does not speak the protocol of vLLM (/tokenize)", where=server.url, fix=START)
        if tuple(tokens) != self._letter.ids:
            what = f"a conversation has {len(tokens)} tokens there, {len(self._letter.ids)} here"
            raise UsageError(f"the engine's server has another tokenizer or chat template: {what}", where=server.url, fix=f"{START}, with {FLAGS}")

    def _answers(self, server: Upstream) -> None:
        asked: dict[str, Any] = {"model": self._model, "messages": self._letter.messages, "max_tokens": 1, "return_token_ids": True}
        reply = server.post("/v1/chat/completions", asked | {"structured_outputs": {"grammar": GRAMMAR}}, self._seconds)
        if reply.status == 400 and "grammar" in reply.message.lower():
            raise UsageError(f"the engine's server takes no such grammar: {reply.message}", where=server.url, fix=f"start it with {FLAGS}")
        found = _json(reply, server.url)
        if not isinstance(found, dict) or not found.get("choices") or tuple(found.get("prompt_token_ids") or ()) != self._letter.ids:
            raise UsageError("the engine's server does not say which tokens it read", where=server.url, fix="Pinhole is made for vLLM 0.32 or later")


def _json(reply: Reply, url: str) -> Any:
    if reply.status in (401, 403):
        raise UsageError("the engine's server wants a key", where=url, fix="set PINHOLE_ENGINE_KEY")
    if reply.status >= 500:
        raise EngineDown(f"the engine's server failed ({reply.status}): {reply.message}", where=url, fix="its log says why")
    if reply.status != 200:
        raise UsageError(f"is no vLLM server that we know ({reply.status}): {reply.message}", where=url, fix=START)
    found = reply.json()
    if found is None:
        raise UsageError("does not speak the protocol of vLLM: no JSON came back", where=url, fix=START)
    return found


def refused(lines: Lines, url: str) -> PinholeError:
    """What a server said instead of an answer."""
    reply = Reply(lines.status, lines.rest(SMALL))
    if lines.status in (400, 413, 422):
        return UsageError(f"the engine's server refused it: {reply.message}")
    return EngineDown(f"the engine's server did not answer ({lines.status}): {reply.message}", where=url, fix="ask again")
