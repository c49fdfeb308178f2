"""A picture's grid of cells: pooled to a few, kept in eight bits beside its vector.

An encoder looks at patches and pools them into one vector. Where an item is to stand in a prompt as several soft
tokens, the patches are kept too, pooled to a coarse grid; eight bits a number, and one scale a cell, are enough. Knows
nothing of encoders, of files or of soft tokens.
"""

from __future__ import annotations

import math

import numpy as np


def pool(cells: np.ndarray, edge: int) -> np.ndarray:
    """(n, from, from, dim) float32 to (n, edge · edge, dim), row by row: the mean of the cells that each new one overlaps.

    As torch's adaptive average pooling does: where ``edge`` does not divide, neighbours share cells.
    """
    n, old, _, dim = cells.shape
    share = _shares(old, edge)
    return np.einsum("ya,xb,nabd->nyxd", share, share, cells, optimize=True).reshape(n, edge * edge, dim).astype(np.float32)


def _shares(old: int, new: int) -> np.ndarray:
    """(new, old): by what share each old row or column counts in a new one."""
    shares = np.zeros((new, old), np.float32)
    for i in range(new):
        start, stop = i * old // new, -(-(i + 1) * old // new)
        shares[i, start:stop] = 1 / (stop - start)
    return shares


def apart(cells: np.ndarray, edge: int) -> np.ndarray:
    """(n, old · old, dim) to (n, edge · edge, dim), pooled where that is fewer, as they differ from the mean cell of their picture."""
    old = math.isqrt(cells.shape[1])
    cells = cells if old == edge else pool(cells.reshape(len(cells), old, old, -1), edge)
    return np.asarray(cells - cells.mean(1, keepdims=True))


def quantise(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, cells, dim) float32 to int8 of the same shape, and the (n, cells) float32 scales to multiply with."""
    scale = np.abs(cells).max(-1, initial=0.0).astype(np.float32) / 127
    return np.rint(cells / np.maximum(scale, 1e-30)[..., None]).astype(np.int8), scale


def restore(cells: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The inverse of :func:`quantise`, as float32."""
    return cells.astype(np.float32) * scale[..., None]
