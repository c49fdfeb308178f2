"""What learns in a graft, and the gradient of a step's rows.

LoRA (Hu et al. 2021) through peft on every linear layer of the language model, in its own dtype, and the
projector in float32. Knows nothing of the optimiser, or of where rows come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pinhole.graft.distil import divergence
from pinhole.graft.model import Graft
from pinhole.graft.packing import Row
from pinhole.graft.scoring import answer_logits


def add_lora(graft: Graft, rank: int, seed: int) -> Any:
    """Put LoRA into the language model in place; returns peft's wrapper (its ``merge_and_unload`` bakes it in)."""
    import warnings

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)  # peft asks transformers by its old name
    warnings.filterwarnings("ignore", message=".*_pattern keys did not match", category=RuntimeWarning)  # of experts, which it does adapt
    return get_peft_model(graft.lm, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), autocast_adapter_dtype=False)


class Learner:
    """A graft with LoRA in it. All that learns is also one flat vector, LoRA first: hundreds of small tensors cost more to visit than to update."""

    def __init__(self, graft: Graft, rank: int, seed: int = 0) -> None:
        self.graft, self.peft = graft, add_lora(graft, rank, seed)
        lora, projector = [p for p in self.peft.parameters() if p.requires_grad], list(graft.projector.parameters())
        self.trained: list[Tensor] = [*lora, *projector]  # as it lies in the model
        self.lengths = [p.numel() for p in self.trained]
        self.sizes = {"lora": sum(self.lengths[: len(lora)]), "projector": sum(self.lengths[len(lora) :])}

    def gradient(self, rows: Sequence[Row], out: Tensor) -> tuple[float, float]:
        """The sum over the rows' answer tokens: gradient into ``out`` (all that learns,) float32; returns loss and weight, summed too.

        Where a teacher answered, the loss holds the divergence from what it expected too. Row by row, so that it does not matter
        who takes which.
        """
        out.zero_()
        loss = weight = 0.0
        for row in rows:
            logits, wanted = answer_logits(self.graft, [row])
            weights = torch.tensor(row.learn_weight, device=logits.device)
            losses = (nn.functional.cross_entropy(logits, wanted, reduction="none") * weights).sum()
            if row.taught_at:
                losses = losses + _apart(logits, row)
            losses.backward()  # type: ignore[no-untyped-call]
            for parameter, part in zip(self.trained, out.split(self.lengths), strict=True):
                if parameter.grad is not None:
                    part.add_(parameter.grad.reshape(-1))
                parameter.grad = None
            loss, weight = loss + float(losses.detach()), weight + float(weights.sum())
        return loss, weight

    @torch.no_grad()
    def publish(self, weights: Tensor) -> None:
        """Put the flat weights into the model."""
        for parameter, piece in zip(self.trained, weights.split(self.lengths), strict=True):
            parameter.copy_(piece.view_as(parameter))


def _apart(logits: Tensor, row: Row) -> Tensor:
    """Where a teacher's view is known, how far the row's ``logits`` (m, vocabulary) are from it: a weighted sum."""
    ids, logs, weights = (torch.tensor(values, device=logits.device) for values in (row.taught_ids, row.taught_logs, row.taught_weight))
    return (divergence(logits[row.taught_at], ids, logs) * weights).sum()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All their numbers in one float32 vector."""
    return torch.cat([tensor.detach().reshape(-1).to(torch.float32) for tensor in tensors])
