"""The arithmetic on paper is that of the real classes, as torch's own counter sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pinhole.benchmarks._random_vlm import pictures, random_vlm, without_eyes
from pinhole.evaluation.flops import SHAPES, Language, Shape, Tower, Turn, cached_tower, full, graft, on_paper

TOWER = Tower(3, 64, 4, 96, 128, deepstack=(0, 2))
DENSE = Shape(Language(3, 128, 4, 2, 256, head=32, vocab=512, tied=True), TOWER)
MIXED = Shape(Language(3, 128, 4, 2, 64, head=32, vocab=512, experts=6, active=2), TOWER)
LEFT_OUT = 2e-3  # M-RoPE's angles are a product of matrices too; it weighs more in a tiny model than in a real one


def counted(run: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("shape", [DENSE, MIXED], ids=["dense", "experts"])
@pytest.mark.parametrize("images", [1, 3])
def test_a_full_turn(shape: Shape, images: int) -> None:
    turn = Turn(images, size=64)
    vlm = random_vlm(shape, torch.float32, attention="eager")
    each = shape.tower.tokens(64)
    ids = torch.cat([torch.arange(turn.words), *[torch.tensor([1, 2, *[vlm.config.image_token_id] * each])] * images])[None]
    kinds = (ids == vlm.config.image_token_id).int()
    ask = {"input_ids": ids, "mm_token_type_ids": kinds, "use_cache": False, "logits_to_keep": 1}
    looking = pictures(shape.tower, images, 64, torch.float32)
    assert counted(lambda: vlm(**ask, **looking)) == pytest.approx(full(shape, turn), rel=LEFT_OUT)
    assert counted(lambda: vlm.model.visual(looking["pixel_values"], grid_thw=looking["image_grid_thw"])) == images * shape.tower.forward(64)


def test_the_language_model_alone() -> None:
    lm = without_eyes(random_vlm(DENSE, torch.float32, attention="eager"))
    for k in (1, 4):
        turn = Turn(5, size=64)
        ids = torch.ones((1, turn.tokens(k)), dtype=torch.long)
        assert counted(lambda ids=ids: lm(input_ids=ids, use_cache=False, logits_to_keep=1)) == pytest.approx(graft(DENSE, turn, k), rel=LEFT_OUT)


def test_known_sizes() -> None:
    """Parameters follow from the FLOPs of one token, so a wrong number in a shape shows."""
    for name, billions in {"2B": 1.72, "4B": 4.02, "8B": 8.19, "30B-A3B": 3.35}.items():
        language = SHAPES[name].language
        active = language.prefill(1) / 2 / 1e9 + (0 if language.tied else language.vocab * language.hidden / 1e9)
        assert active == pytest.approx(billions, rel=0.01), name  # as their model cards round them


def test_on_paper() -> None:
    found = on_paper()
    assert found["flops.2B.n10.full_over_graft"] == pytest.approx(84.4, abs=0.05)
    assert found["flops.2B.n10.full_over_graft.marked"] == pytest.approx(65.9, abs=0.05)
    turn = Turn(1000)
    assert found["flops.8B.n1000.full"] == full(SHAPES["8B"], turn) / 1e12
    assert graft(SHAPES["8B"], turn) < cached_tower(SHAPES["8B"], turn) < full(SHAPES["8B"], turn)
    assert len(found) == 4 * 4 * 4
