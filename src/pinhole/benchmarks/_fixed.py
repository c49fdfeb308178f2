"""A server that speaks what Pinhole speaks with vLLM and has no model: the first token comes after a fixed time, the others at a fixed pace.

What it reads it reads as vLLM does: the exported chat template, then the tokenizer with special tokens on, then each
placeholder as wide as its embeddings. For measuring what the gateway adds, and for tests of faults that a
real server does not have on request.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from pinhole.engines.wire import PLACEHOLDER


class FixedUpstream:
    """An ASGI application. Says ``says`` (token ids, the last one ending the turn) to everybody after ``seconds``, one every ``pace`` seconds."""

    def __init__(self, tokenizer: Any, model: str, says: Sequence[int], seconds: float = 0.0, pace: float = 0.0, context: int = 1 << 20) -> None:
        from pinhole.graft.export import walking

        self.tokenizer, self.model, self.says, self.context = tokenizer, model, list(says), context
        self.seconds, self.pace = seconds, pace
        tokenizer.chat_template = walking(tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})
        self.placeholder = int(tokenizer.convert_tokens_to_ids(PLACEHOLDER))
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        body = b""
        while True:
            part = await receive()
            body += part.get("body", b"")
            if not part.get("more_body"):
                break
        answer = asyncio.ensure_future(self.answer(scope["path"], json.loads(body) if body else {}, send))
        gone = asyncio.ensure_future(_gone(receive))
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        (gone if answer.done() else answer).cancel()
        if answer.done():
            await answer

    async def answer(self, path: str, asked: dict[str, Any], send: Any) -> None:
        if path == "/v1/models":
            await reply(send, {"object": "list", "data": [{"id": self.model, "max_model_len": self.context}]})
        elif path == "/tokenize":
            await reply(send, {"tokens": self.read(asked["messages"])})
        elif path == "/v1/chat/completions" and asked.get("stream"):
            self.asked.append(asked)
            await self.stream(asked, send)
        elif path == "/v1/chat/completions":
            await reply(send, {"choices": [{}], "prompt_token_ids": self.read(asked["messages"])})
        else:
            await reply(send, {"detail": "Not Found"}, 404)

    async def stream(self, asked: dict[str, Any], send: Any) -> None:
        await begin(send, 200, "text/event-stream")
        async for event in self.events(asked):
            await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def events(self, asked: dict[str, Any]) -> AsyncIterator[str]:
        read = await self.read_while_waiting(asked["messages"])
        yield chunk({"role": "assistant", "content": ""}, [], prompt_token_ids=read)
        says = self.says[: asked["max_tokens"]]
        for i, token in enumerate(says):
            if i and self.pace:
                await asyncio.sleep(self.pace)
            yield chunk({}, [token], ends=("stop" if i + 1 < asked["max_tokens"] else "length") if i + 1 == len(says) else None)
        usage = {"prompt_tokens": len(read), "completion_tokens": len(says), "prompt_tokens_details": {"cached_tokens": 16}}
        yield json.dumps({"choices": [], "usage": usage})

    async def read_while_waiting(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The prompt's ids, ``seconds`` after it came: reading takes none of its own."""
        clock = asyncio.get_running_loop().time
        until = clock() + self.seconds
        read = self.read(messages)
        await asyncio.sleep(until - clock())
        return read

    def read(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        widths, plain = [], []
        for message in messages:
            parts = []
            for part in message["content"] or [{"type": "text", "text": ""}]:
                if part["type"] == "prompt_embeds":
                    widths.append(width(part["data"]))
                    part = {"type": "text", "text": PLACEHOLDER}
                elif PLACEHOLDER in part["text"]:
                    raise ValueError("a text holds the placeholder")
                parts.append(part)
            plain.append({"role": message["role"], "content": parts})
        text = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        wide = iter(widths)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [token for one in ids for token in [one] * (next(wide) if one == self.placeholder else 1)]


def width(data: str) -> int:
    """How many tokens' embeddings these are."""
    import torch

    return int(torch.load(io.BytesIO(base64.b64decode(data)), weights_only=True).shape[0])


def chunk(delta: dict[str, Any], tokens: Sequence[int], *, ends: str | None = None, **more: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": ends, "token_ids": tokens}], **more})


async def begin(send: Any, status: int, kind: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})


async def reply(send: Any, value: Any, status: int = 200) -> None:
    await begin(send, status, "application/json")
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Any, send: Any) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def main() -> None:
    """FOLDER MODEL SECONDS PACE: serve on a free port, whose address is printed, until killed."""
    from pinhole.graft.base import hugging_face
    from pinhole.server.listen import run

    folder, model, seconds, pace = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    tokenizer = hugging_face().AutoTokenizer.from_pretrained(folder)
    says = [*tokenizer("Look at #1.", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    run(FixedUpstream(tokenizer, model, says, seconds, pace), port=0, ready=lambda address: print(address, flush=True))


if __name__ == "__main__":
    main()
