"""The claim: a warm first token costs at most 1.3 times the bare forward pass of what is new, a whole call at most 0.8 s.

    python -m pinhole.benchmarks.engine [WORKSPACE]

measures as :mod:`pinhole.engines.speed` says, on the workspace's graft or, with none, on the default
language model under an untrained projector (its calls are longer than a trained one's).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from pinhole.errors import PinholeError
from pinhole.workspace import Workspace


def run(workspace: Workspace | None = None, progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
    """Flat figures. Raises ``DownloadError`` where the default model cannot be had."""
    from pinhole.assistant.tools import Toolbox
    from pinhole.engines.local import LocalEngine
    from pinhole.engines.speed import measure

    graft, tools = _graft(workspace), Toolbox().schemas
    with LocalEngine(graft) as engine:
        figures = measure(engine, tools, progress=progress)
    return figures | _bulk(graft, tools)


def _bulk(graft: Any, tools: Any, n: int = 96) -> dict[str, float]:
    """``n`` first questions, answered by an engine on each core and by one engine on all of them."""
    from pinhole.engines.local import ALONE, LocalEngine, in_bulk
    from pinhole.engines.speed import SUBJECTS
    from pinhole.evaluation.tool_exams import AT_ONCE, ask
    from pinhole.graft.prompt import Message, system
    from pinhole.graft.seeing import Lesson

    said = [f"find {SUBJECTS[i % len(SUBJECTS)]} number {i}" for i in range(n)]
    lessons = [Lesson("open", (system(tools), Message.of("user", text), Message.of("assistant", "")), tools) for text in said]
    seconds = []
    for open_engines in (lambda: in_bulk(graft, AT_ONCE), lambda: nullcontext([LocalEngine(graft, active=AT_ONCE, shared=ALONE)])):
        with open_engines() as engines:
            ask(engines, lessons[: 2 * len(engines)])  # a warm-up
            began = time.perf_counter()
            ask(engines, lessons)
            seconds.append(time.perf_counter() - began)
            for engine in engines:
                engine.close()
    return {"engine.in_bulk_over_one": seconds[1] / seconds[0], "engine.in_bulk_over_one.n": n}


def _graft(workspace: Workspace | None) -> Any:
    from pinhole.config import GraftConfig
    from pinhole.graft.base import load_base
    from pinhole.graft.model import Graft, best_dtype
    from pinhole.graft.projector import Projector

    built = workspace.latest("graft") if workspace else None
    if built is not None:
        return Graft.load(built.path)
    config = workspace.config.graft if workspace else GraftConfig()
    lm, tokenizer = load_base(config.base, best_dtype())
    projector = Projector(1536, lm.get_input_embeddings().weight.shape[1])
    return Graft(lm, tokenizer, projector, space="", card=config.card, card_words=config.card_words).eval()


def main() -> None:
    if len(sys.argv) > 2:
        print("usage: python -m pinhole.benchmarks.engine [WORKSPACE]", file=sys.stderr)
        sys.exit(2)
    try:
        figures = run(Workspace.open(sys.argv[1]) if len(sys.argv) == 2 else None)
    except PinholeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
