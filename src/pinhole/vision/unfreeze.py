"""What of an encoder's network learns, and what it learns from: whole weights or LoRA, pictures or kept activations.

Batch norm is frozen whichever way. Where a network can be entered in the middle, what enters its last blocks is
computed once and kept in 16 bits, so that a step never runs the blocks that stand still. Knows nothing of losses.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pinhole.config import TuneConfig
from pinhole.errors import ConfigError
from pinhole.vision.encoders import runtime
from pinhole.vision.encoders.base import ImageEncoder, Tunable
from pinhole.workspace import write_atomic

SHARD = 512  # pictures in a file of activations
AT_ONCE = 16
Progress = Callable[[int, int], None]


class Unfrozen:
    """A network of which some weights learn; :meth:`settle` puts back what LoRA has added, and leaves a plain network."""

    def __init__(self, tunable: Tunable, config: TuneConfig) -> None:
        """Raises :class:`ConfigError` where there are fewer blocks, or nothing to put LoRA on."""
        if config.blocks > tunable.blocks:
            raise ConfigError(
                f"`tune.blocks` = {config.blocks}, the encoder has {tunable.blocks}", where="[tune] blocks", fix="set fewer, or 0 for all"
            )
        self.tunable, self.config, self.network = tunable, config, tunable.network.to(runtime.device())
        self.peft: Any = None
        names = set(tunable.tail(config.blocks))
        if config.unfreeze == "lora":
            self.peft = self._with_lora([one for one in tunable.projections if f"{one}.weight" in names])
        else:
            still = {id(weight) for module in self.network.modules() if isinstance(module, _BatchNorm) for weight in module.parameters()}
            for name, weight in self.network.named_parameters():
                weight.requires_grad_(name in names and id(weight) not in still)
        self.named = {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}
        self.trained = list(self.named.values())
        self.begin = [weight.detach().clone() for weight in self.trained]
        self.see = tunable.upper(config.blocks)

    def _with_lora(self, layers: list[str]) -> Any:
        """LoRA (Hu et al. 2021) on these layers: 1 × 1 convolutions are linear maps too."""
        from peft import LoraConfig, get_peft_model

        if not layers:
            raise ConfigError("the encoder has no layers that LoRA goes on", where="[tune] unfreeze", fix='set it to "full"')
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)  # peft asks by its old name
            torch.manual_seed(self.config.seed)
            rank = self.config.lora_rank
            return get_peft_model(self.network, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, lora_dropout=0.0)).eval()

    def settle(self, weights: Sequence[Tensor]) -> None:
        """Give the network these weights, moved back towards where they began by ``[tune] share``: weights between two that
        are both good are better on what is new (WiSE-FT, Wortsman et al. 2022). LoRA is merged."""
        with torch.no_grad():
            for weight, begin, end in zip(self.trained, self.begin, weights, strict=True):
                weight.copy_(torch.lerp(begin, end, self.config.share) if self.peft is None else end)
        if self.peft is not None:
            self._shrink()
            self.peft.merge_and_unload()

    def _shrink(self) -> None:
        for module in self.network.modules():
            if hasattr(module, "scaling") and hasattr(module, "lora_B"):
                module.scaling = {name: scale * self.config.share for name, scale in module.scaling.items()}


class Pictures:
    """Pixels of items by their rows, decoded each time they are asked for by the encoder's own recipe."""

    def __init__(self, catalogue: Any, ids: Sequence[str], encoder: ImageEncoder, max_pixels: int) -> None:
        table = catalogue.items(["id", "image"])
        paths = dict(zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True))
        self.catalogue, self.ids, self.paths, self.encoder, self.max_pixels = catalogue, ids, paths, encoder, max_pixels

    def __call__(self, rows: np.ndarray) -> Tensor:
        """uint8 (rows, size, size, 3). Raises :class:`BadImage` where a picture has changed into none since it was embedded."""
        data = [self._bytes(self.ids[row]) for row in rows.tolist()]
        return torch.from_numpy(np.stack([self.encoder.decode(one, self.max_pixels) for one in data])).to(runtime.device())

    def _bytes(self, id: str) -> bytes:
        path = self.paths.get(id)
        data: bytes = (self.catalogue.root / path).read_bytes() if path else self.catalogue.image(id)
        return data


class Kept:
    """What enters the last blocks, of the given rows, in files that appear whole: a killed run goes on with the next one."""

    def __init__(
        self, lower: Callable[[Any], Any], pictures: Callable[[np.ndarray], Tensor], rows: np.ndarray, folder: Path, progress: Progress
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.place = {int(row): number for number, row in enumerate(rows)}
        self.files: list[np.ndarray] = []
        for start in range(0, len(rows), SHARD):
            path = folder / f"{start:010d}.npy"
            if not path.exists():
                self._make(lower, pictures, rows[start : start + SHARD], path, partial(_from, progress, start, len(rows)))
            self.files.append(np.load(path, mmap_mode="r", allow_pickle=False))

    @staticmethod
    def _make(
        lower: Callable[[Any], Any], pictures: Callable[[np.ndarray], Tensor], rows: np.ndarray, path: Path, done: Callable[[int], None]
    ) -> None:
        parts = []
        for start in range(0, len(rows), AT_ONCE):
            with torch.no_grad():
                parts.append(lower(pictures(rows[start : start + AT_ONCE])).half().cpu().numpy())
            done(start + len(parts[-1]))
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(parts), allow_pickle=False)
        write_atomic(path, buffer.getvalue())

    def __call__(self, rows: np.ndarray) -> Tensor:
        places = [self.place[int(row)] for row in rows]
        found = np.stack([self.files[place // SHARD][place % SHARD] for place in places])
        return torch.from_numpy(found).to(runtime.device()).float()


def _from(progress: Progress, start: int, total: int, done: int) -> None:
    progress(start + done, total)


def inputs(unfrozen: Unfrozen, pictures: Callable[[np.ndarray], Tensor], rows: np.ndarray, folder: Path, progress: Progress) -> Callable[..., Tensor]:
    """From ``rows`` to what the trained part of the network takes: activations kept in ``folder``, or the pictures themselves."""
    lower, blocks = unfrozen.tunable.lower, unfrozen.config.blocks
    return Kept(lower(blocks), pictures, rows, folder / "lower", progress) if lower is not None and blocks else pictures
