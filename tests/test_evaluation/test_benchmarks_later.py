"""Benchmarks on a workspace whose space was kept while queries came: their texts are read then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pinhole.benchmarks import align, diversify, signals
from pinhole.vision import encoders
from toy_search import as_workspace, make_toy

RUNS: dict[str, Callable[[Any], dict[str, float]]] = {
    "align": lambda workspace: align.run(workspace, steps=2),
    "diversify": lambda workspace: diversify.run(workspace, most=5),
    "signals": lambda workspace: signals.run(workspace, None, 1, {"as_it_is": {}}),
}


@pytest.mark.parametrize("name", RUNS)
def test_queries_that_came_since_are_asked_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy(tmp_path / "toy", n=96, align={"steps": 2})
    workspace = as_workspace(toy)
    monkeypatch.setitem(encoders.TEXT, "toy", lambda name: toy.text_encoder)
    asked = [(f"{colour} new {k}", id) for k in range(12) for colour in ("red", "blue") for id in toy.features.ids[k::8]]
    toy.catalogue.upsert("queries", pa.table({"text": [text for text, _ in asked], "item": [id for _, id in asked], "count": [1] * len(asked)}))
    assert all(value >= 0 for value in RUNS[name](workspace).values())
