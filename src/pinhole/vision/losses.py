"""The align objective: small functions of already computed vectors.

Knows nothing of heads, of items or of where pairs come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MASKED = -1e4


@dataclass(frozen=True)
class Batch:
    """What is known of a batch of b pairs beside their vectors. Each left may have further negatives, shared by all: h items."""

    alike: Tensor
    """(b, b) bool: left i belongs to right j. A false negative is left out of a sum, not pushed away; the diagonal counts always."""
    often: tuple[Tensor, Tensor] | None = None
    """((b,), (b + h,)) logarithms of how often each left and right is drawn, which are taken off (logQ correction, Yi et al. 2019)."""
    hard: Tensor | None = None
    """(h, dim) negatives that lie near some left (ANCE, Xiong et al. 2021)."""
    hard_alike: Tensor | None = None
    """(b, h) bool: left i belongs to them after all."""

    def cut(self, width: int) -> Batch:
        """Of vectors that are cut to their first ``width`` numbers."""
        return Batch(self.alike, self.often, None if self.hard is None else self.hard[:, :width], self.hard_alike)

    def others(self) -> Tensor:
        """(b, b + h) bool: what is no negative of a left and not its own right."""
        square = self.alike & ~torch.eye(len(self.alike), dtype=torch.bool, device=self.alike.device)
        return square if self.hard_alike is None else torch.cat([square, self.hard_alike], dim=1)


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Batch], Tensor]
"""Left and right (b, dim), one over the temperature, the bias of the sigmoid, and the batch, to a number."""


def _cosines(left: Tensor, right: Tensor, batch: Batch) -> Tensor:
    """(b, b + h)"""
    every = right if batch.hard is None else torch.cat([right, batch.hard])
    return F.normalize(left, dim=1) @ F.normalize(every, dim=1).T


def contrast(left: Tensor, right: Tensor, scale: Tensor, bias: Tensor, batch: Batch) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018) as CLIP uses it (Radford et al. 2021).

    ``left``, ``right`` (b, dim): row i of one belongs to row i of the other, every other row is a
    negative unless ``batch`` says otherwise. ``scale`` is one over the temperature; ``bias`` is not used.
    """
    logits = scale * _cosines(left, right, batch)  # (b, b + h)
    back = logits[:, : len(right)].T
    if batch.often is not None:
        logits, back = logits - batch.often[1][None, :], back - batch.often[0][None, :]
    others = batch.others()
    target = torch.arange(len(left), device=left.device)
    forth = F.cross_entropy(logits.masked_fill(others, MASKED), target)
    return (forth + F.cross_entropy(back.masked_fill(others[:, : len(right)].T, MASKED), target)) / 2


def sigmoid(left: Tensor, right: Tensor, scale: Tensor, bias: Tensor, batch: Batch) -> Tensor:
    """Each pair by itself is one or is none: the loss of SigLIP (Zhai et al. 2023), summed over all and divided by the batch.

    What is drawn often is corrected in the negatives' logits, as in :func:`contrast`.
    """
    logits = scale * _cosines(left, right, batch) + bias
    sign = 2 * torch.eye(len(left), logits.shape[1], device=left.device) - 1
    if batch.often is not None:
        logits = logits - torch.where(sign < 0, (batch.often[1] - batch.often[1].mean())[None, :], 0.0)
    return -F.logsigmoid(sign * logits).masked_fill(batch.others(), 0.0).sum() / len(left)


LOSSES: dict[str, Loss] = {"infonce": contrast, "sigmoid": sigmoid}


def nested(loss: Loss, left: Tensor, right: Tensor, scale: Tensor, bias: Tensor, batch: Batch, widths: Sequence[int]) -> Tensor:
    """The mean of ``loss`` over the first 64, 128, … numbers of the vectors, so that they work when cut.

    Matryoshka representation learning (Kusupati et al. 2022), all widths with equal weight.
    """
    return torch.stack([loss(left[:, :width], right[:, :width], scale, bias, batch.cut(width)) for width in widths]).mean()


def drift(weights: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """Squared distance from where training began: L2-SP (Li et al. 2018), for small catalogues."""
    return torch.stack([((weight - begin) ** 2).sum() for weight, begin in zip(weights, start, strict=True)]).sum()
