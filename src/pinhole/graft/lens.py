"""A graft without its language model: projector, tokenizer and template, a few MB that a gateway holds.

The model runs on a server elsewhere. What of it is ever wanted here, the embedding of a token that the server must not
read as text, comes row by row from the checkpoint's file. Knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pinhole.errors import Corrupt, SpaceMismatch
from pinhole.graft.base import hugging_face
from pinhole.graft.projector import Projector
from pinhole.graft.prompt import Prompter, Soft
from pinhole.workspace import read_json

INDEX = "model.safetensors.index.json"


class Lens:
    """A saved graft's ``folder``, opened. ``tokens`` come in the dtype of its checkpoint."""

    def __init__(self, folder: Path) -> None:
        hf, meta = hugging_face(), read_json(folder / "graft.json")
        self.folder = folder
        self.space, self.card, self.card_words = str(meta["space"]), str(meta["card"]), int(meta["card_words"])
        self.tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        self.prompter = Prompter(self.tokenizer, meta["nested"])
        self.config = hf.AutoConfig.from_pretrained(folder).get_text_config()
        self.projector = _projector(folder, meta["projector"], self.hidden)
        self.dtype: torch.dtype = self.config.dtype or torch.float32
        self._embeddings = _Embeddings(folder, self.config)

    @property
    def context(self) -> int:
        return int(self.config.max_position_embeddings)

    @property
    def hidden(self) -> int:
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        return int(self.config.vocab_size)

    @property
    def ends(self) -> list[int]:
        """Tokens that end the assistant's turn: the template's own first, then those the model's settings name."""
        file = self.folder / "generation_config.json"
        named: Any = read_json(file).get("eos_token_id") if file.exists() else None
        named = named if isinstance(named, list) else [named]
        return list(dict.fromkeys(token for token in (self.prompter.end, *named) if token is not None))

    def check_space(self, identity: str) -> None:
        if identity != self.space:
            raise SpaceMismatch(
                f"the graft was trained on embedding space {self.space}, these vectors are of {identity}", where="graft", fix="run `pinhole build`"
            )

    @torch.inference_mode()
    def soft_tokens(self, soft: Sequence[Soft]) -> Tensor:
        """Pictures, one after the other → (tokens, hidden). Raises :class:`SpaceMismatch` for vectors of another width."""
        for part in soft:
            if part.vector.shape[-1] != self.projector.content_dim:
                raise SpaceMismatch(
                    f"the vector has {part.vector.shape[-1]} numbers, the graft's projector reads {self.projector.content_dim}",
                    where=part.item or part.key,
                    fix="embed it with this workspace's encoder",
                )
        return self.projector.read(soft).to(self.dtype)

    def tokens(self, ids: Sequence[int]) -> Tensor:
        """Token ids → (tokens, hidden), as the language model embeds them."""
        return self._embeddings(ids).to(self.dtype)


def _projector(folder: Path, shape: dict[str, int], hidden: int) -> Projector:
    where, fix = str(folder), "run `pinhole build graft`"
    projector, state = Projector(**shape).eval(), load_file(folder / "projector.safetensors")
    if projector.hidden != hidden:
        raise Corrupt(f"the projector makes tokens of width {projector.hidden}, the model reads {hidden}", where=where, fix=fix)
    shapes = {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()}
    odd = sorted(name for name in shapes.keys() | state.keys() if name not in state or shapes.get(name) != tuple(state[name].shape))
    if odd:
        raise Corrupt(f"projector weights do not fit: {', '.join(odd)}", where=where, fix=fix)
    projector.load_state_dict(state)
    return projector.requires_grad_(False)


class _Embeddings:
    """Rows of the input embedding, read from the checkpoint when they are asked for."""

    def __init__(self, folder: Path, config: Any) -> None:
        with torch.device("meta"):  # the shape of the model, and none of its weights
            lm = hugging_face().AutoModelForCausalLM.from_config(config)
        embedding = lm.get_input_embeddings()
        self._name = next(name for name, parameter in lm.named_parameters() if parameter is embedding.weight)
        self._scale = float(getattr(embedding, "scalar_embed_scale", 1.0))
        index = folder / INDEX
        self._file = folder / (read_json(index)["weight_map"][self._name] if index.exists() else "model.safetensors")

    def __call__(self, ids: Sequence[int]) -> Tensor:
        with safe_open(self._file, "pt") as weights:
            rows = weights.get_slice(self._name)
            return torch.cat([rows[token : token + 1] for token in ids]).float() * self._scale  # type: ignore[no-any-return]
