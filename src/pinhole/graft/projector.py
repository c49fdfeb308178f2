"""The projector: one content embedding in, one soft token out; or one of several, of which each tells of a cell too.

A linear skip path that the warm start puts near the words of the picture, beside a small MLP that
starts at zero (so training begins exactly there), brought to the length of an ordinary token
embedding. After LLaVA's MLP projector (Liu et al. 2023); the skip is ours. Stays outside the LoRA and
is saved on its own: a few MB that a gateway can run.

A picture of several tokens gives each the content of the whole and adds what one cell of its grid has beyond it. So
one projector serves every number of tokens, nested like the widths of Matryoshka embeddings (Kusupati et al. 2022; for
visual tokens: Cai et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pinhole.graft.prompt import Soft


class Projector(nn.Module):
    def __init__(self, content_dim: int, hidden: int, width: int = 1024, cell_dim: int = 0) -> None:
        super().__init__()
        self.content_dim, self.hidden, self.width, self.cell_dim = content_dim, hidden, width, cell_dim
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
        if cell_dim:
            self.register_buffer("cell_scale", torch.ones(cell_dim))
            self.cell = nn.Linear(cell_dim, hidden, bias=False)
            nn.init.zeros_(self.cell.weight)

    @property
    def shape(self) -> dict[str, int]:
        """What makes another of the same shape."""
        return {"content_dim": self.content_dim, "hidden": self.hidden, "width": self.width, "cell_dim": self.cell_dim}

    def forward(self, content: Tensor, cells: Tensor | None = None) -> Tensor:
        """(…, content_dim), and for tokens of one cell each (…, cell_dim), zero for the others → (…, hidden)"""
        x = (content - self.mean) * self.scale
        y = self.skip(x) + self.outer(nn.functional.gelu(self.inner(x)))
        if cells is not None:
            y = y + self.cell(cells * self.cell_scale)
        return self.length * y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)

    def read(self, soft: Sequence[Soft]) -> Tensor:
        """Pictures, or cells of pictures, of one token each → (n, hidden) float32."""
        vectors = torch.from_numpy(np.stack([part.vector for part in soft]).astype(np.float32))
        return self(vectors.to(self.mean.device), self._cells(soft))  # type: ignore[no-any-return]

    def _cells(self, soft: Sequence[Soft]) -> Tensor | None:
        """(n, cell_dim), zero for pictures of one token; None where all are."""
        if all(part.cells is None for part in soft):
            return None
        cells = np.zeros((len(soft), self.cell_dim), np.float32)
        for i, part in enumerate(soft):
            if part.cells is not None:
                cells[i] = part.cells[0]
        return torch.from_numpy(cells).to(self.mean.device)

    @torch.no_grad()
    def normalise(self, content: Tensor) -> None:
        """Take mean and spread of the inputs from (n, content_dim) pictures: each then has a length of about 1."""
        self.mean.copy_(content.mean(0))
        self.scale.copy_(1 / (content.std(0).clamp_min(1e-6) * self.content_dim**0.5))

    @torch.no_grad()
    def start_cells(self, scale: Tensor, weight: Tensor) -> None:
        """``scale`` (cell_dim,) brings a cell to a length of about 1; ``weight`` (hidden, cell_dim) is what it then adds."""
        self.cell_scale.copy_(scale)
        self.cell.weight.copy_(weight)

    @torch.no_grad()
    def start(self, weight: Tensor, bias: Tensor, length: float) -> None:
        """Begin at ``weight`` (hidden, content_dim) and ``bias`` (hidden,) of the skip path; ``length`` is a token embedding's root mean square."""
        self.skip.weight.copy_(weight)
        self.skip.bias.copy_(bias)
        self.length.fill_(length)
