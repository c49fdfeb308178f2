"""The ragged forward pass against the library's own, for each family that the docs name; the others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pinhole.engines.kv_cache import KV
from pinhole.engines.packed import serving_copy
from pinhole.engines.ragged import Piece, forward, prepare
from pinhole.errors import UsageError

SHAPE = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "Qwen3": {"head_dim": 8},
    "Qwen3Moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "SmolLM3": {},
    "Phi3": {},
    "Granite": {"logits_scaling": 2.0},
    "Olmo2": {},
}


def make(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **settings})
    name = {"Gemma3Text": "Gemma3"}.get(family, family)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def test_the_docs_name_them() -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "assistant.md").read_text(encoding="utf-8").split())
    assert f"(tested: {', '.join(FAMILIES)})" in page


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_are_the_whole(family: str) -> None:
    lm = make(family, **FAMILIES[family])
    copy = serving_copy(lm)
    prepare(copy)
    ids = torch.randint(3, 80, (2, 40))
    kvs = [KV(64), KV(64)]
    with torch.inference_mode():
        plain, embedded = lm(ids).logits, lm.get_input_embeddings()(ids)
        at = [0, 0]
        for sizes in ((15, 3), (1, 9), (14, 1), (1, 1), (9, 26)):  # chunks of both, laid end to end
            pieces = [Piece(kvs[i], embedded[i, at[i] : at[i] + size], wants_logits=True) for i, size in enumerate(sizes)]
            logits = forward(copy, pieces)
            for i, size in enumerate(sizes):
                at[i] += size
                torch.testing.assert_close(logits[i], plain[i, at[i] - 1], rtol=1e-4, atol=1e-4)
        assert torch.equal(copy(ids).logits, plain) or torch.allclose(copy(ids).logits, plain, atol=1e-5), "without pieces it is the library's own"


@pytest.mark.parametrize(
    ("family", "settings"),
    [("Gemma2", {"head_dim": 8}), ("GptOss", {"head_dim": 8}), ("Qwen3Next", {"head_dim": 8}), ("Mamba", {})],
)
def test_what_it_cannot_run_is_refused(family: str, settings: dict[str, Any]) -> None:
    lm = make(family, **settings)
    with pytest.raises(UsageError, match="does not run"):
        prepare(serving_copy(lm))
