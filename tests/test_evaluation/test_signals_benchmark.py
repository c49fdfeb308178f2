"""The benchmark of signals, on a small shop: every way is examined on the same questions."""

from __future__ import annotations

from pathlib import Path

from pinhole.benchmarks import signals
from toy_search import as_workspace, make_toy


def test_every_way_answers_the_same_questions(tmp_path: Path) -> None:
    workspace = as_workspace(make_toy(tmp_path, n=320, align={"steps": 4}))
    done: list[int] = []
    ways = {"as_it_is": {}, "no_board": {"weight_board": 0.0}, "twice": {"steps": 2}}
    figures = signals.run(workspace, lambda now, total: done.append(now), 1, ways)
    assert done == [1, 2, 3] and figures["signals.splits"] == 1
    for exam in signals.EXAMS:
        asked = {figures[f"signals.{way}.{exam}.n"] for way in ways}
        assert len(asked) == 1 and asked.pop() > 0
        key = f"signals.no_board.{exam}.over"
        assert figures[f"{key}.low"] <= figures[key] <= figures[f"{key}.high"] and f"signals.as_it_is.{exam}.over" not in figures
    lines = signals.table(figures, workspace)
    assert len(lines) == 4 and "no_board" in lines[2] and "n " in lines[1]
