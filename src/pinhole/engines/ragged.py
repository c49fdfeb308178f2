"""One forward pass over pieces of several conversations at once.

Prompts' chunks and single new tokens are laid end to end in one row. Everything in a decoder works
on each token by itself, except attention: there each piece looks at its own conversation's keys and
values only (as in Orca's selective batching, Yu et al. 2022). The model is the ordinary transformers one; its
attention is this module's, through the library's own registry. Does not serve models with a state
other than keys and values (linear attention), soft-capped scores or attention sinks: they are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pinhole.engines.kv_cache import KV
from pinhole.errors import UsageError

ATTENTION = "pinhole"
_REFUSED = ("softcap", "s_aux", "position_bias")


class Piece:
    """The next tokens of one conversation: (tokens, hidden) embeddings to be read after ``kv``."""

    def __init__(self, kv: KV, embedded: Tensor, *, wants_logits: bool) -> None:
        self.kv, self.embedded, self.wants_logits = kv, embedded, wants_logits
        self.start, self.size = kv.length, embedded.shape[0]
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(size, start + size), 0 where a token may look and -inf where not. Made once for all layers."""
        if window not in self._masks:
            rows = torch.arange(self.start, self.start + self.size, device=device)[:, None]
            columns = torch.arange(self.start + self.size, device=device)
            hidden = columns > rows if window is None else (columns > rows) | (columns <= rows - window)
            self._masks[window] = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
        return self._masks[window]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float | None, window: int | None) -> Tensor:
        """(1, heads, size, dim) queries over everything this conversation has → the same shape."""
        keys, values = self.kv.write(layer, key, value)
        if window is not None and self.start + self.size <= window:
            window = None
        mask = None
        if self.size > 1:
            mask = self.mask(window, query.dtype, query.device)
        elif window is not None:
            keys, values = keys[:, :, -window:], values[:, :, -window:]
        return torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    pieces: Sequence[Piece] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered attention; without ``pieces`` it is the library's own SDPA."""
    if pieces is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    out, at = [], 0
    for piece in pieces:
        end = at + piece.size
        out.append(piece.attend(query[:, :, at:end], key[:, :, at:end], value[:, :, at:end], module.layer_idx, scaling, sliding_window))
        at = end
    joined = out[0] if len(out) == 1 else torch.cat(out, dim=2)  # (1, heads, tokens, dim)
    return joined.transpose(1, 2).contiguous(), None


def prepare(lm: Any) -> None:
    """Give a model this module's attention. Raises :class:`UsageError` for a kind it cannot run."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = lm.config.get_text_config()
    other = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    capped = any(getattr(config, name, None) for name in ("attn_logit_softcapping", "sinks"))
    if other or capped or not getattr(lm, "_supports_attention_backend", False) or config.model_type == "gpt_oss":
        what = ", ".join(sorted(other)) or "its attention"
        fix = "serve it with vLLM, or choose another base"
        raise UsageError(f"the local engine does not run {config.model_type} ({what})", where="[graft] base", fix=fix)
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    lm.set_attn_implementation(ATTENTION)


def forward(lm: Any, pieces: Sequence[Piece]) -> Tensor:
    """Read all pieces; (n, vocabulary) float32 logits after the last token of each that wants them, in order."""
    embedded = torch.cat([piece.embedded for piece in pieces]) if len(pieces) > 1 else pieces[0].embedded
    device = embedded.device
    positions, last, at = [], [], 0
    for piece in pieces:
        positions.append(torch.arange(piece.start, piece.start + piece.size, device=device))
        at += piece.size
        if piece.wants_logits:
            last.append(at - 1)
    logits = lm(
        inputs_embeds=embedded[None],  # (1, tokens, hidden)
        position_ids=torch.cat(positions)[None],
        attention_mask=torch.empty(1, 1, 1, 1, device=device),  # four axes: "already made", so the library makes none
        use_cache=False,
        logits_to_keep=torch.tensor(last or [0], device=device),
        pieces=pieces,
    ).logits[0]
    for piece in pieces:
        piece.kv.advance(piece.size)
    return logits[: len(last)].float()
