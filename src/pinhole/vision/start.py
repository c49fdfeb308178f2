"""Where the training of a space begins: principal directions of the pictures, texts by regression onto them.

Random heads fall below the untuned vectors on small catalogues; these start at what the encoders and a
closed-form regression know. Knows nothing of contrast or of steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pinhole.config import AlignConfig
from pinhole.vision.align import Space, unit
from pinhole.vision.features import EncoderName, Features, taken
from pinhole.vision.signals import Signals

SAMPLE = 20_000  # training rows that statistics are taken from
PIECE = 2048  # rows that are computed with at once
DIRECTIONS = 384  # principal directions of the pictures that training sees, at most
RIDGE = 3.0
QUERY_ITEMS = 50  # items of a query that its mean picture is made of, at most


@dataclass(frozen=True)
class Start:
    """First weights of the heads, and the fixed maps in front of the item head."""

    image_encoder: EncoderName
    text_encoder: EncoderName
    nested: tuple[int, ...]
    mean: np.ndarray
    """(image dim,) of the training pictures, as the encoder gave them."""
    deviation: np.ndarray
    """(image dim,)."""
    directions: np.ndarray
    """(r, image dim): principal directions of the standardised pictures, the largest first, damped."""
    shift: np.ndarray
    """(image dim,): the mean of the standardised pictures."""
    heads: dict[str, np.ndarray]
    """``image.weight`` (dim, r), ``text.weight``, ``query.weight`` (dim, text dim), and biases."""

    def space(self, heads: dict[str, np.ndarray]) -> Space:
        """Heads with the maps in front of them folded in."""
        weight = heads["image.weight"] @ self.directions  # (dim, image dim)
        folded = {"image.weight": weight, "image.bias": heads["image.bias"] - weight @ self.shift}
        return Space(
            {**heads, **folded, "picture.mean": self.mean, "picture.deviation": self.deviation}, self.image_encoder, self.text_encoder, self.nested
        )

    def reduced(self, features: Features, rows: int = PIECE) -> np.ndarray:
        """(n, r) float16: what the item head sees of every picture."""
        space = self.space(self.heads)
        out = np.empty((len(features), len(self.directions)), np.float16)  # of length about 1
        for begin in range(0, len(features), rows):
            piece = taken(features.image, np.arange(begin, min(begin + rows, len(features))))
            out[begin : begin + rows] = (space.picture(piece) - self.shift) @ self.directions.T
        return out


def find_start(features: Features, signals: Signals, asked: np.ndarray, config: AlignConfig) -> Start:
    """From the training part ``signals`` with ``asked[i]`` the vector of its query i."""
    d_image, d_text, dim = features.image_encoder.dim, features.text_encoder.dim, config.dim
    rows = signals.items[features.has_image[signals.items]]
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng([config.seed, 0]).choice(rows, SAMPLE, replace=False))
    pictures, mean, deviation = standardised(taken(features.image, rows) if len(rows) else np.zeros((1, d_image), np.float32))
    nested = (*(width for width in config.nested if width < dim), dim)
    heads: dict[str, np.ndarray] = {f"{head}.weight": np.zeros((dim, d_text), np.float32) for head in ("text", "query")}
    heads |= {f"{head}.bias": np.zeros(dim, np.float32) for head in ("image", "text", "query")}
    directions, shift = principal(pictures, max(dim, min(DIRECTIONS, d_image)))
    del pictures  # the largest thing in memory, and there is more to come
    heads["image.weight"] = np.eye(dim, len(directions), dtype=np.float32)
    start = Start(features.image_encoder, features.text_encoder, nested, mean, deviation, directions, shift, heads)

    texts, targets, shares = _evidence(features, signals, asked, start.space(heads), rows)
    if len(texts):
        for head in ("text", "query"):
            heads[f"{head}.weight"], heads[f"{head}.bias"] = ridge(texts, targets, shares, RIDGE)
    return start


def standardised(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, width) as the encoder gave them, overwritten by the frozen block of a space that has their mean and deviation (width,): all three."""
    pieces = [slice(begin, begin + PIECE) for begin in range(0, len(raw), PIECE)]
    mean = raw.mean(0)
    squares = sum((np.square(raw[piece] - mean, dtype=np.float64).sum(0) for piece in pieces), start=np.zeros(raw.shape[1]))
    whole = sum(float(np.square(raw[piece] - mean.mean(), dtype=np.float64).sum()) for piece in pieces)
    deviation = (np.sqrt(squares / len(raw)) + 1e-3 * (np.sqrt(whole / raw.size) + 1e-6)).astype(np.float32)
    for piece in pieces:
        raw[piece] = unit((raw[piece] - mean) / deviation)
    return raw, mean, deviation


def principal(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """((count, width), (width,)): directions divided by their deviation plus the largest one, and the mean.

    Damped whitening: small directions are raised, noise is not. Scaled so that what they give has mean length 1.
    """
    mean = vectors.mean(0)

    def centred() -> Iterator[np.ndarray]:  # a piece at a time: whole, in float64, they would be the largest thing in memory
        return ((vectors[begin : begin + PIECE] - mean).astype(np.float64) for begin in range(0, len(vectors), PIECE))

    values, found = np.linalg.eigh(sum(piece.T @ piece for piece in centred()) / len(vectors))
    count = min(count, len(values))
    deviation = np.sqrt(np.maximum(values[::-1][:count], 0))
    chosen = found[:, ::-1][:, :count].T / (deviation + deviation[0] + 1e-9)[:, None]
    size = max(float(np.concatenate([np.linalg.norm(piece @ chosen.T, axis=1) for piece in centred()]).mean()), 1e-9)
    return (chosen / size).astype(np.float32), mean.astype(np.float32)


def ridge(inputs: np.ndarray, targets: np.ndarray, shares: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weighted ridge regression: (dim, width) and (dim,), scaled so that outputs have mean length 1."""
    mean, middle = (np.average(values, axis=0, weights=shares) for values in (inputs, targets))
    matrix, cross = strength * np.eye(inputs.shape[1]), np.zeros((inputs.shape[1], targets.shape[1]))
    pieces = [slice(begin, begin + PIECE) for begin in range(0, len(inputs), PIECE)]
    for piece in pieces:
        left = (inputs[piece] - mean).astype(np.float64) * shares[piece, None]
        matrix += left.T @ (inputs[piece] - mean)
        cross += left.T @ (targets[piece] - middle)
    solved = np.linalg.solve(matrix, cross).T
    solved /= max(float(np.concatenate([np.linalg.norm((inputs[piece] - mean) @ solved.T, axis=1) for piece in pieces]).mean()), 1e-9)
    return solved.astype(np.float32), (-solved @ mean).astype(np.float32)


def _evidence(features: Features, signals: Signals, asked: np.ndarray, space: Space, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts, the mean picture of each in the space, and how much each counts: titles, then queries."""

    def seen(chosen: np.ndarray) -> np.ndarray:
        out = np.empty((len(chosen), space.dim), np.float32)
        for begin in range(0, len(chosen), PIECE):
            piece = space.picture(taken(features.image, chosen[begin : begin + PIECE]))
            out[begin : begin + PIECE] = piece @ space.weights["image.weight"].T + space.weights["image.bias"]
        return out

    titled = rows[features.has_text[rows]]
    texts, targets, shares = [taken(features.text, titled)], [seen(titled)], [np.ones(len(titled), np.float32)]
    for vector, query in zip(asked, signals.queries, strict=True):
        found = query.rows[features.has_image[query.rows]][:QUERY_ITEMS]
        if len(found):
            texts.append(vector[None])
            targets.append(seen(found).mean(0, keepdims=True))
            shares.append(np.sqrt([min(len(found), 20)]).astype(np.float32))
    return np.concatenate(texts), np.concatenate(targets), np.concatenate(shares)
