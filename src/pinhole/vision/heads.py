"""Training the two heads of a space: a start from PCA and ridge regression, then contrast.

    picture ── standardise ── linear ─┐
                                      ├─ + ── item  ─┐
    title ─────────────────── linear ─┘              ├─ cosine × scale ── InfoNCE
    query ─────────────────── linear ────── query ───┘

A random start falls below the untuned vectors on small catalogues; this one starts at what the
encoders and a regression know and moves from there. Everything random is drawn from (seed, step),
so a run that was killed and resumed ends with the weights of an undisturbed one. Knows nothing of
tables: rows, vectors and :class:`~pinhole.vision.signals.Signals` come in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pinhole.config import AlignConfig
from pinhole.vision.align import Space
from pinhole.vision.features import Features
from pinhole.vision.losses import drift, nested_contrast
from pinhole.vision.signals import Pairs, Sampler, Signals
from pinhole.workspace import digest, write_atomic

SAMPLE = 20_000  # training rows that statistics are taken from
RIDGE = 3.0  # per unit-length text
WARM_UP = 20
CHECKPOINT_STEPS = 50
SCALE = 12.0  # one over the first temperature
Progress = Callable[[int, int], None]
Point = dict[str, float]


@dataclass(frozen=True)
class Fitted:
    space: Space
    curve: list[Point]
    """One point a step: the loss of each signal."""


class Heads(nn.Module):
    """Three linear maps into the learned space and the logarithm of one over the temperature."""

    def __init__(self, image: int, text: int, dim: int) -> None:
        super().__init__()
        self.image, self.text, self.query = nn.Linear(image, dim), nn.Linear(text, dim), nn.Linear(text, dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))

    def item(self, picture: Tensor, has_picture: Tensor, text: Tensor, has_text: Tensor) -> Tensor:
        return self.image(picture) * has_picture[:, None] + self.text(text) * has_text[:, None]  # (batch, dim)


def fit(
    features: Features, signals: Signals, asked: np.ndarray, config: AlignConfig, *, folder: Path | None = None, progress: Progress | None = None
) -> Fitted:
    """Train on ``signals`` (a training part) with ``asked[i]`` (text dim) the vector of its query i.

    With a ``folder`` it checkpoints there and resumes from there.
    """
    start = _start(features, signals, asked, config)
    run = _Run(start, features, signals, asked, config)
    kept = folder / "training.safetensors" if folder else None
    if kept is not None and kept.exists():
        run.resume(kept)
    while run.step < config.steps:
        run.advance()
        if kept is not None and run.step % CHECKPOINT_STEPS == 0:
            run.keep(kept)
        if progress is not None:
            progress(run.step, config.steps)
    return Fitted(run.space(), run.curve)


# -- the start ----------------------------------------------------------------------------------


def _start(features: Features, signals: Signals, asked: np.ndarray, config: AlignConfig) -> Space:
    """Pictures by their principal directions, damped whitening; texts by ridge regression towards their pictures."""
    draw = np.random.default_rng([config.seed, 0])
    rows = signals.items[features.has_image[signals.items]]
    rows = np.sort(draw.choice(rows, min(SAMPLE, len(rows)), replace=False)) if len(rows) else rows
    d_image, d_text, dim = features.image_encoder.dim, features.text_encoder.dim, config.dim
    raw = features.image[rows] if len(rows) else np.zeros((1, d_image), np.float32)
    mean, deviation = raw.mean(0), raw.std(0) + 1e-3 * (raw.std() + 1e-6)
    weights = {"picture.mean": mean, "picture.deviation": deviation}
    for head, width in (("image", d_image), ("text", d_text), ("query", d_text)):
        weights |= {f"{head}.weight": np.zeros((dim, width), np.float32), f"{head}.bias": np.zeros(dim, np.float32)}
    space = Space(weights, features.image_encoder, features.text_encoder, tuple(width for width in config.nested if width < dim) + (dim,))

    pictures = space.picture(raw)
    directions, shift = _principal(pictures, dim)
    space.weights["image.weight"], space.weights["image.bias"] = directions, -directions @ shift
    texts, targets, shares = _regression(features, signals, asked, space, set(rows.tolist()))
    if len(texts):
        matrix, bias = _ridge(texts, targets, shares, RIDGE)
        for head in ("text", "query"):
            space.weights[f"{head}.weight"], space.weights[f"{head}.bias"] = matrix, bias
    return space


def _principal(vectors: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """((dim, width) directions, largest first, each divided by its deviation plus the largest one; mean)."""
    mean = vectors.mean(0)
    values, directions = np.linalg.eigh(np.cov(vectors - mean, rowvar=False).astype(np.float64).reshape(vectors.shape[1], -1))
    deviation = np.sqrt(np.maximum(values[::-1][:dim], 0))
    chosen = directions[:, ::-1][:, :dim].T / (deviation + deviation[0] + 1e-9)[:, None]  # (≤ dim, width)
    chosen = np.concatenate([chosen, np.zeros((dim - len(chosen), vectors.shape[1]))])
    size = np.linalg.norm((vectors - mean) @ chosen.T, axis=1).mean()
    return (chosen / max(size, 1e-9)).astype(np.float32), mean


def _regression(features: Features, signals: Signals, asked: np.ndarray, space: Space, rows: set[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts, the mean picture of each in the space, and how much each counts: titles, then queries."""

    def seen(chosen: np.ndarray) -> np.ndarray:
        return space.picture(features.image[chosen]) @ space.weights["image.weight"].T + space.weights["image.bias"]

    titled = np.array([row for row in signals.items[features.has_text[signals.items]] if row in rows], dtype=np.int64)
    texts, targets, shares = [features.text[titled]], [seen(titled)], [np.ones(len(titled), np.float32)]
    for vector, query in zip(asked, signals.queries, strict=True):
        found = query.rows[features.has_image[query.rows]][:50]
        if len(found):
            texts.append(vector[None])
            targets.append(seen(found).mean(0, keepdims=True))
            shares.append(np.sqrt([min(len(found), 20)]).astype(np.float32))
    return np.concatenate(texts), np.concatenate(targets), np.concatenate(shares)


def _ridge(inputs: np.ndarray, targets: np.ndarray, shares: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weighted ridge regression: (dim, width) and (dim,), scaled so that outputs have mean length 1."""
    mean_in, mean_out = np.average(inputs, axis=0, weights=shares), np.average(targets, axis=0, weights=shares)
    root = np.sqrt(shares)[:, None].astype(np.float64)
    left, right = (inputs - mean_in) * root, (targets - mean_out) * root
    matrix = np.linalg.solve(left.T @ left + strength * np.eye(inputs.shape[1]), left.T @ right).T
    size = max(float(np.linalg.norm((inputs - mean_in) @ matrix.T, axis=1).mean()), 1e-9)
    return (matrix / size).astype(np.float32), (-(matrix / size) @ mean_in).astype(np.float32)


# -- the training -------------------------------------------------------------------------------


class _Run:
    """Heads, optimiser and step of one training."""

    def __init__(self, start: Space, features: Features, signals: Signals, asked: np.ndarray, config: AlignConfig) -> None:
        self.start, self.features, self.config = start, features, config
        self.asked = np.asarray(asked, dtype=np.float32)
        self.sampler = Sampler(signals, features.has_text, features.has_image)
        self.heads = Heads(start.image_encoder.dim, start.text_encoder.dim, config.dim)
        self.heads.load_state_dict(
            {name: torch.from_numpy(start.weights[name].copy()) for name in start.weights if "picture" not in name}, strict=False
        )
        self.begin = [weight.detach().clone() for weight in self._matrices()]
        self.optimiser = torch.optim.AdamW(self.heads.parameters(), lr=config.learning_rate, weight_decay=0.0)
        self.mean = [weight.detach().clone() for weight in self.heads.parameters()]
        self.step, self.curve = 0, list[Point]()
        self.identity = digest(start.identity, config.model_dump(mode="json"), hash_of(signals))

    def _matrices(self) -> list[Tensor]:
        return [self.heads.image.weight, self.heads.text.weight, self.heads.query.weight]

    def advance(self) -> None:
        """One step of AdamW on the three signals, with the learning rate warmed up and then cooled by a cosine."""
        config, draw = self.config, np.random.default_rng([self.config.seed, 1, self.step])
        cooled = 0.5 + 0.5 * math.cos(math.pi * self.step / config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (self.step + 1) / WARM_UP) * cooled
        losses = self._losses(draw)
        total = sum((weight * loss for weight, loss in losses.values()), start=torch.zeros(()))
        if config.drift:
            total = total + config.drift * drift(self._matrices(), self.begin)
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        self.step += 1
        with torch.no_grad():
            for mean, weight in zip(self.mean, self.heads.parameters(), strict=True):
                mean.lerp_(weight, 1 - config.averaging)
        self.curve.append({"step": self.step, "loss": float(total.detach()), **{name: float(loss.detach()) for name, (_, loss) in losses.items()}})

    def _losses(self, draw: np.random.Generator) -> dict[str, tuple[float, Tensor]]:
        config, sampler, found = self.config, self.sampler, dict[str, tuple[float, Tensor]]()
        if config.weight_title and (pairs := sampler.titles(draw, config.batch)):
            found["title"] = (
                config.weight_title,
                self._contrast(self._query(self.features.text[pairs.left], draw), self._item(pairs.right, draw, 0.0), pairs),
            )
        if config.weight_board and (pairs := sampler.mates(draw, config.batch)):
            text = config.title_share
            found["board"] = config.weight_board, self._contrast(self._item(pairs.left, draw, text), self._item(pairs.right, draw, text), pairs)
        if config.weight_query and (pairs := sampler.asked(draw, config.batch)):
            found["query"] = (
                config.weight_query,
                self._contrast(self._query(self.asked[pairs.left], draw), self._item(pairs.right, draw, config.title_share), pairs),
            )
        return found

    def _contrast(self, left: Tensor, right: Tensor, pairs: Pairs) -> Tensor:
        scale = self.heads.log_scale.exp().clamp(max=100.0)
        return nested_contrast(left, right, scale, torch.from_numpy(pairs.alike), self.start.nested)

    def _item(self, rows: np.ndarray, draw: np.random.Generator, title_share: float) -> Tensor:
        """Items with their pictures; their titles beside them for ``title_share`` of the items, instead of them for a tenth of those."""
        has_image, has_text = self.features.has_image[rows], self.features.has_text[rows] & (draw.random(len(rows)) < title_share)
        has_text |= ~has_image
        has_image = has_image & ~(has_text & (draw.random(len(rows)) < 0.1))
        picture = self._dropped(self.start.picture(self.features.image[rows]), draw)
        text = self._dropped(np.asarray(self.features.text[rows]), draw)
        return self.heads.item(picture, torch.from_numpy(has_image), text, torch.from_numpy(has_text))

    def _query(self, texts: np.ndarray, draw: np.random.Generator) -> Tensor:
        return self.heads.query(self._dropped(np.asarray(texts), draw))

    def _dropped(self, vectors: np.ndarray, draw: np.random.Generator) -> Tensor:
        kept = draw.random(vectors.shape, dtype=np.float32) >= self.config.dropout
        return torch.from_numpy(np.where(kept, vectors / np.float32(1 - self.config.dropout), np.float32(0)))

    # -- what is kept ---------------------------------------------------------------------------

    def space(self) -> Space:
        """The running mean of the weights (Polyak averaging) as a space."""
        names = [name for name, _ in self.heads.named_parameters()]
        weights = dict(self.start.weights) | {name: mean.numpy() for name, mean in zip(names, self.mean, strict=True) if name != "log_scale"}
        return Space(weights, self.start.image_encoder, self.start.text_encoder, self.start.nested)

    def keep(self, path: Path) -> None:
        """Weights, their mean, the optimiser's moments, the step and the curve: one file, one rename."""
        from safetensors.torch import save

        state = self.optimiser.state_dict()["state"]
        tensors = {f"moment.{number}.{name}": value for number, moments in state.items() for name, value in moments.items()}
        tensors |= {f"heads.{name}": value.contiguous() for name, value in self.heads.state_dict().items()}
        tensors |= {f"mean.{number}": value for number, value in enumerate(self.mean)}
        meta = {"identity": self.identity, "step": str(self.step), "curve": json.dumps(self.curve)}
        write_atomic(path, save(tensors, metadata=meta))

    def resume(self, path: Path) -> None:
        """Go on from a file of :meth:`keep`; one of another training is passed over."""
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata()
            if meta.get("identity") != self.identity:
                return
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.heads.load_state_dict({name.removeprefix("heads."): value for name, value in tensors.items() if name.startswith("heads.")})
        self.mean = [tensors[f"mean.{number}"] for number in range(len(self.mean))]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("moment."):
                _, number, moment = name.split(".", 2)
                state.setdefault(int(number), {})[moment] = value
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.step, self.curve = int(meta["step"]), json.loads(meta["curve"])


def hash_of(signals: Signals) -> str:
    """What tells one training part from another."""
    groups = [[group.key, group.rows.tolist()] for group in (*signals.boards, *signals.queries)]
    return digest(signals.items.tolist(), groups)
