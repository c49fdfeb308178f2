"""Tiny random checkpoints of the real classes: our recipe and export give what transformers itself gives."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pinhole.errors import ConfigError, Corrupt, DownloadError
from pinhole.vision.encoders import image_encoder, runtime, text_encoder
from pinhole.vision.encoders.huggingface import recipe_of
from pinhole.vision.images import Recipe
from test_vision import tiny

SEEING = [tiny.clip, tiny.siglip, tiny.siglip2, tiny.dinov2, tiny.dinov3, tiny.vit, tiny.convnext]
READING = [tiny.clip, tiny.siglip, tiny.siglip2, tiny.bert]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield


def pictures(n: int, width: int = 100, height: int = 80) -> list[Image.Image]:
    """Coloured clouds."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC) for _ in range(n)]


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def close(left: np.ndarray, right: np.ndarray, by: float = 2e-3) -> bool:
    return bool(np.abs(left - right).max() <= by * np.abs(right).max())


def expected(model: Any, scaled: torch.Tensor) -> torch.Tensor:
    """What transformers gives for scaled pixels (n, 3, size, size)."""
    name = type(model).__name__
    if name == "CLIPModel":
        return model.visual_projection(model.vision_model(pixel_values=scaled).pooler_output)
    if name == "SiglipModel":
        return model.vision_model(pixel_values=scaled).pooler_output
    if name == "Siglip2Model":
        from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

        patches = torch.from_numpy(np.stack([convert_image_to_patches(one.numpy(), 8) for one in scaled]))
        shapes = torch.tensor([[4, 4]] * len(scaled))
        return model.vision_model(
            pixel_values=patches, pixel_attention_mask=torch.ones(len(scaled), 16, dtype=torch.int64), spatial_shapes=shapes
        ).pooler_output
    return model(pixel_values=scaled).pooler_output


@pytest.mark.parametrize("make", SEEING, ids=lambda make: make.__name__)
def test_images(make: Callable[[Path], Any], tmp_path: Path) -> None:
    model = make(tmp_path)
    encoder = image_encoder(f"hf:{tmp_path}")
    pixels = np.stack([encoder.decode(png(image)) for image in pictures(5)])
    scaled = torch.from_numpy(((pixels / 255.0 - encoder.recipe.mean) / encoder.recipe.std).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        right = expected(model, scaled).numpy()
    got = encoder.encode(pixels)
    assert got.shape == (5, encoder.dim)
    assert close(got, right)
    facts = json.loads((runtime.folder_of(encoder.identity) / "vectors.json").read_text())
    assert facts["runtime"] == "onnx"


def test_our_pixels_are_the_processors(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessorPil

    tiny.clip(tmp_path)
    encoder = image_encoder(f"hf:{tmp_path}")
    image = pictures(1, 88, 72)[0]
    theirs = CLIPImageProcessorPil(**tiny.CLIP_INPUT)(image, return_tensors="np")["pixel_values"][0]
    ours = ((encoder.decode(png(image)) / 255.0 - encoder.recipe.mean) / encoder.recipe.std).transpose(2, 0, 1)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() < 0.02


@pytest.mark.parametrize("make", READING, ids=lambda make: make.__name__)
def test_texts(make: Callable[[Path], Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = make(tmp_path)
    encoder = text_encoder(f"hf:{tmp_path}")
    texts = ["a red apple", "winter", "a small blue car and a big tree of winter"]
    whole = make in (tiny.siglip, tiny.siglip2)
    padding = "max_length" if whole else True
    inputs = AutoTokenizer.from_pretrained(tmp_path)(texts, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        if make is tiny.bert:
            hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            right = (hidden * mask).sum(1) / mask.sum(1)
        else:
            right = model.get_text_features(**inputs).pooler_output
    right = torch.nn.functional.normalize(right).numpy()
    got = encoder.encode(texts)
    assert got.shape == (3, encoder.dim)
    assert close(got, right)
    assert close(encoder.encode(texts[::-1])[::-1], got)


def test_cls_pooling(tmp_path: Path) -> None:
    model = tiny.bert(tmp_path, "cls")
    got = text_encoder(f"hf:{tmp_path}").encode(["a"])
    with torch.no_grad():
        right = torch.nn.functional.normalize(model(input_ids=torch.tensor([[1, 4, 2]])).last_hidden_state[:, 0]).numpy()
    assert close(got, right)


def test_a_pooler_that_was_never_saved_is_not_used(tmp_path: Path) -> None:
    model = tiny.vit(tmp_path, pooler=False)
    encoder = image_encoder(f"hf:{tmp_path}")
    pixels = np.stack([encoder.decode(png(image)) for image in pictures(2)])
    scaled = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.5
    with torch.no_grad():
        right = model(pixel_values=scaled).last_hidden_state.mean(1).numpy()
    assert close(encoder.encode(pixels), right)


def test_identity_follows_the_weights_not_the_name(tmp_path: Path) -> None:
    tiny.vit(tmp_path / "one")
    tiny.vit(tmp_path / "two")
    one, two = image_encoder(f"hf:{tmp_path / 'one'}"), image_encoder(f"hf:{tmp_path / 'two'}")
    assert one.identity == two.identity
    (tmp_path / "two" / "preprocessor_config.json").write_text(json.dumps({**tiny.SQUARE_INPUT, "image_mean": [0.1] * 3}))
    assert image_encoder(f"hf:{tmp_path / 'two'}").identity != one.identity
    model = tiny.vit(tmp_path / "three")
    with torch.no_grad():
        model.layernorm.weight += 1
    tiny.save(model, tmp_path / "three", tiny.SQUARE_INPUT)
    assert image_encoder(f"hf:{tmp_path / 'three'}").identity != one.identity


@pytest.mark.parametrize(
    ("settings", "recipe"),
    [
        ({"size": 224, "do_center_crop": True, "crop_size": 224}, (224, "crop", 224)),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}, (224, "crop", 256)),
        ({"size": {"height": 384, "width": 384}}, (384, "stretch", 0)),
        ({"size": 224}, (224, "stretch", 0)),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, "crop", 256)),
        ({"size": {"longest_edge": 512}}, (512, "pad", 0)),
        ({"max_num_patches": 256, "patch_size": 16}, (256, "stretch", 0)),
    ],
)
def test_ways_to_write_a_size(settings: dict[str, Any], recipe: tuple[int, str, int], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    got = recipe_of(tmp_path)
    assert (got.size, got.fit, got.edge) == recipe


def test_numbers_of_a_processor(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": {"size": 8, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}})
    )
    got = recipe_of(tmp_path)
    assert isinstance(got, Recipe)
    assert np.allclose(got.mean + got.std, 0.5)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 8, "do_rescale": False, "do_normalize": False}}))
    assert np.allclose(recipe_of(tmp_path).std, 1 / 255)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no folder"):
        image_encoder("hf:./nowhere")
    with pytest.raises(DownloadError, match=r"config\.json"):
        image_encoder(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(DownloadError, match="safetensors"):
        image_encoder(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="prepared"):
        image_encoder(f"hf:{tmp_path}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 4, "width": 6}}))
    with pytest.raises(ConfigError, match="square"):
        image_encoder(f"hf:{tmp_path}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tiny.SQUARE_INPUT))
    with pytest.raises(Corrupt, match="cannot be loaded"):
        image_encoder(f"hf:{tmp_path}")


def test_a_name_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="could not download `nobody/nothing`"):
        image_encoder("hf:nobody/nothing")
