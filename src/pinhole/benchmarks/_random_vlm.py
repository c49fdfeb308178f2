"""A Qwen3-VL of a given shape with random weights, made by the real classes in seconds; and its language model by itself.

Random weights cost what trained ones do. The language model shares its tensors with the whole one, so that
memory holds one copy. Knows nothing of what is measured with them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pinhole.evaluation.flops import CHANNELS, FRAMES, Shape, Tower
from pinhole.graft.base import hugging_face

_TILE = 65_537  # random numbers that are repeated over a weight; a prime, so that no two rows are the same


def configuration(shape: Shape, attention: str = "sdpa") -> Any:
    """The ``transformers`` configuration of a shape, dense or a mixture of experts."""
    hf, language, tower = hugging_face(), shape.language, shape.tower
    rotary = {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": _sections(language.head), "mrope_interleaved": True}
    text = {
        "vocab_size": language.vocab, "hidden_size": language.hidden, "num_hidden_layers": language.layers, "head_dim": language.head,
        "num_attention_heads": language.heads, "num_key_value_heads": language.kv_heads, "rope_parameters": rotary,
        "max_position_embeddings": 262_144, "tie_word_embeddings": language.tied,
    }  # fmt: skip
    if language.experts:
        text |= {"num_experts": language.experts, "num_experts_per_tok": language.active, "moe_intermediate_size": language.mlp}
    else:
        text |= {"intermediate_size": language.mlp}
    vision = {
        "depth": tower.depth, "hidden_size": tower.hidden, "num_heads": tower.heads, "intermediate_size": tower.mlp, "out_hidden_size": tower.out,
        "patch_size": tower.patch, "spatial_merge_size": tower.merge, "deepstack_visual_indexes": list(tower.deepstack),
    }  # fmt: skip
    image, video = language.vocab - 2, language.vocab - 1
    kind = hf.Qwen3VLMoeConfig if language.experts else hf.Qwen3VLConfig
    config = kind(text_config=text, vision_config=vision, image_token_id=image, video_token_id=video, tie_word_embeddings=language.tied)
    config._attn_implementation = attention
    if language.experts and attention == "eager":
        config._experts_implementation = "eager"  # one expert after the other, in products that can be counted
    return config


def _sections(head: int) -> list[int]:
    """How M-RoPE shares the frequencies of a head between time, height and width: 24, 20, 20 of 64."""
    side = head // 2 * 5 // 16
    return [head // 2 - 2 * side, side, side]


def random_vlm(shape: Shape, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """The whole model, with its eyes."""
    hf = hugging_face()
    kind = hf.Qwen3VLMoeForConditionalGeneration if shape.language.experts else hf.Qwen3VLForConditionalGeneration
    return _filled(kind, configuration(shape, attention), dtype)


def without_eyes(vlm: Any) -> Any:
    """Its language model as a plain causal LM, on the same tensors."""
    hf, text = hugging_face(), vlm.config.text_config.to_dict()
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    rotary = {"rope_type": "default", "rope_theta": text["rope_parameters"]["rope_theta"]}
    shared = {key: text[key] for key in (*keys, "max_position_embeddings", "rms_norm_eps")}
    config = hf.Qwen3Config(**shared, rope_parameters=rotary, tie_word_embeddings=vlm.config.tie_word_embeddings)
    config._attn_implementation = vlm.config.text_config._attn_implementation
    with torch.device("meta"):
        lm = hf.Qwen3ForCausalLM(config)
    state = {f"model.{name}": tensor for name, tensor in vlm.model.language_model.state_dict().items()}
    lm.load_state_dict({**state, "lm_head.weight": vlm.lm_head.weight}, assign=True)
    _rotary_anew(lm)
    return lm.eval()


@torch.no_grad()
def _filled(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    """Built on no device, given memory, and filled from one tile: drawing two billion numbers takes a minute."""
    with torch.device("meta"):
        model = kind(config)
    model = model.to(dtype).to_empty(device="cpu")
    model.tie_weights()
    _rotary_anew(model)
    tile = (torch.randn(_TILE, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        flat = parameter.data.view(-1)
        whole = len(flat) // _TILE * _TILE
        flat[:whole].view(-1, _TILE).copy_(tile)
        flat[whole:].copy_(tile[: len(flat) - whole])
    return model.eval()


def packed(vlm: Any, lm: Any) -> tuple[Any, Any] | None:
    """Both once more with weights laid out ahead; None where there is no such layout, or no room for the weights a second time."""
    import psutil

    from pinhole.engines.packed import PackedLinear, packable

    weights = sum(module.weight.nbytes for module in vlm.modules() if isinstance(module, nn.Linear))
    if not packable(lm, limit=None) or psutil.virtual_memory().available < 1.5 * weights:
        return None
    pair: list[Any] = []
    laid: dict[int, nn.Module] = {}
    for model in (vlm, lm):
        memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        pair.append(copy.deepcopy(model, memo))
        with torch.inference_mode():
            for parent in list(pair[-1].modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.Linear):
                        at = child.weight.data_ptr()
                        laid[at] = laid[at] if at in laid else PackedLinear(child, rows=512)
                        setattr(parent, name, laid[at])
    return pair[0], pair[1]


def _rotary_anew(model: nn.Module) -> None:
    """Frequencies are in no checkpoint: a module that was built on no device has none."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "inv_freq"):
                setattr(parent, name, type(child)(child.config))


def pictures(tower: Tower, images: int, size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random pixels as the processor would cut them: ``pixel_values`` (patches of all images, pixels of a patch) and ``image_grid_thw``."""
    side = size // tower.patch
    pixels = torch.randn(images * side * side, CHANNELS * FRAMES * tower.patch**2, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels.to(dtype), "image_grid_thw": torch.tensor([[1, side, side]] * images)}
