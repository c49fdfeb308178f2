"""Every picture is described once, by a real engine; what was said is kept, and is sure of itself by its own yes and no."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pinhole import config
from pinhole.engines import captions as module
from pinhole.engines.captions import LONGEST, Pictured, captions
from pinhole.engines.local import LocalEngine
from pinhole.graft.grader import GraftGrader
from pinhole.stages import stages_of
from toy_model import tiny_graft
from toy_world import tiny_world


def silent(done: int, total: int) -> None:
    pass


def test_described_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    graft, world = tiny_graft(), tiny_world()
    grader = GraftGrader(graft, lambda row: (world.soft(row), ""), "tiny")
    pictures = [Pictured(row, f"look{row % 5}", world.soft(row % 5)) for row in range(8)]
    asked: list[int] = []
    real = module._ask
    monkeypatch.setattr(module, "_ask", lambda engines, some: asked.append(len(some)) or real(engines, some))  # type: ignore[func-returns-value]
    with LocalEngine(graft) as engine:
        found = captions([engine], grader, pictures, "tiny", silent)
        assert asked == [5], "equal pictures are one"
        assert captions([engine], grader, pictures, "tiny", silent) == found and asked == [5], "nobody is asked twice"
        assert captions([engine], grader, pictures[:1], "another", silent).keys() <= {0} and asked == [5, 1]
    assert found and all(text.isprintable() and 0 < len(text) <= LONGEST and 0 < sure < 1 for text, sure in found.values())
    assert all(found[row] == found[row + 5] for row in range(3) if row in found)
    row = next(iter(found))
    odds = grader.score([module._Said(found[row][0], row % 5)], silent)[0]
    assert found[row][1] == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-3)


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "KEPT_EVERY", 2)
    graft, world = tiny_graft(), tiny_world()
    grader = GraftGrader(graft, lambda row: (world.soft(row), ""), "tiny")
    pictures, real, asked = [Pictured(row, f"look{row}", world.soft(row)) for row in range(6)], module._ask, list[int]()

    def dies(engines: object, some: list[Pictured]) -> list[str]:
        asked.append(len(some))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(engines, some)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_ask", dies)
    with LocalEngine(graft) as engine:
        with pytest.raises(KeyboardInterrupt):
            captions([engine], grader, pictures, "tiny", silent)
        captions([engine], grader, pictures, "tiny", silent)
    assert asked == [2, 2, 2, 2], "two pictures were kept"


def test_guesses_come_after_the_graft_that_writes_captions() -> None:
    for ranker in (False, True):
        found = stages_of(config.parse({"tags": {"captions": True}, "ranker": {"enabled": ranker}}, where="test"))
        names = list(found)
        assert "graft" in found["tags"].needs and names[-1] == "evaluate"
        for at, name in enumerate(names):
            assert set(found[name].needs) <= set(names[:at])
