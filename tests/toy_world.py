"""A small world of pictures whose vectors say what they show, for tests of lessons, training and exams."""

from __future__ import annotations

from typing import Any

import numpy as np

from toy_model import DIM, SPACE

KINDS = ("animals", "food", "tools")
NAMES = ("dog", "cat", "owl", "lemon", "cake", "soup", "saw", "drill", "nail")


def tiny_world(n: int = 240, seed: int = 0) -> Any:
    """``n`` pictures of nine things in three categories, a fifth of them held out, and a board a thing."""
    from pinhole.graft.world import Board, Picture, World

    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((len(NAMES), DIM)).astype(np.float32) * 2
    pictures, vectors = [], np.zeros((n, DIM), np.float32)
    for i in range(n):
        thing = i % len(NAMES)
        held = (i // len(NAMES)) % 5 == 0
        title = f"{'red' if i % 2 else 'old'} {NAMES[thing]}"
        pictures.append(Picture(f"item/{i}", title, KINDS[thing // 3], (NAMES[thing],), (title, NAMES[thing]), held))
        vectors[i] = centres[thing] + rng.standard_normal(DIM) * 0.3
    boards = [Board(f"board/{name}", name, tuple(range(thing, n, len(NAMES))), thing == 8, KINDS[thing // 3]) for thing, name in enumerate(NAMES)]
    return World(pictures, boards, vectors, SPACE)
