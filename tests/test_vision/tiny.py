"""Tiny random checkpoints of the real classes, saved as their owners save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["a", "red", "blue", "apple", "car", "tree", "winter", "of", "and", "small", "big"]
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32, "max_position_embeddings": 16}
CLIP_INPUT = {
    "do_resize": True,
    "size": {"shortest_edge": 36},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
SQUARE_INPUT = {
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 2,
    "do_normalize": True,
}


def tokenizer(folder: Path, names: list[str] | None = None) -> Any:
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)])
    extra = {"model_input_names": names} if names else {}
    out = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", model_max_length=16, **extra
    )
    out.save_pretrained(folder)
    return out


def save(model: Any, folder: Path, settings: dict[str, Any] | None) -> Any:
    model.eval().save_pretrained(folder)
    if settings is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def clip(folder: Path) -> Any:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    config = CLIPConfig(text_config={**TEXT, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}, vision_config=VISION, projection_dim=24)
    tokenizer(folder)
    return save(CLIPModel(config), folder, CLIP_INPUT)


def siglip(folder: Path) -> Any:
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(1)
    tokenizer(folder, ["input_ids"])
    return save(SiglipModel(SiglipConfig(text_config={**TEXT, "projection_size": 32}, vision_config=VISION)), folder, SQUARE_INPUT)


def siglip2(folder: Path) -> Any:
    from transformers import Siglip2Config, Siglip2Model

    torch.manual_seed(2)
    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    config = Siglip2Config(text_config={**TEXT, "projection_size": 32}, vision_config={**vision, "num_patches": 16})
    tokenizer(folder)
    settings = {
        "image_processor_type": "Siglip2ImageProcessor",
        "patch_size": 8,
        "max_num_patches": 16,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
    }
    return save(Siglip2Model(config), folder, settings)


def dinov2(folder: Path) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(3)
    vision = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    return save(Dinov2Model(Dinov2Config(**vision, mlp_ratio=2)), folder, CLIP_INPUT)


def dinov3(folder: Path) -> Any:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(4)
    return save(DINOv3ViTModel(DINOv3ViTConfig(**VISION, num_register_tokens=2)), folder, SQUARE_INPUT)


def vit(folder: Path, pooler: bool = True) -> Any:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(5)
    return save(ViTModel(ViTConfig(**VISION), add_pooling_layer=pooler), folder, SQUARE_INPUT)


def convnext(folder: Path) -> Any:
    from transformers import ConvNextConfig, ConvNextModel

    torch.manual_seed(6)
    config = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=32)
    return save(
        ConvNextModel(config),
        folder,
        {"size": {"shortest_edge": 32}, "crop_pct": 0.875, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3},
    )


def bert(folder: Path, pooling: str = "mean") -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(7)
    tokenizer(folder)
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}_{'token' if pooling == 'cls' else 'tokens'}": True}))
    return save(BertModel(BertConfig(**TEXT)), folder, None)
