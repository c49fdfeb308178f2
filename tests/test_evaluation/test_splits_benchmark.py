"""The benchmark of splits, on a small shop: the exams that `evaluate` takes, over more drawings."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pinhole.benchmarks import signals, splits
from pinhole.errors import UsageError
from toy_search import as_workspace, make_toy


def test_more_drawings_more_questions(tmp_path: Path) -> None:
    workspace = as_workspace(make_toy(tmp_path, n=320, align={"steps": 4}))
    done: list[int] = []
    one, two = (splits.run(workspace, lambda now, total: done.append(now), n) for n in (1, 2))
    for exam in ("search.text_to_image", "boards", "search.cold"):
        assert two[f"{exam}.recall@10.n"] > one[f"{exam}.recall@10.n"] > 0
    assert two["search.splits"] == 2 and done[-1] == 2
    lines = splits.table(two, workspace)
    assert "2 splits" in lines[0] and any(line.startswith("search.cold") for line in lines) and len(lines) > 5


def test_an_encoder_that_was_tuned_is_asked_about_its_own_split_alone(tmp_path: Path) -> None:
    """It has seen what other splits hold out, and the newest items too."""
    toy = make_toy(tmp_path, n=240, align={"steps": 2})
    dates = [f"2024-01-{1 + k % 28:02}" for k in range(len(toy.features.ids))]
    toy.catalogue.upsert("items", pa.table({"id": toy.features.ids, "created_at": dates}))
    workspace = as_workspace(toy)
    assert splits.run(workspace, n=1)["search.cold.recall@10.by_time"] == 1
    described = workspace.need("embed").path / "features.json"
    meta = json.loads(described.read_text())
    described.write_text(json.dumps({**meta, "image_encoder": {**meta["image_encoder"], "spec": "tuned:../../tune/t/encoder"}}))
    assert splits.run(workspace, n=1)["search.cold.recall@10.by_time"] == 0
    for run in (lambda: splits.run(workspace, n=2), lambda: signals.run(workspace, None, 2)):
        with pytest.raises(UsageError, match="over 2 splits say nothing: the tuned encoder"):
            run()
