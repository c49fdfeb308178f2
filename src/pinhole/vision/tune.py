"""The stage ``tune``: the image encoder itself learns from the owner's signals, before it embeds.

    picture ── lower blocks (still) ── last blocks ── standardise ── principal directions ── linear ─┐
                                       LoRA or whole                                                 ├─ cosine × scale ── InfoNCE
    title, query ── text encoder (still) ─────────────────────────────────────────────────── linear ─┘

The pairs are those of the heads (:mod:`pinhole.vision.signals`), of the training part alone, and so is the loss. The heads
here begin as those of ``align`` do and are thrown away: ``align`` trains its own on what the tuned encoder sees. A batch
larger than memory goes in pieces with the gradient of the whole (GradCache, Gao et al. 2021). Everything random is drawn
from (seed, step); a run that was killed and resumed ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pinhole.config import AlignConfig, Config, TuneConfig
from pinhole.processes import cores
from pinhole.vision.align import Asked
from pinhole.vision.encoders import image_encoder, runtime, text_encoder, tuned
from pinhole.vision.features import Features
from pinhole.vision.losses import Batch, contrast, nested
from pinhole.vision.precompute import precompute
from pinhole.vision.sampler import Pairs, Sampler
from pinhole.vision.signals import Signals, read_signals
from pinhole.vision.start import Start, find_start
from pinhole.vision.unfreeze import Pictures, Unfrozen, inputs
from pinhole.workspace import digest, write_atomic, write_json

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue

WARM_UP = 20
CHECKPOINT_STEPS = 20
ENCODER = "encoder"  # the folder of the checkpoint, in the stage's
SCALE = 12.0  # one over the first temperature
Progress = Callable[[int, int], None]
Point = dict[str, float]


@dataclass(frozen=True)
class Material:
    """What a training is made of: frozen vectors of the untuned encoders, a training part, and its queries' vectors."""

    features: Features
    signals: Signals
    asked: np.ndarray
    weights: AlignConfig

    @property
    def identity(self) -> str:
        groups = [[group.key, group.rows.tolist()] for group in (*self.signals.boards, *self.signals.queries)]
        return digest(self.features.identity, self.signals.items.tolist(), groups, weights_of(self.weights))


def weights_of(config: AlignConfig) -> dict[str, Any]:
    """The settings of ``[align]`` that tuning reads too."""
    return {name: getattr(config, name) for name in ("weight_title", "weight_board", "weight_query", "dim", "nested")}


def pictured(signals: Signals, has_image: np.ndarray) -> Signals:
    """Only the items that have a picture, and the boards and queries that still hold enough of them."""
    boards = [board.among(has_image) for board in signals.boards]
    queries = [query.among(has_image) for query in signals.queries]
    items = signals.items[has_image[signals.items]]
    return replace(
        signals, items=items, boards=tuple(one for one in boards if len(one.rows) > 1), queries=tuple(one for one in queries if len(one.rows))
    )


# -- the training -------------------------------------------------------------------------------


class Tuning:
    """Network, heads, optimiser and step of one training. ``see`` gives rows as the trained part of the network takes them."""

    def __init__(self, material: Material, unfrozen: Unfrozen, see: Callable[[np.ndarray], Tensor], config: TuneConfig) -> None:
        self.material, self.unfrozen, self.see, self.config = material, unfrozen, see, config
        self.device = runtime.device()
        self.start = find_start(material.features, material.signals, material.asked, material.weights.model_copy(update={"seed": config.seed}))
        self.heads = _Heads(self.start).to(self.device)
        self.sampler = Sampler(material.signals, material.features.has_text, material.features.has_image)
        groups = [{"params": unfrozen.trained, "lr": config.learning_rate}, {"params": self.heads.trained, "lr": config.heads_learning_rate}]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        self.mean = [weight.detach().clone() for weight in unfrozen.trained]
        self.step, self.seen, self.pictures_per_s, self.curve = 0, 0, 0.0, list[Point]()
        self.identity = digest(material.identity, config.model_dump(mode="json"))

    def advance(self) -> None:
        """One step: draw, encode, contrast, go back."""
        config, draw = self.config, np.random.default_rng([self.config.seed, 2, self.step])
        scale = min(1.0, (self.step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * self.step / config.steps))
        for group, rate in zip(self.optimiser.param_groups, (config.learning_rate, config.heads_learning_rate), strict=True):
            group["lr"] = rate * scale
        drawn = self._drawn(draw)
        self.optimiser.zero_grad()
        point = self._learn(drawn) if drawn else {"loss": 0.0}  # else there is nothing to learn from
        if drawn:
            nn.utils.clip_grad_norm_(self.unfrozen.trained, 1.0)
            self.optimiser.step()
        self.step += 1
        with torch.no_grad():
            for mean, weight in zip(self.mean, self.unfrozen.trained, strict=True):
                mean.lerp_(weight, 1 - config.averaging)
        self.curve.append({"step": self.step, **point})

    def _drawn(self, draw: np.random.Generator) -> dict[str, Pairs]:
        weights, sampler, batch = self.material.weights, self.sampler, self.config.batch
        ways = {"title": sampler.titles, "board": sampler.mates, "query": sampler.asked}
        return {name: pairs for name, way in ways.items() if getattr(weights, f"weight_{name}") and (pairs := way(draw, batch)) is not None}

    def _learn(self, drawn: dict[str, Pairs]) -> Point:
        """The gradient of the whole batch: vectors first, the loss's gradient at them, then through the network piece by piece."""
        rows = np.unique(np.concatenate([side for name, pairs in drawn.items() for side in _pictures_of(name, pairs)]))
        pieces = [rows[start : start + self.config.chunk] for start in range(0, len(rows), self.config.chunk)]
        self.seen += len(rows)
        if len(pieces) == 1:
            total, point = self._loss(drawn, rows, self._encode(rows))
            total.backward()
            return point
        with torch.no_grad():
            vectors = torch.cat([self._encode(piece) for piece in pieces]).requires_grad_()
        total, point = self._loss(drawn, rows, vectors)
        total.backward()
        assert vectors.grad is not None
        for piece, gradient in zip(pieces, vectors.grad.split(self.config.chunk), strict=True):
            self._encode(piece).backward(gradient)
        return point

    def _encode(self, rows: np.ndarray) -> Tensor:
        """(rows, image dim) float32; the network computes in bfloat16 on a GPU."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            vectors: Tensor = self.unfrozen.see(self.see(rows))
        return vectors.float()

    def _loss(self, drawn: dict[str, Pairs], rows: np.ndarray, vectors: Tensor) -> tuple[Tensor, Point]:
        pictures = self.heads.pictures(vectors)  # (rows, dim)
        total, point = torch.zeros((), device=self.device), Point()
        for name, pairs in drawn.items():
            left, right = (pictures[torch.from_numpy(np.searchsorted(rows, side))] for side in (_pictures_of(name, pairs)[0], pairs.right))
            if name != "board":
                left = self.heads.texts(self._words(name, pairs.left))
            loss = _contrast(left, right, self.heads, pairs, self.start.nested)
            total = total + getattr(self.material.weights, f"weight_{name}") * loss
            point[name] = float(loss.detach())
        return total, {"loss": float(total.detach()), **point}

    def _words(self, name: str, rows: np.ndarray) -> Tensor:
        vectors = self.material.asked[rows] if name == "query" else self.material.features.text[rows]
        return torch.from_numpy(np.asarray(vectors, dtype=np.float32)).to(self.device)

    # -- what is kept ---------------------------------------------------------------------------

    def keep(self, path: Path) -> None:
        """Weights, their mean, the optimiser's moments, the step and the curve: one file, one rename."""
        from safetensors.torch import save

        state = self.optimiser.state_dict()["state"]
        tensors = {f"moment.{number}.{name}": value for number, moments in state.items() for name, value in moments.items()}
        tensors |= {f"weight.{number}": value.detach() for number, value in enumerate([*self.unfrozen.trained, *self.heads.trained])}
        tensors |= {f"mean.{number}": value for number, value in enumerate(self.mean)}
        meta = {"identity": self.identity, "step": str(self.step), "seen": str(self.seen), "curve": json.dumps(self.curve)}
        write_atomic(path, save({name: value.cpu().contiguous() for name, value in tensors.items()}, metadata=meta))

    def resume(self, path: Path) -> None:
        """Go on from a file of :meth:`keep`; one of another training is passed over."""
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata()
            if meta.get("identity") != self.identity:
                return
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.no_grad():
            for number, weight in enumerate([*self.unfrozen.trained, *self.heads.trained]):
                weight.copy_(tensors[f"weight.{number}"])
            for number, mean in enumerate(self.mean):
                mean.copy_(tensors[f"mean.{number}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("moment."):
                _, place, moment = name.split(".", 2)
                state.setdefault(int(place), {})[moment] = value
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.step, self.seen, self.curve = int(meta["step"]), int(meta["seen"]), json.loads(meta["curve"])


class _Heads(nn.Module):
    """The start of ``align`` as a module: fixed maps, then linear ones that learn."""

    def __init__(self, start: Start) -> None:
        super().__init__()
        fixed = {"center": start.mean, "deviation": start.deviation, "directions": start.directions, "shift": start.shift}
        for name, array in fixed.items():
            self.register_buffer(name, torch.from_numpy(np.array(array, dtype=np.float32)))
        heads = {name: nn.Parameter(torch.from_numpy(array.copy())) for name, array in start.heads.items()}
        self.image, self.image_bias = heads["image.weight"], heads["image.bias"]
        self.query, self.query_bias = heads["query.weight"], heads["query.bias"]
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.trained = list(self.parameters())

    def pictures(self, vectors: Tensor) -> Tensor:
        standard = nn.functional.normalize((vectors - self.center) / self.deviation, dim=1)  # (n, image dim)
        return (standard - self.shift) @ self.directions.T @ self.image.T + self.image_bias  # (n, dim)

    def texts(self, vectors: Tensor) -> Tensor:
        return vectors @ self.query.T + self.query_bias  # (n, dim)


def _pictures_of(name: str, pairs: Pairs) -> list[np.ndarray]:
    """Rows whose pictures a signal looks at: both sides of a board's pair, the right one of the others."""
    return [pairs.left, pairs.right] if name == "board" else [pairs.right, pairs.right]


def _contrast(left: Tensor, right: Tensor, heads: _Heads, pairs: Pairs, widths: tuple[int, ...]) -> Tensor:
    scale = heads.log_scale.exp().clamp(max=100.0)
    batch = Batch(torch.from_numpy(pairs.alike).to(left.device))
    return nested(contrast, left, right, scale, torch.zeros((), device=left.device), batch, widths)


def fit(
    material: Material,
    unfrozen: Unfrozen,
    see: Callable[[np.ndarray], Tensor],
    config: TuneConfig,
    folder: Path,
    progress: Progress | None = None,
    threads: int = 0,
) -> Tuning:
    """Train, and settle the network on the running mean of its weights. Checkpoints into ``folder`` and resumes from there."""
    run, kept = Tuning(material, unfrozen, see, config), folder / "training.safetensors"
    if kept.exists():
        run.resume(kept)
    begun, before = time.perf_counter(), run.seen
    with computing_on(threads or cores()):
        while run.step < config.steps:
            run.advance()
            if run.step % CHECKPOINT_STEPS == 0:
                run.keep(kept)
            if progress is not None:
                progress(run.step, config.steps)
    run.pictures_per_s = round((run.seen - before) / (time.perf_counter() - begun), 2)
    unfrozen.settle(run.mean)
    return run


@contextlib.contextmanager
def computing_on(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- the stage ----------------------------------------------------------------------------------


def build_tune(catalogue: Catalogue, config: Config, out: Path, progress: Progress | None = None, previous: Path | None = None) -> dict[str, float]:
    """The stage ``tune``: an encoder that ``tuned:FOLDER/encoder`` names, trained on the training part of the split.

    ``previous`` may hold features of the untuned encoders, which are copied. Writes the checkpoint, ``tuned.json`` and
    ``curve.json``. Raises :class:`~pinhole.errors.ConfigError` where the encoder cannot be tuned as asked.
    """
    tell = progress or (lambda done, total: None)
    vision, settings = config.vision, config.tune
    encoder = image_encoder(vision.image_encoder)
    unfrozen = Unfrozen(tuned.tunable(encoder), settings)
    text = text_encoder(vision.text_encoder)
    precompute(catalogue, encoder, text, out / "before", previous, vision.workers, _part(tell, 0), vision.max_pixels)
    features = Features.load(out / "before")
    signals = pictured(read_signals(catalogue, features).part(config.catalogue)[0], features.has_image)
    asked = Asked.make([query.key for query in signals.queries], vision.text_encoder, text.dim, out)
    material = Material(features, signals, asked.of([query.key for query in signals.queries]), config.align)
    threads = vision.workers or cores()
    with computing_on(threads):
        see = inputs(unfrozen, Pictures(catalogue, features.ids, encoder, vision.max_pixels), signals.items, out, _part(tell, 1))
    run = fit(material, unfrozen, see, settings, out, _part(tell, 2), threads)
    tuned.write(unfrozen.tunable, encoder, out / ENCODER)
    write_json(out / "curve.json", run.curve)
    for left in ("before", "lower"):
        shutil.rmtree(out / left, ignore_errors=True)
    for file in ("training.safetensors", "queries.json", "queries.npy"):
        (out / file).unlink(missing_ok=True)
    sizes = {"items": len(signals.items), "boards": len(signals.boards), "queries": len(signals.queries), "steps": run.step, "pictures": run.seen}
    trained = sum(weight.numel() for weight in unfrozen.trained)
    return {**sizes, "trained": trained, "loss.first": run.curve[0]["loss"], "loss.last": run.curve[-1]["loss"], "pictures_per_s": run.pictures_per_s}


def _part(tell: Progress, number: int) -> Progress:
    """One bar for three pieces of work."""
    return lambda done, total: tell(number * 1000 + 1000 * done // max(total, 1), 3000)
