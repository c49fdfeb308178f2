"""The claim: embedding spends at least 90% of its time on decoding, resizing and the forward pass.

    python -m pinhole.benchmarks.embed WORKSPACE [N]

prints ``embed.fraction``, measured as :mod:`pinhole.vision.speed` says, on N pictures of the workspace.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from pinhole.errors import PinholeError
from pinhole.vision.speed import measure
from pinhole.workspace import Workspace

NEEDS_WORKSPACE = True


def run(workspace: Workspace, progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
    return measure(workspace)


def main() -> None:
    if len(sys.argv) not in (2, 3):
        print("usage: python -m pinhole.benchmarks.embed WORKSPACE [N]", file=sys.stderr)
        sys.exit(2)
    try:
        figures = measure(Workspace.open(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 2500)
    except PinholeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    short = {key.removeprefix("speed."): value for key, value in figures.items() if not key.endswith(".n")}
    print(json.dumps(short | {"n": figures["speed.embed.fraction.n"]}))


if __name__ == "__main__":
    main()
