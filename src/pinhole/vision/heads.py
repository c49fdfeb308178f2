"""Training the two heads of a space: a start from PCA and ridge regression, then contrast.

    picture ── standardise ── principal directions ── linear ─┐
                                                              ├─ + ── item  ─┐
    title ─────────────────────────────────────────── linear ─┘              ├─ cosine × scale ── InfoNCE
    query ─────────────────────────────────────────── linear ────── query ───┘

All three linear maps become one matrix each when training is over (:class:`~pinhole.vision.align.Space`).
Everything random is drawn from (seed, step),
so a run that was killed and resumed ends with the weights of an undisturbed one. Knows nothing of
tables: rows, vectors and :class:`~pinhole.vision.signals.Signals` come in.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinhole.config import AlignConfig
from pinhole.vision.align import Space, Watch
from pinhole.vision.features import Features, taken
from pinhole.vision.losses import LOSSES, Batch, drift, nested
from pinhole.vision.sampler import Pairs, Sampler
from pinhole.vision.signals import Group, Signals
from pinhole.vision.start import Start, find_start
from pinhole.workspace import digest, write_atomic

WARM_UP = 20
CHECKPOINT_STEPS = 50  # a resumed run mines where an undisturbed one does
SCALE = 12.0  # one over the first temperature
MINED_AMONG = 20_000  # items that hard negatives are mined among, at most, drawn anew each time
HARDEST = 64  # nearest of them to a left side, of which one is taken
Progress = Callable[[int, int], None]
Point = dict[str, float]


@dataclass(frozen=True)
class Fitted:
    space: Space
    curve: list[Point]
    """One point a step: the loss of each signal."""
    recalls: list[Point]
    """What was watched, every fifty steps from before the first."""


class Heads(nn.Module):
    """Three linear maps into the learned space, the logarithm of one over the temperature, and the bias of the sigmoid loss."""

    def __init__(self, image: int, text: int, dim: int) -> None:
        super().__init__()
        self.image, self.text, self.query = nn.Linear(image, dim), nn.Linear(text, dim), nn.Linear(text, dim)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(math.log(SCALE))), nn.Parameter(torch.tensor(-SCALE))

    def item(self, picture: Tensor, has_picture: Tensor, text: Tensor, has_text: Tensor) -> Tensor:
        return self.image(picture) * has_picture[:, None] + self.text(text) * has_text[:, None]  # (batch, dim)


def fit(
    features: Features,
    signals: Signals,
    asked: np.ndarray,
    config: AlignConfig,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
    threads: int = 1,
    watch: Watch | None = None,
) -> Fitted:
    """Train on ``signals`` (a training part) with ``asked[i]`` (text dim) the vector of its query i.

    With a ``folder`` it checkpoints there and resumes from there. A step is many small products: more ``threads`` gain
    little, and lose far more where another process is busy (`pinhole bench align` prints both). ``watch`` is
    called every fifty steps with the space as it is then.
    """
    run = _Run(find_start(features, signals, asked, config), features, signals, asked, config)
    kept = folder / "training.safetensors" if folder else None
    if kept is not None and kept.exists():
        run.resume(kept)
    with _computing_on(threads):
        run.look(watch)
        while run.step < config.steps:
            run.advance()
            if run.step % CHECKPOINT_STEPS == 0 or run.step == config.steps:
                run.look(watch)
            if kept is not None and run.step % CHECKPOINT_STEPS == 0:
                run.keep(kept)
            if progress is not None:
                progress(run.step, config.steps)
    return Fitted(run.space(), run.curve, run.recalls)


@contextlib.contextmanager
def _computing_on(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- the training -------------------------------------------------------------------------------


class _Run:
    """Heads, optimiser and step of one training. Pictures are reduced to their principal directions once, before it."""

    def __init__(self, start: Start, features: Features, signals: Signals, asked: np.ndarray, config: AlignConfig) -> None:
        self.start, self.features, self.config = start, features, config
        self.pictures = start.reduced(features)
        self.asked = np.asarray(asked, dtype=np.float32)
        self.items = signals.items
        self.sampler = Sampler(signals, features.has_text, features.has_image, signals.graph() if config.weight_walk else None)
        self.mined: tuple[np.ndarray, Tensor] | None = None
        self.heads = Heads(self.pictures.shape[1], features.text_encoder.dim, config.dim)
        self.heads.load_state_dict({name: torch.from_numpy(weight.copy()) for name, weight in start.heads.items()}, strict=False)
        self.begin = [weight.detach().clone() for weight in self._matrices()]
        self.optimiser = torch.optim.AdamW(self.heads.parameters(), lr=config.learning_rate, weight_decay=0.0)
        self.mean = [weight.detach().clone() for weight in self.heads.parameters()]
        self.step, self.curve, self.recalls = 0, list[Point](), list[Point]()
        self.identity = digest(start.space(start.heads).identity, config.model_dump(mode="json"), hash_of(signals))

    def _matrices(self) -> list[Tensor]:
        return [self.heads.image.weight, self.heads.text.weight, self.heads.query.weight]

    def advance(self) -> None:
        """One step of AdamW on all signals, with the learning rate warmed up and then cooled by a cosine."""
        config, draw = self.config, np.random.default_rng([self.config.seed, 1, self.step])
        cooled = 0.5 + 0.5 * math.cos(math.pi * self.step / config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (self.step + 1) / WARM_UP) * cooled
        if config.hard and (self.mined is None or self.step % CHECKPOINT_STEPS == 0):
            self.mined = self._mine()
        losses = self._losses(draw)
        total = sum((weight * loss for weight, loss in losses.values()), start=torch.zeros(()))
        if config.drift:
            total = total + config.drift * drift(self._matrices(), self.begin)
        self.optimiser.zero_grad()
        if total.requires_grad:  # else there is nothing to learn from: no titled picture, no board, no query
            total.backward()
            self.optimiser.step()
        self.step += 1
        with torch.no_grad():
            for mean, weight in zip(self.mean, self.heads.parameters(), strict=True):
                mean.lerp_(weight, 1 - config.averaging)
        self.curve.append({"step": self.step, "loss": float(total.detach()), **{name: float(loss.detach()) for name, (_, loss) in losses.items()}})

    def look(self, watch: Watch | None) -> None:
        """Measure, unless a run that is resumed has done it."""
        if watch is not None and (not self.recalls or self.recalls[-1]["step"] < self.step):
            self.recalls.append({"step": self.step, **watch(self.space())})

    def _losses(self, draw: np.random.Generator) -> dict[str, tuple[float, Tensor]]:
        config, sampler, found = self.config, self.sampler, dict[str, tuple[float, Tensor]]()
        text = config.title_share
        if config.weight_title and (pairs := sampler.titles(draw, config.batch)):
            left = self._query(taken(self.features.text, pairs.left), draw)
            found["title"] = config.weight_title, self._loss(left, self._item(pairs.right, draw, 0.0), pairs, draw, 0.0)
        for name, weight, sample in (("board", config.weight_board, sampler.mates), ("walk", config.weight_walk, sampler.walks)):
            if weight and (pairs := sample(draw, config.batch)):
                left = self._item(pairs.left, draw, text)
                found[name] = weight, self._loss(left, self._item(pairs.right, draw, text), pairs, draw, text)
        if config.weight_query and (pairs := sampler.asked(draw, config.batch)):
            left = self._query(self.asked[pairs.left], draw)
            found["query"] = config.weight_query, self._loss(left, self._item(pairs.right, draw, text), pairs, draw, text)
        return found

    def _loss(self, left: Tensor, right: Tensor, pairs: Pairs, draw: np.random.Generator, title_share: float) -> Tensor:
        config, scale = self.config, self.heads.log_scale.exp().clamp(max=100.0)
        rows = self._hard(left, draw) if config.hard else np.zeros(0, np.int64)
        often = None
        if config.popularity:
            lefts, rights = (config.popularity * (log - log.mean()) for log in pairs.often)
            often = torch.from_numpy(lefts).float(), torch.from_numpy(np.concatenate([rights, np.zeros(len(rows))])).float()
        hard = (self._item(rows, draw, title_share), torch.from_numpy(pairs.others(rows))) if len(rows) else (None, None)
        batch = Batch(torch.from_numpy(pairs.alike), often, *hard)
        return nested(LOSSES[config.loss], left, right, scale, self.heads.bias, batch, self.start.nested)

    def _mine(self) -> tuple[np.ndarray, Tensor]:
        """Items that hard negatives are taken from, and their vectors as they are now, with titles."""
        draw = np.random.default_rng([self.config.seed, 2, self.step])
        rows = self.items if len(self.items) <= MINED_AMONG else np.sort(draw.choice(self.items, MINED_AMONG, replace=False))
        features = self.features
        with torch.no_grad():
            vectors = self.heads.item(
                torch.from_numpy(self.pictures[rows].astype(np.float32)),
                torch.from_numpy(features.has_image[rows]),
                torch.from_numpy(taken(features.text, rows)),
                torch.from_numpy(features.has_text[rows]),
            )
            return rows, F.normalize(vectors, dim=1)

    def _hard(self, left: Tensor, draw: np.random.Generator) -> np.ndarray:
        """Rows near to some of ``left`` (b, dim): one of the nearest of each of ``[align] hard`` of them."""
        assert self.mined is not None
        rows, vectors = self.mined
        chosen = draw.permutation(len(left))[: self.config.hard]
        with torch.no_grad():
            near = torch.topk(left.detach()[chosen] @ vectors.T, min(HARDEST, len(rows)), dim=1).indices.numpy()
        return rows[near[np.arange(len(chosen)), draw.integers(0, near.shape[1], len(chosen))]]

    def _item(self, rows: np.ndarray, draw: np.random.Generator, title_share: float) -> Tensor:
        """Items with their pictures; their titles beside them for ``title_share`` of the items, instead of them for a tenth of those."""
        has_image, has_text = self.features.has_image[rows], self.features.has_text[rows] & (draw.random(len(rows)) < title_share)
        has_text |= ~has_image
        has_image = has_image & ~(has_text & (draw.random(len(rows)) < 0.1))
        picture = self._dropped(self.pictures[rows].astype(np.float32), draw)
        text = self._dropped(taken(self.features.text, rows), draw)
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
        return self.start.space({name: mean.numpy() for name, mean in zip(names, self.mean, strict=True) if name not in ("log_scale", "bias")})

    def keep(self, path: Path) -> None:
        """Weights, their mean, the optimiser's moments, the step and the curve: one file, one rename."""
        from safetensors.torch import save

        state = self.optimiser.state_dict()["state"]
        tensors = {f"moment.{number}.{name}": value for number, moments in state.items() for name, value in moments.items()}
        tensors |= {f"heads.{name}": value.contiguous() for name, value in self.heads.state_dict().items()}
        tensors |= {f"mean.{number}": value for number, value in enumerate(self.mean)}
        meta = {"identity": self.identity, "step": str(self.step), "curve": json.dumps(self.curve), "recalls": json.dumps(self.recalls)}
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
        self.step, self.curve, self.recalls = int(meta["step"]), json.loads(meta["curve"]), json.loads(meta["recalls"])


def hash_of(signals: Signals) -> str:
    """What tells one training part from another."""
    groups = [[group.key, group.rows.tolist(), _strengths(group)] for group in (*signals.boards, *signals.queries, *signals.users)]
    return digest(signals.items.tolist(), groups, signals.walks.model_dump(mode="json"))


def _strengths(group: Group) -> list[float]:
    return [] if group.strength is None else group.strength.tolist()
