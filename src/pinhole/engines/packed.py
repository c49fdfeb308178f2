"""A copy of the model for serving: same weights, laid out for reading one token at a time.

oneDNN reorders a bfloat16 weight matrix on every call unless it was reordered before; for a few
tokens that costs more than the product. The copy shares every other parameter with the model it was
made from, and the numbers are the same to within the rounding of a different block order. Where the
machine or the dtype has no such layout, the copy is plain.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

LIMIT = 2 << 30  # bytes of weights: packing holds them twice


class PackedLinear(nn.Module):
    """A linear layer whose weight is in oneDNN's own order. Inference only."""

    def __init__(self, linear: nn.Linear, rows: int = 1) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]


def packable(lm: Any, limit: int | None = LIMIT) -> bool:
    """Is there a layout, does it give the same numbers, and is the model small enough to hold twice (``limit`` in bytes)?"""
    linears = [module for module in lm.modules() if isinstance(module, nn.Linear)]
    if not linears or lm.dtype is not torch.bfloat16 or lm.device.type != "cpu":
        return False
    if limit is not None and sum(module.weight.nbytes for module in linears) > limit:
        return False
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        x = torch.randn(4, linears[0].in_features, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
        with torch.inference_mode():
            plain, packed = linears[0](x).float(), PackedLinear(linears[0])(x).float()
        return torch.allclose(plain, packed, rtol=2e-2, atol=2e-2 * float(plain.abs().max()))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def serving_copy(lm: Any, pack: bool | None = None) -> Any:
    """A model with settings of its own and shared weights; ``pack`` None packs where it can."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*lm.parameters(), *lm.buffers())}
    clone = copy.deepcopy(lm, memo).eval()
    if packable(lm) if pack is None else pack:
        with torch.inference_mode():
            for module in list(clone.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(module, name, PackedLinear(child))
    return clone
