"""Tiny random vision-language models of every family that ``graft/surgery.py`` knows, made with the real transformers classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toy_model import tiny_tokenizer

TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 2]}  # 6 = half a head
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1, "mlp_only_layers": []}
CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
QWEN3_EYES = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 48,
    "patch_size": 14,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
QWEN2_EYES = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48, "fullatt_block_indexes": [1]}
GRIDS = [[28, 28], [56, 56]]

# model_type → (class, text settings, vision settings, settings of the whole)
SHAPES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen3_vl": ("Qwen3VL", {"rope_parameters": ROPE}, QWEN3_EYES, {}),
    "qwen3_vl_moe": ("Qwen3VLMoe", {"rope_parameters": ROPE, **EXPERTS}, QWEN3_EYES, {}),
    "qwen2_5_vl": ("Qwen2_5_VL", {"rope_parameters": ROPE}, QWEN2_EYES, {}),
    "smolvlm": ("SmolVLM", {"model_type": "llama"}, CLIP, {"scale_factor": 2}),
    "idefics3": ("Idefics3", {"model_type": "llama"}, CLIP, {"scale_factor": 2}),
    "llava": ("Llava", {"model_type": "mistral", "sliding_window": None}, {**CLIP, "model_type": "clip_vision_model"}, {}),
    "llava_onevision": (
        "LlavaOnevision",
        {"model_type": "qwen2"},
        {**CLIP, "model_type": "siglip_vision_model"},
        {"image_grid_pinpoints": GRIDS},
    ),
    "gemma3": ("Gemma3", {"sliding_window": 16, "query_pre_attn_scalar": 12}, CLIP, {"mm_tokens_per_image": 1}),
    "internvl": ("InternVL", {"model_type": "qwen2"}, {**CLIP, "image_size": [28, 28], "patch_size": [14, 14]}, {}),
}

SQUARE = {"height": 28, "width": 28}
QWEN_PROCESSOR = ("Qwen2VLImageProcessorPil", {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}})
LONGEST = {"size": {"longest_edge": 28}, "max_image_size": {"longest_edge": 28}}

# model_type → (class of its image processor, settings)
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_vl": QWEN_PROCESSOR,
    "qwen3_vl_moe": QWEN_PROCESSOR,
    "qwen2_5_vl": QWEN_PROCESSOR,
    "smolvlm": ("SmolVLMImageProcessorPil", LONGEST),
    "idefics3": ("Idefics3ImageProcessorPil", LONGEST),
    "llava": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 28}, "crop_size": SQUARE}),
    "llava_onevision": ("LlavaOnevisionImageProcessorPil", {"size": SQUARE, "image_grid_pinpoints": GRIDS}),
    "gemma3": ("Gemma3ImageProcessorPil", {"size": SQUARE}),
    "internvl": ("GotOcr2ImageProcessorPil", {"size": SQUARE}),
}


def tiny_vlm(family: str, *, tied: bool = False, seed: int = 0) -> Any:
    """A random model of one family in float32, loud enough that its choices are far apart. Its attention is the plain one, as a graft's is."""
    import torch
    import transformers

    name, text, vision, whole = SHAPES[family]
    config_class = getattr(transformers, f"{name}Config")
    vocabulary = len(tiny_tokenizer()) + 5
    marks = dict.fromkeys(("image_token_id", "image_token_index"), vocabulary - 1) | {"video_token_id": vocabulary - 2}
    text = {**TEXT, "vocab_size": vocabulary, "tie_word_embeddings": tied, **text}
    config = config_class(text_config=text, vision_config=vision, tie_word_embeddings=tied, **marks, **whole)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(6)
    return model


def save_vlm(family: str, folder: Path, *, tied: bool = False, **settings: Any) -> Any:
    """A checkpoint with tokenizer and chat template; gives the model that it holds."""
    model = tiny_vlm(family, tied=tied)
    model.save_pretrained(folder, **settings)
    tiny_tokenizer().save_pretrained(folder)
    return model
