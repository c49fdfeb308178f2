"""The grid of cells: pooled as torch pools, kept in eight bits, stored beside the vector and copied like it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pinhole.errors import ConfigError
from pinhole.vision import grid as module
from pinhole.vision.encoders import image_encoder
from pinhole.vision.encoders.base import ImageEncoder
from pinhole.vision.features import Features
from pinhole.vision.images import Recipe
from pinhole.vision.precompute import precompute
from test_vision import tiny
from test_vision.test_huggingface import pictures, png

Specs = tuple[str, str]


@given(old=st.integers(1, 9), new=st.integers(1, 9), seed=st.integers(0, 99))
def test_pooling_is_torchs(old: int, new: int, seed: int) -> None:
    cells = np.random.default_rng(seed).standard_normal((2, old, old, 3)).astype(np.float32)
    right = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(cells).permute(0, 3, 1, 2), new).permute(0, 2, 3, 1)
    assert np.allclose(module.pool(cells, new), right.numpy().reshape(2, new * new, 3), atol=1e-5)


def test_eight_bits_are_near_enough() -> None:
    cells = np.random.default_rng(0).standard_normal((4, 9, 64)).astype(np.float32) * np.array([1e-6, 1, 50, 0], np.float32)[:, None, None]
    small, scale = module.quantise(cells)
    back = module.restore(small, scale)
    assert (small.dtype, scale.shape) == (np.int8, (4, 9))
    assert np.all(np.abs(back - cells) <= 0.51 * scale[..., None])
    assert not back[3].any()


@pytest.mark.parametrize(
    "make", [tiny.clip, tiny.siglip, tiny.siglip2, tiny.dinov2, tiny.dinov3, tiny.vit, tiny.convnext], ids=lambda make: make.__name__
)
def test_cells_are_the_networks_patches(make: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random vectors stand before the patches, or none; which cell is which shows where only one corner of a picture changes."""
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    make(tmp_path / "model")
    encoder = image_encoder(f"hf:{tmp_path / 'model'}")
    pixels = np.stack([encoder.decode(png(image)) for image in pictures(3)])
    edge = encoder.grid(1).edge
    vectors, cells = encoder.encode_grid(pixels, edge)
    assert np.allclose(vectors, encoder.encode(pixels), atol=1e-3 * np.abs(vectors).max())
    assert cells.shape == (3, edge * edge, encoder.grid(1).dim)
    whole = encoder.encode_grid(pixels, 1)[1]
    assert np.allclose(whole[:, 0], cells.mean(1), atol=1e-4)
    if edge > 1 and make is not tiny.convnext:
        corner = pixels.copy()
        corner[:, -2:, -2:] = 255 - corner[:, -2:, -2:]
        moved = np.abs(encoder.encode_grid(corner, edge)[1] - cells).sum(-1)  # (3, cells)
        assert (moved.argmax(1) == edge * edge - 1).all()


def test_the_packaged_encoder_pools_its_cells() -> None:
    encoder = image_encoder("pypi:efficientnet-lite0")
    pixels = np.stack([encoder.decode(png(image)) for image in pictures(2)])
    vectors, cells = encoder.encode_grid(pixels, 7)
    assert cells.shape == (2, 49, 1280)
    assert np.allclose(cells.mean(1), vectors, atol=1e-4)
    assert np.allclose(vectors, encoder.encode(pixels), atol=1e-4)


def test_kept_copied_and_made_again(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    catalogue = make_catalogue(20, blobs=True)
    plain = precompute(catalogue, *tiny_encoders, tmp_path / "plain", workers=1)
    first = precompute(catalogue, *tiny_encoders, tmp_path / "one", tmp_path / "plain", workers=2, grid=2)
    assert (first.reused, first.forwarded) == (0, plain.forwarded)  # a vector alone does not tell its cells
    features, see = Features.load(tmp_path / "one"), image_encoder(tiny_encoders[0])
    assert (features.grid, features.cell_dim) == (2, see.grid(2).dim)
    row = features.row("item0004")
    right = see.encode_grid(see.decode(catalogue.image("item0004"))[None], 2)[1][0]
    assert np.abs(features.cells([row])[0] - right).max() <= np.abs(right).max() / 127
    assert not features.cells([features.row("x-none"), features.row("x-broken")]).any()
    assert np.allclose(features.image, Features.load(tmp_path / "plain").image, atol=1e-4)

    again = precompute(catalogue, *tiny_encoders, tmp_path / "two", tmp_path / "one", workers=1, grid=2)
    assert (again.forwarded, again.texts_forwarded) == (0, 0)
    for name in ("image.npy", "cells.npy", "scale.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert precompute(catalogue, *tiny_encoders, tmp_path / "three", tmp_path / "two", workers=1, grid=4).forwarded == plain.forwarded
    back = precompute(catalogue, *tiny_encoders, tmp_path / "three", workers=1)
    assert (back.forwarded, (tmp_path / "three" / "cells.npy").exists()) == (0, False)


def test_a_grid_that_cannot_be_had(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 4 × 4 patches, grid = 9 asks for 9 × 9"):
        precompute(make_catalogue(3), *tiny_encoders, tmp_path / "out", workers=1, grid=9)
    blind = ImageEncoder("mine:x", "0" * 16, Recipe(8), 4, lambda pixels: np.zeros((len(pixels), 4), np.float32))
    with pytest.raises(ConfigError, match="`mine:x` gives no patches"):
        blind.grid(2)
