"""The projector: one content embedding in, one soft token out.

A linear skip path that ridge regression starts near the words of the picture, beside a small MLP
that starts at zero (so training begins exactly at the warm start), brought to the length of an
ordinary token embedding. After LLaVA's MLP projector (Liu et al. 2023); the skip and the closed-form
start are ours. Stays outside the LoRA and is saved on its own: a few MB that a gateway can run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    def __init__(self, content_dim: int, hidden: int, width: int = 1024) -> None:
        super().__init__()
        self.content_dim, self.hidden, self.width = content_dim, hidden, width
        self.register_buffer("mean", torch.zeros(content_dim))
        self.register_buffer("scale", torch.ones(content_dim))
        # The input comes in with length about 1, not with unit variance: an AdamW step moves every weight by as much as the
        # learning rate, and a thousand of those along one input would undo the warm start at once.
        self.skip = nn.Linear(content_dim, hidden)
        self.inner = nn.Linear(content_dim, width)
        self.outer = nn.Linear(width, hidden)
        nn.init.normal_(self.inner.weight)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.length = nn.Parameter(torch.ones(()))  # root mean square of a token embedding

    def forward(self, content: Tensor) -> Tensor:
        """(…, content_dim) → (…, hidden)"""
        x = (content - self.mean) * self.scale
        y = self.skip(x) + self.outer(nn.functional.gelu(self.inner(x)))
        return self.length * y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)

    @torch.no_grad()
    def warm_start(self, content: Tensor, directions: Tensor, middle: Tensor, spread: float, length: float, ridge: float = 0.3) -> float:
        """Solve for the skip path in closed form and return its R² on the rows given.

        ``content`` is (n, content_dim); ``directions`` (n, hidden) say where each item's words lie, seen from ``middle``
        (hidden,), the mean of all words. Ridge regression shrinks what it predicts towards the middle, where no word
        is: the prediction is stretched until its mean distance from there is ``spread``, that of the words themselves.
        ``length`` is the root mean square of the model's token embeddings. The ridge is relative to the mean
        eigenvalue of the Gram matrix.
        """
        self.mean.copy_(content.mean(0))
        self.scale.copy_(1 / (content.std(0).clamp_min(1e-6) * self.content_dim**0.5))
        x = ((content - self.mean) * self.scale).double()
        y = directions.double()
        gram = x.T @ x
        gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        weight = torch.linalg.solve(gram, x.T @ y)  # (content_dim, hidden)
        found = x @ weight
        stretch = spread / found.norm(dim=1).mean().clamp_min(1e-9)
        self.skip.weight.copy_((stretch * weight).T.to(self.skip.weight.dtype))
        self.skip.bias.copy_(middle.to(self.skip.bias.dtype))
        self.length.fill_(length)
        return float(1 - (y - found).pow(2).sum() / y.pow(2).sum().clamp_min(1e-12))
