"""How far a student is from its teacher: the divergence of what they expect, token by token.

Knowledge distillation (Hinton et al. 2015) on the teacher's own words (sequence level, Kim & Rush 2016). Of the
teacher's distribution the likeliest tokens are kept, and all others count as one: the divergence of these is at most
the whole one, and zero only where the student agrees on each. Knows nothing of rows, or of what is said.
"""

from __future__ import annotations

import torch
from torch import Tensor


def likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(m, vocabulary) float32 → ids (m, k), the likeliest first; log-probabilities (m, k + 1), last that of all others together."""
    ids = logits.topk(min(k, logits.shape[-1] - 1), dim=-1).indices
    return ids, expected(logits, ids)


def expected(logits: Tensor, ids: Tensor) -> Tensor:
    """(m, vocabulary), (m, k) → log-probabilities (m, k + 1) of the tokens ``ids``, and last that of all others together."""
    whole = torch.logsumexp(logits, -1, keepdim=True)
    others = torch.logsumexp(logits.scatter(1, ids, float("-inf")), -1, keepdim=True)  # 1 - the sum would lose what is small
    return torch.cat([logits.gather(1, ids), others], 1) - whole


def divergence(logits: Tensor, ids: Tensor, logs: Tensor) -> Tensor:
    """A student's (m, vocabulary) from a teacher's ``ids`` (m, k) and ``logs`` (m, k + 1): KL(teacher ‖ student) (m,), in nats."""
    return (logs.exp() * (logs - expected(logits, ids))).sum(-1)
