from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from pinhole.graft.projector import Projector


def started(content: torch.Tensor, directions: torch.Tensor, ridge: float = 0.3) -> tuple[Projector, float]:
    projector = Projector(content.shape[1], directions.shape[1], 16)
    middle = torch.linspace(2.0, 4.0, directions.shape[1])
    return projector, projector.warm_start(content, directions, middle, spread=5.0, length=0.7, ridge=ridge)


def test_warm_start_is_the_ridge_solution_around_the_middle() -> None:
    torch.manual_seed(0)
    content, truth = torch.randn(400, 12), torch.randn(12, 20)
    directions = content @ truth
    directions -= directions.mean(0)
    projector, fitted = started(content, directions, ridge=1e-6)
    assert fitted > 0.999
    apart = projector.skip((content - projector.mean) * projector.scale) - projector.skip.bias
    assert cosine_similarity(apart, directions).min() > 0.999
    torch.testing.assert_close(apart.norm(dim=1).mean(), torch.tensor(5.0))
    torch.testing.assert_close(projector.skip.bias.detach(), torch.linspace(2.0, 4.0, 20))
    torch.testing.assert_close(projector(content).pow(2).mean(-1).sqrt(), torch.full((400,), 0.7), atol=1e-3, rtol=1e-3)


def test_what_ridge_shrinks_is_stretched_to_the_spread_of_words() -> None:
    torch.manual_seed(0)
    content = torch.randn(400, 12)
    projector, fitted = started(content, content @ torch.randn(12, 20), ridge=10.0)
    assert 0 < fitted < 0.5
    apart = projector.skip((content - projector.mean) * projector.scale) - projector.skip.bias
    torch.testing.assert_close(apart.norm(dim=1).mean(), torch.tensor(5.0))


def test_noise_is_not_fitted() -> None:
    torch.manual_seed(0)
    assert started(torch.randn(400, 12), torch.randn(400, 20))[1] < 0.1


def test_a_constant_feature_gives_no_infinity() -> None:
    content = torch.randn(50, 6)
    content[:, 2] = 1.0
    projector, _ = started(content, torch.randn(50, 8))
    assert torch.isfinite(projector(content)).all()
