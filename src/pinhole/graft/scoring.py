"""Packed rows through a graft: what it makes of every place where an assistant speaks.

Logits are computed only there. Knows nothing of training, of lessons or of exams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pinhole.graft.model import Graft
from pinhole.graft.packing import Row
from pinhole.graft.prompt import Soft

_WHOLE = 32  # rows are padded to a multiple of this: on a CPU a score matrix of odd width costs up to twice as much


def batch_tensors(graft: Graft, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows → input embeddings (b, T, hidden), additive mask (b, 1, T, T), positions (b, T)."""
    size = -(-max(len(row.tokens) for row in rows) // _WHOLE) * _WHOLE
    tokens = np.zeros((len(rows), size), np.int64)
    positions = np.zeros((len(rows), size), np.int64)
    soft: list[Soft] = []
    for i, row in enumerate(rows):
        ids = np.array(row.tokens)
        tokens[i, : len(ids)] = np.where(ids < 0, ids - len(soft), ids)  # -1-j counts through the whole batch
        positions[i, : len(ids)] = row.positions
        soft += row.soft
    allowed = torch.from_numpy(np.stack([row.mask(size) for row in rows])).to(graft.device)
    dtype = graft.lm.dtype
    mask = torch.zeros(allowed.shape, dtype=dtype, device=graft.device).masked_fill_(~allowed, torch.finfo(dtype).min)
    embedded = graft.embed_tokens(torch.from_numpy(tokens).to(graft.device), soft)
    return embedded, mask.unsqueeze(1), torch.from_numpy(positions).to(graft.device)


def answer_states(graft: Graft, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Hidden states (m, hidden) where an assistant speaks, and the token that comes there (m,)."""
    embedded, mask, positions = batch_tensors(graft, rows)
    hidden = graft.lm.model(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    size = hidden.shape[1]
    where = [i * size + at for i, row in enumerate(rows) for at in row.learn_from]
    wanted = [token for row in rows for token in row.learn_token]
    picked = hidden.reshape(-1, hidden.shape[-1])[torch.tensor(where, device=graft.device)]
    return picked, torch.tensor(wanted, device=graft.device)


def answer_logits(graft: Graft, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Logits (m, vocabulary) where an assistant speaks, and the token that comes there (m,)."""
    states, wanted = answer_states(graft, rows)
    return graft.lm.lm_head(states).float(), wanted


def answer_scores(graft: Graft, rows: Sequence[Row]) -> Tensor:
    """Log-probability (m,) of every token of every answer. Where answers part, the vocabulary is scored once for all of them."""
    states, wanted = answer_states(graft, rows)
    places = [(i, at) for i, row in enumerate(rows) for at in row.learn_from]
    first = {place: n for n, place in reversed(list(enumerate(places)))}
    numbers = {place: n for n, place in enumerate(first)}
    logits = graft.lm.lm_head(states[list(first.values())]).float()
    at = torch.tensor([numbers[place] for place in places], device=logits.device)
    return logits[at, wanted] - torch.logsumexp(logits, -1)[at]
