"""The claim: before a model on servers of its own, Pinhole adds at most the larger of 3 ms and 5% to the first token's time.

Sixteen conversations, each asking again as soon as its answer has ended, each about six pictures. Three processes: a server
with a fixed latency and no model, `pinhole serve`'s application before it, and this one, whose clients go through the
application and straight to the server in rounds that take turns. What is added holds everything: HTTP twice, the
transcript, the projector, tokenising, the grammar, the choice of a server. Measures on the default language model's
tokenizer and width, under an untrained projector; there is no catalogue to read from.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.assistant.tools import Thing
from pinhole.config import EngineConfig, GraftConfig
from pinhole.graft.prompt import Message, Soft, lines

MODEL, SPACE, DIM = "pinhole-gateway", "0123456789abcdef", 1536
AT_ONCE, SHOWN, ROUNDS, TURNS = 16, 6, 6, 6
SECONDS, PACE = 0.25, 0.01  # of the server, until its first token and between tokens
LEAST, SHARE = 0.003, 0.05


class _Pictures:
    """A shop whose items are made up from their ids."""

    results, space, catalogue = 6, SPACE, None

    def things(self, ids: Sequence[str]) -> list[Thing]:
        return [Thing(id, f"an old house {id}", soft(id)) for id in ids]


@cache
def soft(id: str) -> Soft:
    vector = np.random.default_rng(int(id)).standard_normal(DIM).astype(np.float32)
    return Soft(f"{SPACE}:{id}", vector)


def run(workspace: Any = None, progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
    """Flat figures. Raises ``DownloadError`` where the default model cannot be had."""
    with tempfile.TemporaryDirectory() as folder:
        _graft(Path(folder))
        upstream, url = _process("pinhole.benchmarks._fixed", folder, MODEL, str(SECONDS), str(PACE))
        try:
            gateway, address = _process(__name__, folder, url)
            try:
                return _measure(Path(folder), url, address, progress)
            finally:
                gateway.kill()
                gateway.wait()
        finally:
            upstream.kill()
            upstream.wait()


def _graft(folder: Path) -> None:
    import torch

    from pinhole.graft.base import load_base
    from pinhole.graft.model import Graft
    from pinhole.graft.projector import Projector

    config = GraftConfig()
    lm, tokenizer = load_base(config.base, torch.bfloat16)
    projector = Projector(DIM, lm.config.hidden_size)
    Graft(lm, tokenizer, projector, space=SPACE, card=config.card, card_words=config.card_words).save(folder)


def _process(module: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A process, and the address that it prints when it listens."""
    started = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    address = started.stdout.readline().strip()
    if not address:
        raise RuntimeError(f"{module} did not start")
    return started, address


def _measure(folder: Path, url: str, address: str, progress: Callable[[int, int], None] | None) -> dict[str, float]:
    straight, through = _straight(folder, url), _through
    times: dict[str, list[float]] = {"straight": [], "through": []}
    steps = 2 * (ROUNDS + 1)
    for i in range(ROUNDS + 1):
        for name, place, body in (("straight", url, straight), ("through", address, through)):
            found = _burst(place, body, i)
            times[name] += found if i else []  # the first round warms up
            if progress:
                progress(2 * i + 1 + (name == "through"), steps)
    alone, whole = statistics.median(times["straight"]), statistics.median(times["through"])
    return {
        "gateway.first_token_s": whole,
        "gateway.first_token_s.n": len(times["through"]),
        "gateway.upstream_first_token_s": alone,
        "gateway.added_s": whole - alone,
        "gateway.added_over_upstream": (whole - alone) / alone,
        "gateway.added_over_allowed": (whole - alone) / max(LEAST, SHARE * alone),
        "gateway.at_once": AT_ONCE,
    }


def _straight(folder: Path, url: str) -> Callable[[int, int], dict[str, Any]]:
    """What the gateway sends for such a question, made beforehand."""
    from pinhole.assistant.tools import Toolbox
    from pinhole.engines.vllm import VllmEngine
    from pinhole.graft.lens import Lens

    with VllmEngine(Lens(folder), EngineConfig(kind="vllm", url=url), model=MODEL) as engine:

        def body(k: int, turn: int) -> dict[str, Any]:
            cards = [engine.card(i + 1, soft(id), f"an old house {id}") for i, id in enumerate(_ids(k))]
            stream = engine.chat([Message.of("user", *lines(cards), f"\n{_question(k, turn)}")], Toolbox().schemas)
            return stream._asked.body

        made = {(k, turn): body(k, turn) for k in range(AT_ONCE) for turn in range(TURNS)}
    return lambda k, turn: made[k, turn % TURNS]


def _through(k: int, turn: int) -> dict[str, Any]:
    parts = [*({"type": "item", "id": id} for id in _ids(k)), {"type": "text", "text": _question(k, turn)}]
    return {"model": "pinhole", "stream": True, "messages": [{"role": "user", "content": parts}]}


def _ids(k: int) -> list[str]:
    return [str(100 * k + i) for i in range(SHOWN)]


def _question(k: int, turn: int) -> str:
    return f"what do you think of these, and which of them is number {turn} in conversation {k}?"


def _burst(place: str, body: Callable[[int, int], Mapping[str, Any]], i: int) -> list[float]:
    """First-token times of all conversations, ``TURNS`` each; they begin spread over one latency, as people would."""
    from pinhole.engines.upstream import Upstream

    server, found = Upstream(place, 5.0), []

    def converse(k: int) -> None:
        time.sleep(SECONDS * k / AT_ONCE)
        for turn in range(TURNS):
            asked = body(k, i * TURNS + turn)
            began = time.perf_counter()
            reading = server.lines("POST", "/v1/chat/completions", asked, 30.0)
            first = None
            for data in reading.events(iter(lambda: 30.0, None)):
                if data == b"[DONE]":
                    reading.rest(5.0)
                    break
                if first is None and _says(json.loads(data)):
                    first = time.perf_counter() - began
            reading.close()
            assert first is not None, "an answer without a word"
            found.append(first)

    threads = [threading.Thread(target=converse, args=(k,)) for k in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == AT_ONCE * TURNS, "a conversation failed"
    return found


def _says(chunk: Mapping[str, Any]) -> bool:
    return any(choice.get("token_ids") or choice["delta"].get("content") for choice in chunk["choices"])


def main() -> None:
    """FOLDER URL: the application before the server at URL, on a free port, whose address is printed."""
    from pinhole.assistant.loop import Assistant
    from pinhole.assistant.tools import Toolbox
    from pinhole.engines.vllm import VllmEngine
    from pinhole.graft.lens import Lens
    from pinhole.server.app import create_app
    from pinhole.server.listen import run as listen

    engine = VllmEngine(Lens(Path(sys.argv[1])), EngineConfig(kind="vllm", url=sys.argv[2], busy=1000), model=MODEL)
    app = create_app(Assistant(engine, Toolbox(), _Pictures()), None)  # type: ignore[arg-type]
    listen(app, port=0, ready=lambda address: print(address, flush=True))


if __name__ == "__main__":
    main()
