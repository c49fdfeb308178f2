from __future__ import annotations

import torch

from pinhole.graft.projector import Projector


def test_warm_start_is_the_ridge_solution() -> None:
    torch.manual_seed(0)
    content, truth = torch.randn(400, 12), torch.randn(12, 20)
    targets = content @ truth + 3.0
    projector = Projector(12, 20, 16)
    fitted = projector.warm_start(content, targets, length=0.7, ridge=1e-6)
    assert fitted > 0.999
    out = projector(content)
    torch.testing.assert_close(out.pow(2).mean(-1).sqrt(), torch.full((400,), 0.7), atol=1e-3, rtol=1e-3)
    assert torch.nn.functional.cosine_similarity(out, targets).min() > 0.999


def test_noise_is_not_fitted() -> None:
    torch.manual_seed(0)
    assert Projector(12, 20, 16).warm_start(torch.randn(400, 12), torch.randn(400, 20), length=1.0) < 0.1


def test_a_constant_feature_gives_no_infinity() -> None:
    content = torch.randn(50, 6)
    content[:, 2] = 1.0
    projector = Projector(6, 8, 4)
    projector.warm_start(content, torch.randn(50, 8), length=1.0)
    assert torch.isfinite(projector(content)).all()
