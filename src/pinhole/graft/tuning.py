"""The training step of a graft: packed rows in, one optimiser step out.

The optimiser works on float32 masters of everything that learns; the gradient of the rows comes from this process
and its helpers. Knows nothing of where lessons come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pinhole.config import GraftConfig
from pinhole.graft.helpers import Helpers
from pinhole.graft.learner import Learner, flat
from pinhole.graft.model import Graft
from pinhole.graft.packing import Row

# Share of the learning rate by progress through both stages: warm-up, plateau, linear decay.
_SCHEDULE = ((0.0, 0.03, 0.6, 1.0), (0.02, 1.0, 1.0, 0.03))


class Trainer:
    """AdamW, warm-up, a plateau and a linear decay; its whole state goes to disk as safetensors and comes back."""

    def __init__(self, graft: Graft, config: GraftConfig, seed: int, helpers: Helpers | None = None) -> None:
        self.graft, self.helpers = graft, helpers
        self.learner = Learner(graft, config.lora_rank, seed)
        sizes, size = self.learner.sizes, sum(self.learner.lengths)
        self.weights = helpers.share(size) if helpers else torch.zeros(size, device=graft.device)
        self.weights.copy_(flat(self.learner.trained))
        self.gradient = torch.zeros_like(self.weights)
        self.masters = dict(zip(sizes, self.weights.split(list(sizes.values())), strict=True))
        rates = {"lora": config.lora_learning_rate, "projector": config.projector_learning_rate}
        groups = [{"params": [master], "lr": rates[name]} for name, master in self.masters.items()]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.rates = list(rates.values())

    def step(self, rows: Sequence[Row], progress: float) -> float:
        """One step; ``progress`` in [0, 1] is its place in the schedule. Returns the mean loss of an answer's token."""
        own = self.helpers.start(rows) if self.helpers else rows
        loss, weight = self.learner.gradient(own, self.gradient)
        if self.helpers:
            more = self.helpers.finish(self.gradient)
            loss, weight = loss + more[0], weight + more[1]
        self.gradient.div_(weight)
        scale = float(np.interp(progress, *_SCHEDULE))
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale
        for master, part in zip(self.masters.values(), self.gradient.split(list(self.learner.sizes.values())), strict=True):
            master.grad = part
        nn.utils.clip_grad_norm_(list(self.masters.values()), 1.0)
        self.optimiser.step()
        self.learner.publish(self.weights)
        return loss / weight

    def save(self, path: Path) -> None:
        state = {f"master.{name}": master for name, master in self.masters.items()}
        for name, master in self.masters.items():
            for key, value in self.optimiser.state.get(master, {}).items():
                state[f"{key}.{name}"] = value.reshape(-1)
        state |= {f"buffer.{name}": tensor for name, tensor in self.graft.projector.named_buffers()}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)

    def load(self, path: Path) -> None:
        state = load_file(path)
        for name, master in self.masters.items():
            master.copy_(state[f"master.{name}"])
            if f"exp_avg.{name}" in state:
                kept = {key: state[f"{key}.{name}"].to(master.device) for key in ("exp_avg", "exp_avg_sq")}
                self.optimiser.state[master] = {"step": state[f"step.{name}"].reshape(()), **kept}
        for name, buffer in self.graft.projector.named_buffers():
            buffer.copy_(state[f"buffer.{name}"])
        self.learner.publish(self.weights)

    def merge(self) -> Graft:
        """Bake the LoRA into the language model and return the plain graft."""
        self.graft.lm = self.learner.peft.merge_and_unload()
        return self.graft.eval()
