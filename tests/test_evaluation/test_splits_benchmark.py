"""The benchmark of splits, on a small shop: the exams that `evaluate` takes, over more drawings."""

from __future__ import annotations

from pathlib import Path

from pinhole.benchmarks import splits
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
