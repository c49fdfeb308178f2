"""The benchmark of walks, at a size for tests: complete figures, every step taken."""

from __future__ import annotations

from pinhole.benchmarks import graph


def test_both_kinds_of_graph_are_measured() -> None:
    done: list[int] = []
    figures = graph.run(None, lambda now, total: done.append(now), edges=20_000)
    assert done == [1, 2] and figures["graph.edges"] == 20_000
    for kind in ("even", "weighed"):
        assert figures[f"graph.{kind}.steps_per_s"] > 0 and figures[f"graph.{kind}.related_s"] > 0
        assert 0 < figures[f"graph.{kind}.kept"] <= 20_000
