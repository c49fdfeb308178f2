"""The benchmark of a turn runs at tiny shapes and prints what it promises. How good the figures are, is for a quiet machine."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from pinhole import cli
from pinhole.benchmarks import turn
from pinhole.benchmarks._random_vlm import random_vlm, without_eyes
from pinhole.catalogue.prices import load_prices
from pinhole.evaluation import flops
from test_evaluation.test_flops import DENSE


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "SHAPE", DENSE)
    monkeypatch.setattr(turn, "EDGE", 64)
    monkeypatch.setattr(turn, "CONTENT", 24)
    monkeypatch.setattr(turn, "_encoder", lambda workspace: {"turn.encoder_image_s": 0.01})


def test_figures_table_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["bench", "turn", "--quick", "--json", "--plot", "turn.png"]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)
    for images in (1, 4):
        ratios = {name: figures[f"turn.n{images}.{name}"] for name in ("full_over_graft", "graft_over_floor", "cached_tower_over_graft")}
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios.values())
        assert ratios["full_over_graft"] == figures[f"turn.n{images}.full_s"] / figures[f"turn.n{images}.graft_s"]
        assert figures[f"turn.n{images}.graft_s.k16"] > 0 and figures[f"turn.n{images}.graft_s.n"] == turn.ROUNDS * turn.SHORT
        assert figures[f"turn.n{images}.flops.full"] == flops.full(DENSE, flops.Turn(images, 64)) / 1e12
        assert (figures[f"turn.n{images}.full_tokens"], figures[f"turn.n{images}.graft_tokens"]) == (60 + images * 6, 60 + images)
    assert not any(key.startswith("turn.n10.") for key in figures) and "turn: The claim" in err
    with Image.open("turn.png") as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 400
    lines = turn.table(figures)
    assert [line.split()[0] for line in lines[1:3]] == ["1", "4"] and figures["turn.machine"] in "\n".join(lines)
    prices = load_prices()
    money = next(line.split() for line in lines if line.startswith("graft k=1"))
    assert float(money[2]) == pytest.approx(1000 * figures["turn.n4.graft_s"] * prices.own.usd_per_hour / 3600, abs=6e-4)
    money = next(line.split() for line in lines if line.startswith("gpt-5.5"))
    row = prices.frontier["gpt-5.5"]
    assert row.image_tokens and float(money[1]) == pytest.approx((60 + 4 * row.image_tokens) * row.input / 1000, abs=6e-4)


def test_the_sides_are_one_model() -> None:
    """With no picture the whole model and the one without eyes give the same logits, from the same memory."""
    vlm = random_vlm(DENSE, torch.float32)
    lm, ids = without_eyes(vlm), torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(vlm(input_ids=ids).logits, lm(input_ids=ids).logits)
    assert lm.lm_head.weight.data_ptr() == vlm.lm_head.weight.data_ptr() == vlm.model.language_model.embed_tokens.weight.data_ptr()
    assert lm.model.layers[1].mlp.up_proj.weight.data_ptr() == vlm.model.language_model.layers[1].mlp.up_proj.weight.data_ptr()


def test_a_cached_tower_is_the_tower() -> None:
    """What the cached side reads is what the tower says: the same logits as with the pixels."""
    from pinhole.benchmarks._random_vlm import pictures

    sides = turn._Sides()
    asked, vlm = sides._prompt(1), sides.models["plain"][0]
    with torch.inference_mode():
        looked = vlm(**asked, **pictures(DENSE.tower, 1, 64, torch.bfloat16), logits_to_keep=1).logits
        kept = vlm(**asked, image_grid_thw=sides.one["image_grid_thw"], mm_encoder_outputs={"image": sides.seen}, logits_to_keep=1).logits
    assert torch.equal(looked, kept) and torch.isfinite(looked).all()
