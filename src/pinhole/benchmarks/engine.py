"""The claim: a warm first token costs at most 1.3 times the bare forward pass of what is new, a whole call at most 0.8 s.

    python -m pinhole.benchmarks.engine [WORKSPACE]

measures as :mod:`pinhole.engines.speed` says, on the workspace's graft or, with none, on the default
language model under an untrained projector (its calls are longer than a trained one's).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from pinhole.errors import PinholeError
from pinhole.workspace import Workspace


def run(workspace: Workspace | None = None, progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
    """Flat figures. Raises ``DownloadError`` where the default model cannot be had."""
    from pinhole.assistant.tools import Toolbox
    from pinhole.engines.local import LocalEngine
    from pinhole.engines.speed import measure

    with LocalEngine(_graft(workspace)) as engine:
        return measure(engine, Toolbox().schemas, progress=progress)


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
