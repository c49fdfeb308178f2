"""The benchmark steps from every start on a real workspace; which is best is for a base that has learned something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pinhole.benchmarks import start
from pinhole.stages import build
from toy_model import tiny_graft
from toy_workspace import make_models, make_source, make_workspace
from toy_world import tiny_world


def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    workspace = make_workspace(tmp_path / "shop", make_source(tmp_path / "source", each=2), make_models(tmp_path / "models"))
    build(workspace, ["align"])
    before = sorted(path.name for path in workspace.root.rglob("*"))
    done: list[tuple[int, int]] = []
    figures = start.run(workspace, lambda *at: done.append(at), steps=3)
    assert done == [(step, 9) for step in range(1, 10)]
    each = {f"start.{name}.{figure}" for name in start.STARTS for figure in ("steps", "first", "last")}
    assert set(figures) == each | {"start.target_loss", "start.of_steps", "start.random_over_words", "start.random_over_ridge"}
    assert figures["start.target_loss"] == figures["start.random.last"] and figures["start.random.steps"] <= 3
    assert len({figures[f"start.{name}.first"] for name in start.STARTS}) == 3, "three starts"
    assert json.dumps(figures) and sorted(path.name for path in workspace.root.rglob("*")) == before


def test_steps_are_counted_from_one() -> None:
    curve = np.array([3.0, 2.0, 1.0, 1.5])
    assert [start.steps_to(curve, target) for target in (3.5, 2.0, 1.2, 0.5)] == [1, 2, 3, 5]


def test_the_starts_are_of_one_length_and_two_of_them_near_words() -> None:
    found = {}
    for name in start.STARTS:
        graft, world = tiny_graft(), tiny_world()
        start._start(name, graft, world, 0)
        soft = graft.soft_tokens([world.soft(i) for i in world.train]).detach()
        names = torch.stack([graft.word(world.pictures[i].names[1]) for i in world.train])
        torch.testing.assert_close(soft.pow(2).mean(1), names.pow(2).mean(1), rtol=1e-2, atol=0)
        found[name] = float(torch.nn.functional.cosine_similarity(soft - soft.mean(0), names - names.mean(0)).mean())
        assert bool(world.strange) == (name != "random")
    assert min(found["words"], found["ridge"]) > found["random"] + 0.3
