"""The align objective: three small functions of already computed vectors.

Knows nothing of heads, of items or of where pairs come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def contrast(left: Tensor, right: Tensor, scale: Tensor, alike: Tensor) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018) as CLIP uses it (Radford et al. 2021).

    ``left``, ``right`` (batch, dim): row i of one belongs to row i of the other, every other row is a
    negative, save where ``alike`` (batch, batch) says that the two belong together as well: a false
    negative is left out of the sum, not pushed away. ``scale`` is one over the temperature.
    """
    logits = scale * F.normalize(left, dim=1) @ F.normalize(right, dim=1).T  # (batch, batch)
    others = alike & ~torch.eye(len(left), dtype=torch.bool)
    logits = logits.masked_fill(others, -1e4)
    target = torch.arange(len(left))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def nested_contrast(left: Tensor, right: Tensor, scale: Tensor, alike: Tensor, widths: Sequence[int]) -> Tensor:
    """The mean of :func:`contrast` over the first 64, 128, … numbers of the vectors, so that they work when cut.

    Matryoshka representation learning (Kusupati et al. 2022), all widths with equal weight.
    """
    return torch.stack([contrast(left[:, :width], right[:, :width], scale, alike) for width in widths]).mean()


def drift(weights: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """Squared distance from where training began: L2-SP (Li et al. 2018), for small catalogues."""
    return torch.stack([((weight - begin) ** 2).sum() for weight, begin in zip(weights, start, strict=True)]).sum()
