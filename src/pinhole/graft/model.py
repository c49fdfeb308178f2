"""The grafted model: a plain causal LM, a projector, and the embedding space they belong to.

``embed`` puts a soft token wherever a prompt has a picture; from there on it is the language model's
own ``forward`` with input embeddings, so every engine that runs the LM runs the graft. Knows nothing
of how it was trained or of what is asked of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pinhole.errors import Corrupt, SpaceMismatch
from pinhole.graft.base import hugging_face
from pinhole.graft.projector import Projector
from pinhole.graft.prompt import Message, Prompt, Prompter, Soft, ToolSchema, system
from pinhole.workspace import read_json, write_json

_PART = 8192  # words whose embeddings are made at a time


def best_dtype() -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16
    native = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") or native.get("bf16") else torch.float32


def resolve_dtype(name: str) -> torch.dtype:
    return best_dtype() if name == "auto" else getattr(torch, name)


class Graft(nn.Module):
    def __init__(
        self, lm: Any, tokenizer: Any, projector: Projector, *, space: str, card: str, card_words: int, nested: Sequence[int] = (1,)
    ) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.projector = lm, tokenizer, projector
        self.space, self.card, self.card_words = space, card, card_words
        self.prompter = Prompter(tokenizer, nested)

    @property
    def nested(self) -> tuple[int, ...]:
        """How many soft tokens a picture may be, ascending."""
        return self.prompter.nested

    @property
    def context(self) -> int:
        return int(self.lm.config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        return self.projector.mean.device

    def system(self, tools: Sequence[ToolSchema] = ()) -> Message:
        return system(tools)

    def check_space(self, identity: str) -> None:
        if identity != self.space:
            raise SpaceMismatch(
                f"the graft was trained on embedding space {self.space}, these vectors are of {identity}", where="graft", fix="run `pinhole build`"
            )

    def soft_tokens(self, soft: Sequence[Soft]) -> Tensor:
        """Vectors of n pictures → (n, hidden), in the language model's dtype."""
        tokens = self.projector.read(soft)
        if any(part.lean for part in soft):
            lean = torch.tensor([[part.lean] for part in soft], device=self.device)
            words = torch.stack([self.word(part.word) if part.lean else torch.zeros_like(tokens[0]) for part in soft])
            tokens = torch.lerp(tokens, words, lean)
        return tokens.to(self.lm.dtype)

    @torch.no_grad()
    def word(self, text: str) -> Tensor:
        """The mean input embedding of some words (hidden,), as long as a soft token is."""
        mean = self.embedded(text)
        return mean * (self.projector.length / mean.pow(2).mean().sqrt().clamp_min(1e-6))

    @torch.no_grad()
    def embedded(self, text: str) -> Tensor:
        """The mean input embedding of some words (hidden,), float32."""
        ids = self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return self.lm.get_input_embeddings()(torch.tensor(ids, device=self.device)).float().mean(0)

    @torch.no_grad()
    def token_length(self) -> float:
        """The root mean square of what the language model reads for a word: its embedding, with the factor that some models put on it."""
        words = self.lm.get_input_embeddings()
        parts = torch.arange(words.weight.shape[0], device=self.device).split(_PART)
        squares = sum(words(part).double().pow(2).sum() for part in parts)
        return float((squares / words.weight.numel()) ** 0.5)

    def embed_tokens(self, tokens: Tensor, soft: Sequence[Soft]) -> Tensor:
        """Ids (…, T) with -1-j for ``soft[j]`` → (…, T, hidden)."""
        embedded = self.lm.get_input_embeddings()(tokens.clamp_min(0))
        if not soft:
            return embedded
        pictures = self.soft_tokens(soft)  # (n, hidden)
        where = tokens < 0
        return embedded.masked_scatter(where.unsqueeze(-1), pictures[-1 - tokens[where]])

    def embed(self, prompt: Prompt) -> Tensor:
        """A prompt → (1, T, hidden)."""
        return self.embed_tokens(torch.tensor([prompt.tokens], device=self.device), prompt.soft)

    # -- on disk --------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """A plain Hugging Face checkpoint (LoRA already merged) with the projector beside it."""
        self.lm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        state = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in self.projector.state_dict().items()}
        save_file(state, folder / "projector.safetensors")
        facts = {"space": self.space, "card": self.card, "card_words": self.card_words, "nested": self.nested, "projector": self.projector.shape}
        write_json(folder / "graft.json", facts)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None) -> Graft:
        hf = hugging_face()
        meta = read_json(folder / "graft.json")
        lm = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or best_dtype(), use_safetensors=True, attn_implementation="eager")
        projector = Projector(**meta["projector"])
        missing, extra = projector.load_state_dict(load_file(folder / "projector.safetensors"), strict=False)
        if missing or extra:
            raise Corrupt(f"projector weights do not fit: missing {missing}, extra {extra}", where=str(folder), fix="run `pinhole build graft`")
        facts = {key: meta[key] for key in ("space", "card", "card_words", "nested")}
        graft = cls(lm, hf.AutoTokenizer.from_pretrained(folder), projector, **facts)
        return graft.eval().to("cuda" if torch.cuda.is_available() else "cpu")
