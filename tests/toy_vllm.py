"""A graft's lens and a server for it without a model: what a real vLLM does wrong only by accident, this one does when told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pinhole.benchmarks._fixed import FixedUpstream, begin, chunk, reply
from pinhole.config import EngineConfig
from pinhole.engines.vllm import VllmEngine
from pinhole.graft.lens import Lens
from pinhole.server.listen import running
from toy_model import tiny_graft, tiny_tokenizer

MODEL = "pinhole-toy"
TEXT = "find me some lemon"


def tiny_lens(folder: Path) -> Lens:
    tiny_graft().save(folder)
    return Lens(folder)


class Faulty(FixedUpstream):
    """``fault`` names what goes wrong with an answer, ``broken`` what goes wrong with everything: a status and words, or "page"."""

    def __init__(self, says: str = TEXT, **options: Any) -> None:
        tokenizer = tiny_tokenizer()
        super().__init__(tokenizer, MODEL, [*tokenizer(says)["input_ids"], tokenizer.eos_token_id], **options)
        self.fault = self.broken = ""
        self.working = self.dropped = 0

    async def answer(self, path: str, asked: dict[str, Any], send: Any) -> None:
        if self.broken == "page":
            await begin(send, 200, "text/html")
            await send({"type": "http.response.body", "body": b"<html>hello</html>"})
        elif self.broken:
            await reply(send, {"error": {"message": self.broken}}, int(self.broken[:3]))
        else:
            await super().answer(path, asked, send)

    async def stream(self, asked: dict[str, Any], send: Any) -> None:
        if self.fault in ("full", "refuses"):
            await reply(send, {"error": {"message": "no room"}}, 503 if self.fault == "full" else 400)
            return
        self.working += 1
        try:
            await super().stream(asked, send)
        finally:
            self.working -= 1

    async def events(self, asked: dict[str, Any]) -> Any:
        if self.fault == "silent":
            await asyncio.sleep(60)
        if self.fault == "dies at once":
            raise OSError
        said = 0
        async for event in super().events(asked):
            if self.fault == "other":
                event = chunk({}, [], prompt_token_ids=[1, 2, 3])
            yield event
            said += 1
            if said == 3:
                if self.fault == "dies":
                    raise OSError
                if self.fault == "hangs":
                    await asyncio.sleep(60)
                if self.fault == "garbage":
                    yield "{]"
                if self.fault == "error":
                    yield '{"error": {"message": "EngineCore died"}}'


@contextlib.contextmanager
def served(*servers: FixedUpstream) -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running(server, grace=0.2)) for server in servers]


@contextlib.contextmanager
def engine_on(lens: Lens, *servers: FixedUpstream, **settings: Any) -> Iterator[VllmEngine]:
    with served(*servers) as urls:
        config = EngineConfig(kind="vllm", url=",".join(urls), **{"first_token_seconds": 5.0, "token_seconds": 5.0, "pause_seconds": 0.1, **settings})
        with VllmEngine(lens, config, model=MODEL) as engine:
            yield engine
