"""The student: a small feed-forward net from a query and an item to the grade that the teacher would give, and to whether the log leads there.

    cosines of three blocks, raw and standardised ─┐
    full text, has a picture, has a title ─────────┤
    popularity, declared features ─────────────────┼─ standardise ── linear ── ReLU ── linear ── sigmoid × 4
    learned vectors, number by number ─────────────┘          └─ the same: × 4 if the query led to the item

Trained in torch, applied in numpy. What it reads of a pair is made by :func:`inputs` alone, in training and in serving. Distilled as in
Hinton et al. 2015: it learns the teacher's whole grade, not its nearest level. Two tasks share the hidden layer (Caruana 1997), because a
teacher who reads titles and people who look at pictures do not agree: how much each counts is for others to say. Knows nothing of who taught
it or of where the pairs are from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.config import RankerConfig
from pinhole.errors import Corrupt, MissingArtefact, SpaceMismatch
from pinhole.retrieval.scores import COLUMNS, Block, Scorer, Side
from pinhole.retrieval.teacher import BEST
from pinhole.workspace import read_json, write_atomic, write_json

LAYOUT = 2
FEW = 2 * len(COLUMNS) + 3  # inputs that are neither of the item alone nor products
FARTHEST = 5.0  # deviations from the mean, beyond which an input says no more
Progress = Callable[[int, int], None]


def inputs(scorer: Scorer, cohort: Block, side: Side, rows: np.ndarray, words: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(rows, width) float32 of one query (``side``) and ``rows``. ``words`` (rows,) is full text's score, ``values`` (rows, …) are the items' own."""
    block = scorer.block(rows)
    standard = scorer.standardised(side, block, cohort)[:, 0]  # (columns, rows)
    raw = np.stack([scorer.scores(side, block, column)[0] * block.has(column) for column in COLUMNS])
    few = np.stack([*standard, *raw, words, block.has_image, block.has_text], axis=1)  # (rows, FEW)
    return np.concatenate([few, values, side.learned[0] * block.learned], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Student:
    """``student(inputs)`` are opinions. Weights are float32 arrays; ``space`` is the identity of the embedding space they were learned in."""

    weights: dict[str, np.ndarray]
    space: str
    features: tuple[str, ...]
    """Names of the declared features that it reads, with their expressions, in order."""

    def __call__(self, read: np.ndarray) -> np.ndarray:
        """(n, width) of :func:`inputs` to (n, 2) in [0, 4]: the teacher's grade, and how likely the log leads there."""
        w = self.weights
        x = np.clip((read - w["mean"]) / w["deviation"], -FARTHEST, FARTHEST)  # (n, width)
        hidden = np.maximum(x @ w["hidden.weight"].T + w["hidden.bias"], 0)  # (n, hidden)
        logits = hidden @ w["out.weight"].T + w["out.bias"]
        return np.asarray(BEST / (1 + np.exp(-logits.astype(np.float64))))

    def check(self, space: str, features: tuple[str, ...], where: str) -> None:
        """Raises :class:`SpaceMismatch` where it was trained in another space, or on other features."""
        if space != self.space:
            raise SpaceMismatch(f"the ranker reads space {self.space}, the index is of {space}", where=where, fix="run `pinhole build ranker`")
        if features != self.features:
            what = f"the ranker was trained on the features {list(self.features)}, [[ranker.features]] are {list(features)}"
            raise SpaceMismatch(what, where=where, fix="run `pinhole build ranker`")

    def save(self, folder: Path) -> None:
        """``student.safetensors``, then ``student.json``, which says that the first is whole."""
        from safetensors.numpy import save

        write_atomic(folder / "student.safetensors", save(self.weights))
        write_json(folder / "student.json", {"layout": LAYOUT, "space": self.space, "features": list(self.features)})

    @classmethod
    def load(cls, folder: Path) -> Student:
        """Raises :class:`MissingArtefact`, :class:`Corrupt`."""
        from safetensors.numpy import load

        if not (folder / "student.json").exists():
            raise MissingArtefact("no ranker", where=str(folder), fix="run `pinhole build ranker`")
        meta = read_json(folder / "student.json")
        fix = "delete the folder and run `pinhole build ranker`"
        if meta.get("layout") != LAYOUT:
            raise Corrupt(f"a ranker of layout {meta.get('layout')}, not {LAYOUT}", where=str(folder), fix=fix)
        try:
            weights = load((folder / "student.safetensors").read_bytes())
            _check_shapes(weights)
        except Exception as error:
            raise Corrupt(f"cannot be read: {error}", where=str(folder / "student.safetensors"), fix=fix) from None
        return cls(weights, meta["space"], tuple(meta["features"]))


def _check_shapes(weights: dict[str, np.ndarray]) -> None:
    hidden, width = weights["hidden.weight"].shape
    wanted = {"mean": (width,), "deviation": (width,), "hidden.bias": (hidden,), "out.weight": (2, hidden), "out.bias": (2,)}
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise ValueError(f"`{name}` of shape {weights[name].shape}, not {shape}")


def distil(
    read: np.ndarray,
    grades: np.ndarray,
    led: np.ndarray,
    config: RankerConfig,
    space: str,
    features: tuple[str, ...],
    progress: Progress | None = None,
) -> Student:
    """Train on (n, width) inputs, the teacher's (n,) grades in [0, 4] and (n,) whether the query ``led`` to the item, on one thread.

    The same seed gives the same weights.
    """
    import torch
    from torch import nn

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        draw = torch.Generator().manual_seed(config.seed)
        mean, deviation = read.mean(0, dtype=np.float64).astype(np.float32), read.std(0, dtype=np.float64).astype(np.float32)
        deviation = np.where(deviation > 1e-6, deviation, 1).astype(np.float32)
        x = torch.from_numpy(np.clip((read - mean) / deviation, -FARTHEST, FARTHEST))
        y = torch.from_numpy(np.stack([grades / BEST, led], axis=1).astype(np.float32))
        weights = _start(x.shape[1], config.hidden, draw)
        decayed, plain = [weights["hidden.weight"], weights["out.weight"]], [weights["hidden.bias"], weights["out.bias"]]
        groups = [{"params": decayed, "weight_decay": config.decay}, {"params": plain, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=config.learning_rate)
        steps, step = config.epochs * math.ceil(len(x) / config.batch), 0
        for _ in range(config.epochs):
            for some in torch.randperm(len(x), generator=draw).split(config.batch):
                for group in optimiser.param_groups:
                    group["lr"] = config.learning_rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))
                hidden = nn.functional.relu(nn.functional.linear(x[some], weights["hidden.weight"], weights["hidden.bias"]))
                logits = nn.functional.linear(hidden, weights["out.weight"], weights["out.bias"])
                optimiser.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(logits, y[some]).backward()
                optimiser.step()
                step += 1
            if progress is not None:
                progress(step, steps)
    finally:
        torch.set_num_threads(threads)
    learned = {name: weight.detach().numpy().copy() for name, weight in weights.items()}
    return Student({"mean": mean, "deviation": deviation, **learned}, space, features)


def _start(width: int, hidden: int, draw: Any) -> dict[str, Any]:
    import torch

    shapes = {"hidden.weight": (hidden, width), "out.weight": (2, hidden)}
    weights = {name: (torch.randn(shape, generator=draw) / math.sqrt(shape[1])).requires_grad_() for name, shape in shapes.items()}
    return weights | {"hidden.bias": torch.zeros(hidden, requires_grad=True), "out.bias": torch.zeros(2, requires_grad=True)}
