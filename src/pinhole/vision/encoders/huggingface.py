"""stub"""
from __future__ import annotations
from torch import Tensor, nn
from typing import Any


class MeanPooled(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.network(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, tokens, dim)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
