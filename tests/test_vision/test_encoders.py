"""The default pair: exported = the network they came from, cached = fresh, one = many."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pinhole.errors import BadImage, MissingDependency, UnknownName
from pinhole.vision import encoders
from pinhole.vision.encoders import image_encoder, packaged, text_encoder
from pinhole.vision.encoders.base import TextEncoder

SEE, READ = "pypi:efficientnet-lite0", "pypi:all-minilm-l6-v2"


def png(colour: tuple[int, int, int], size: int = 64) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(out, "PNG")
    return out.getvalue()


def test_image_vectors_are_the_networks() -> None:
    import torch

    encoder = image_encoder(SEE)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    with torch.no_grad():
        network = packaged._lite0(encoder.recipe, packaged._lite0_weights(encoder.identity))
        right = network(torch.from_numpy(pixels)).numpy()
    got = encoder.encode(pixels)
    assert got.shape == (3, encoder.dim) == (3, 1280)
    assert np.abs(got - right).max() < 1e-3 * np.abs(right).max()
    assert np.array_equal(encoder.encode(pixels[1:2])[0], got[1])


def test_images_by_their_bytes() -> None:
    encoder = image_encoder(SEE)
    vectors = encoder.encode_bytes([png((200, 0, 0)), png((0, 0, 200)), png((200, 0, 0), 80)])
    assert np.allclose(vectors[0], vectors[2], atol=1e-4)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-2)
    assert encoder.encode_bytes([]).shape == (0, 1280)
    with pytest.raises(BadImage):
        encoder.encode_bytes([b"no"])


def test_text_vectors_are_the_networks() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    encoder = text_encoder(READ)
    texts = ["a red apple", "winter", "", "an old car that drives along a road of " + "very " * 200 + "long words"]
    got = encoder.encode(texts)
    assert got.shape == (4, encoder.dim) == (4, 384)
    assert np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        folder = packaged._minilm_file(name).parent
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    right = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    assert np.abs(got - right).max() < 1e-4


def test_texts_keep_their_order() -> None:
    encoder = text_encoder(READ)
    texts = [f"picture {n} of {'a very ' * (n % 7)} big tree" for n in range(70)]
    assert np.allclose(encoder.encode(texts)[41], encoder.encode([texts[41]])[0], atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)


def test_a_query_takes_milliseconds() -> None:
    encoder = text_encoder(READ)
    encoder.encode(["warm"])
    spent = []
    for turn in range(15):
        started = time.process_time()
        encoder.encode([f"a winter mountain with {turn} trees"])
        spent.append(time.process_time() - started)
    assert np.median(spent) < 0.02


def test_a_worker_needs_no_torch() -> None:
    code = f"""
import sys, time
from pinhole.vision.encoders import image_encoder, text_encoder
import numpy as np
image_encoder({SEE!r}).encode(np.zeros((1, 224, 224, 3), np.uint8)); text_encoder({READ!r}).encode(["a"])
assert "torch" not in sys.modules and "transformers" not in sys.modules and "lancedb" not in sys.modules
"""
    image_encoder(SEE), text_encoder(READ)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_identities_are_stable_and_differ() -> None:
    assert image_encoder(SEE).identity == image_encoder(SEE).identity != text_encoder(READ).identity
    assert len(image_encoder(SEE).identity) == 16


@pytest.mark.parametrize("spec", ["", "efficientnet-lite0", "pypi:", "nowhere:x", "pypi:resnet"])
def test_unknown(spec: str) -> None:
    with pytest.raises(UnknownName) as error:
        image_encoder(spec)
    assert "pypi:" in error.value.fix
    with pytest.raises(UnknownName):
        text_encoder(spec)


@pytest.mark.parametrize("spec", ["timm:resnet18", "open_clip:ViT-B-32/openai"])
def test_optional_families_say_what_to_install(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, spec.partition(":")[0], None)
    with pytest.raises(MissingDependency, match="pip install"):
        image_encoder(spec)


def test_another_package_adds_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "TEXT", dict(encoders.TEXT))
    encoders.register(
        "length", text=lambda name: TextEncoder(f"length:{name}", "0" * 16, 2, lambda texts: np.array([[len(text), 1] for text in texts]))
    )
    assert np.allclose(text_encoder("length:x").encode(["", "aaaa"])[0], [0, 1])
