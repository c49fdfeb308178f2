"""The training step of a graft: packed rows in, one optimiser step out.

LoRA (Hu et al. 2021) through peft on every linear layer of the language model, in its own dtype, with
float32 master copies in the optimiser; the projector is float32. Logits are computed only where an
assistant speaks. Knows nothing of where lessons come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pinhole.config import GraftConfig
from pinhole.graft.model import Graft
from pinhole.graft.packing import Row
from pinhole.graft.prompt import Soft

_WHOLE = 32  # rows are padded to a multiple of this: on a CPU a score matrix of odd width costs up to twice as much

# Share of the learning rate by progress through both stages: warm-up, plateau, linear decay.
_SCHEDULE = ((0.0, 0.03, 0.6, 1.0), (0.02, 1.0, 1.0, 0.03))


def batch_tensors(graft: Graft, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows → input embeddings (b, T, hidden), additive mask (b, 1, T, T), positions (b, T)."""
    size = -(-max(len(row.tokens) for row in rows) // _WHOLE) * _WHOLE
    tokens = np.zeros((len(rows), size), np.int64)
    positions = np.zeros((len(rows), size), np.int64)
    soft: list[Soft] = []
    for i, row in enumerate(rows):
        ids = np.array(row.tokens)
        tokens[i, : len(ids)] = np.where(ids < 0, ids - len(soft), ids)  # -1-j counts through the whole batch
        positions[i, : len(ids)] = row.positions
        soft += row.soft
    allowed = torch.from_numpy(np.stack([row.mask(size) for row in rows])).to(graft.device)
    dtype = graft.lm.dtype
    mask = torch.zeros(allowed.shape, dtype=dtype, device=graft.device).masked_fill_(~allowed, torch.finfo(dtype).min)
    embedded = graft.embed_tokens(torch.from_numpy(tokens).to(graft.device), soft)
    return embedded, mask.unsqueeze(1), torch.from_numpy(positions).to(graft.device)


def answer_states(graft: Graft, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Hidden states (m, hidden) where an assistant speaks, and the token that comes there (m,)."""
    embedded, mask, positions = batch_tensors(graft, rows)
    hidden = graft.lm.model(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    size = hidden.shape[1]
    where = [i * size + at for i, row in enumerate(rows) for at in row.learn_from]
    wanted = [token for row in rows for token in row.learn_token]
    picked = hidden.reshape(-1, hidden.shape[-1])[torch.tensor(where, device=graft.device)]
    return picked, torch.tensor(wanted, device=graft.device)


def answer_logits(graft: Graft, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Logits (m, vocabulary) where an assistant speaks, and the token that comes there (m,)."""
    states, wanted = answer_states(graft, rows)
    return graft.lm.lm_head(states).float(), wanted


def answer_scores(graft: Graft, rows: Sequence[Row]) -> Tensor:
    """Log-probability (m,) of every token of every answer. Where answers part, the vocabulary is scored once for all of them."""
    states, wanted = answer_states(graft, rows)
    places = [(i, at) for i, row in enumerate(rows) for at in row.learn_from]
    first = {place: n for n, place in reversed(list(enumerate(places)))}
    numbers = {place: n for n, place in enumerate(first)}
    logits = graft.lm.lm_head(states[list(first.values())]).float()
    at = torch.tensor([numbers[place] for place in places], device=logits.device)
    return logits[at, wanted] - torch.logsumexp(logits, -1)[at]


def add_lora(graft: Graft, rank: int, seed: int) -> Any:
    """Put LoRA into the language model in place; returns peft's wrapper (its ``merge_and_unload`` bakes it in)."""
    import warnings

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)  # peft asks transformers by its old name
    return get_peft_model(graft.lm, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), autocast_adapter_dtype=False)


class Trainer:
    """AdamW over float32 masters, warm-up, a plateau and a linear decay; its whole state goes to disk as safetensors and comes back.

    There is one flat master for all of LoRA and one for the projector: hundreds of small tensors cost more to visit than to update.
    """

    def __init__(self, graft: Graft, config: GraftConfig, seed: int) -> None:
        self.graft, self.config = graft, config
        self.peft = add_lora(graft, config.lora_rank, seed)
        self.parameters = {"lora": [p for p in self.peft.parameters() if p.requires_grad], "projector": list(graft.projector.parameters())}
        self.masters = {name: _flat([p.detach() for p in own]) for name, own in self.parameters.items()}
        rates = {"lora": config.lora_learning_rate, "projector": config.projector_learning_rate}
        groups = [{"params": [master], "lr": rates[name]} for name, master in self.masters.items()]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.rates = list(rates.values())

    @property
    def trained(self) -> list[Tensor]:
        """Everything that learns, as it lies in the model."""
        return [parameter for own in self.parameters.values() for parameter in own]

    def step(self, rows: Sequence[Row], progress: float) -> float:
        """One step; ``progress`` in [0, 1] is its place in the schedule. Returns the mean loss of an answer's token."""
        logits, wanted = answer_logits(self.graft, rows)
        weights = torch.tensor([weight for row in rows for weight in row.learn_weight], device=logits.device)
        loss = (nn.functional.cross_entropy(logits, wanted, reduction="none") * weights).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        scale = float(np.interp(progress, *_SCHEDULE))
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale
        for name, own in self.parameters.items():
            self.masters[name].grad = _flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in own])
            for parameter in own:
                parameter.grad = None
        nn.utils.clip_grad_norm_(list(self.masters.values()), 1.0)
        self.optimiser.step()
        self._publish()
        return float(loss.detach())

    @torch.no_grad()
    def _publish(self) -> None:
        for name, own in self.parameters.items():
            for parameter, piece in zip(own, self.masters[name].split([p.numel() for p in own]), strict=True):
                parameter.copy_(piece.view_as(parameter))

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
        self._publish()

    def merge(self) -> Graft:
        """Bake the LoRA into the language model and return the plain graft."""
        self.graft.lm = self.peft.merge_and_unload()
        return self.graft.eval()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """All their numbers in one float32 vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).to(torch.float32)
