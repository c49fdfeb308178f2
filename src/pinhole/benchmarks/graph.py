"""The claim: random walks take over a million steps a second on one core, and ten million links fit in under a gigabyte.

The graph is made up (a million items, contexts and items drawn by power laws) and measured in a process of its own, so that what it
adds to memory at its peak is the graph's alone. Reading tables is not part of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

from pinhole.workspace import Workspace

EDGES, ITEMS, CONTEXTS = 10_000_000, 1_000_000, 400_000
Progress = Callable[[int, int], None]


def run(workspace: Workspace | None, progress: Progress | None = None, edges: int = EDGES) -> dict[str, float]:
    """``graph.even.…`` where all links weigh the same, ``graph.weighed.…`` where each has a weight of its own: ``steps_per_s``, ``build_s``,
    ``related_s`` (one item's related, p50), ``peak_gb`` above what was there before the links' three arrays."""
    figures = {"graph.edges": float(edges)}
    for number, kind in enumerate(("even", "weighed")):
        command = [
            sys.executable,
            "-P",
            "-c",
            f"import sys; sys.path[:] = {sys.path!r}; from pinhole.benchmarks import graph; graph.child()",
            kind,
            str(edges),
        ]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        figures |= {f"graph.{kind}.{key}": value for key, value in found.items()}
        if progress:
            progress(number + 1, 2)
    return figures


def child() -> None:
    """One graph, in this process; prints its figures."""
    print(json.dumps(measure(sys.argv[1] == "weighed", int(sys.argv[2]))))


def measure(weighed: bool, edges: int) -> dict[str, float]:
    import resource
    import statistics
    import time

    import numpy as np

    from pinhole.catalogue.graph import Edges, Graph
    from pinhole.config import GraphConfig

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    config, draw = GraphConfig(), np.random.default_rng(0)
    before = peak()
    scale = edges / EDGES
    items, contexts = max(2, int(ITEMS * scale)), max(2, int(CONTEXTS * scale))
    links = Edges(
        "board",
        (draw.random(edges, dtype=np.float32) ** 1.5 * contexts).astype(np.int32),
        (draw.random(edges, dtype=np.float32) ** 2 * items).astype(np.int32),
        1 + draw.exponential(1, edges).astype(np.float32) if weighed else None,
    )
    began = time.perf_counter()
    graph = Graph.of(items, [links], config)
    figures = {"build_s": time.perf_counter() - began, "kept": float(graph.edges), "peak_gb": peak() - before}
    starts = draw.integers(0, items, 250)
    began = time.perf_counter()
    visits = graph.walk(starts, np.full(len(starts), 8000), draw)
    figures["steps_per_s"] = visits.steps / (time.perf_counter() - began)
    spent = []
    for start in starts[:50]:
        began = time.perf_counter()
        graph.related(start[None], config, draw)
        spent.append(time.perf_counter() - began)
    return figures | {"related_s": statistics.median(spent)}
