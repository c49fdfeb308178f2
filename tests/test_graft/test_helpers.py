"""Helpers do what one process does, in less time; and when one dies, that is said."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from pinhole.config import GraftConfig
from pinhole.errors import PinholeError
from pinhole.graft.fast import fast_rows
from pinhole.graft.helpers import FOLDER, Helpers, processes
from pinhole.graft.packing import Row
from pinhole.graft.train import fill_rows, seeing_lessons
from pinhole.graft.tuning import Trainer
from toy_model import tiny_graft
from toy_world import tiny_world

SETTINGS = GraftConfig(row_tokens=256, batch_rows=3, lora_rank=4, dtype="float32")


def rows_of(step: int) -> list[Row]:
    """Three rows of the beginning of seeing, where pictures lean on words."""
    return fill_rows(seeing_lessons(tiny_world(), random.Random(step), 0.05), tiny_graft().prompter, SETTINGS)


def trained(out: Path, count: int) -> tuple[torch.Tensor, list[float]]:
    graft = tiny_graft()
    with Helpers(graft, SETTINGS, out, count=count) as helpers, fast_rows(graft.lm):
        trainer = Trainer(graft, SETTINGS, 0, helpers)
        losses = [trainer.step(rows_of(step), 0.5) for step in range(3)]
        return trainer.weights.clone(), losses


def test_the_same_steps_with_and_without(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    alone, losses = trained(tmp_path, 0)
    before = torch.cat([p.reshape(-1) for p in Trainer(tiny_graft(), SETTINGS, 0).learner.trained])
    assert any(part.lean for row in rows_of(0) for part in row.soft)
    for count in (1, 3):  # two rows for one of two; and one more than there are rows for
        together, others = trained(tmp_path, count)
        assert losses == pytest.approx(others, rel=1e-5)
        moved = (alone - before).abs().mean()
        assert moved > 1e-4 and (together - alone).abs().mean() < 1e-3 * moved
        assert not (tmp_path / FOLDER).exists() and torch.get_num_threads() == threads


def test_a_helper_that_dies_is_named(tmp_path: Path) -> None:
    graft = tiny_graft()
    with Helpers(graft, SETTINGS, tmp_path, count=1) as helpers, fast_rows(graft.lm):
        trainer = Trainer(graft, SETTINGS, 0, helpers)
        trainer.step(rows_of(0), 0.5)
        helpers.helpers[0].process.kill()
        with pytest.raises(PinholeError, match="training helper 1 .* died: killed by SIGKILL") as died:
            trainer.step(rows_of(1), 0.5)
        assert "resumes" in died.value.fix and "batch_rows" in died.value.fix
    assert not (tmp_path / FOLDER).exists()


def test_what_a_helper_says_last_is_kept(tmp_path: Path) -> None:
    graft = tiny_graft()
    with Helpers(graft, SETTINGS, tmp_path, count=1) as helpers:
        (tmp_path / FOLDER / "projector.safetensors").write_bytes(b"")
        helpers.share(8)
        with pytest.raises(PinholeError) as died:
            helpers.start([])
            helpers.finish(torch.zeros(8))
        assert "SafetensorError" in died.value.where


def test_no_more_than_rows_and_cores() -> None:
    graft = tiny_graft()
    assert processes(graft, GraftConfig(batch_rows=1)) == 1
    assert 1 <= processes(graft, GraftConfig(batch_rows=64)) <= 64
