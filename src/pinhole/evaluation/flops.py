"""What a turn costs in arithmetic, on paper: FLOPs of a prompt up to its first token, with pictures looked at and without.

Counts matrix products and convolutions, two operations a multiplication, and attention over all pairs of
tokens, as ``torch.utils.flop_counter`` does (a test holds the two together); norms, activations and rotations, well under
a thousandth, are left out. Knows nothing of seconds: memory traffic and how well a kernel does are for `pinhole bench turn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHANNELS, FRAMES = 3, 2  # of a patch: an image is a video of one frame, shown twice


@dataclass(frozen=True)
class Language:
    """A decoder. ``experts`` of width ``mlp``, ``active`` of them for a token; 0 experts is a dense one."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    head: int = 128
    vocab: int = 151_936
    experts: int = 0
    active: int = 0
    tied: bool = False

    @classmethod
    def of(cls, config: Any) -> Language:
        """The shape of any decoder with gated MLPs, from its ``transformers`` configuration."""
        text = config.get_text_config()
        experts = int(getattr(text, "num_experts", 0) or 0)
        heads = int(text.num_attention_heads)
        return cls(
            layers=int(text.num_hidden_layers),
            hidden=int(text.hidden_size),
            heads=heads,
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            mlp=int(text.moe_intermediate_size if experts else text.intermediate_size),
            head=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
            vocab=int(text.vocab_size),
            experts=experts,
            active=int(text.num_experts_per_tok) if experts else 0,
            tied=bool(config.tie_word_embeddings),
        )

    def read(self, tokens: float, before: float = 0) -> float:
        """FLOPs of reading ``tokens`` after ``before`` that are cached, without logits."""
        projections = 2 * self.hidden * self.head * (self.heads + 2 * self.kv_heads) + 2 * self.heads * self.head * self.hidden
        mlp = 3 * 2 * self.hidden * self.mlp * max(1, self.active) + 2 * self.hidden * self.experts  # gate, up, down; the router
        pairs = 2 * 2 * self.heads * self.head * tokens * (before + tokens)  # queries with keys, weights with values
        return float(self.layers * (tokens * (projections + mlp) + pairs))

    @property
    def logits(self) -> float:
        """FLOPs of the logits of one position."""
        return float(2 * self.hidden * self.vocab)

    def prefill(self, tokens: int) -> float:
        """FLOPs of reading a prompt, and logits of its last token."""
        return self.read(tokens) + self.logits

    def answer(self, prompt: int, cached: int, said: int) -> float:
        """FLOPs of an answer of ``said`` tokens: the prompt's new tokens at once, then one token at a time."""
        decoded = sum(self.read(1, prompt + place) + self.logits for place in range(said - 1))  # the last one is not read back
        return self.read(prompt - cached, cached) + self.logits + decoded


@dataclass(frozen=True)
class Tower:
    """A vision transformer whose output is merged ``merge`` × ``merge`` to one token, as is that of the ``deepstack`` blocks."""

    depth: int
    hidden: int
    heads: int
    mlp: int
    out: int
    deepstack: tuple[int, ...]
    patch: int = 16
    merge: int = 2

    def patches(self, size: int) -> int:
        return (size // self.patch) ** 2

    def tokens(self, size: int) -> int:
        """That an image of ``size`` × ``size`` pixels takes in a prompt."""
        return self.patches(size) // self.merge**2

    def forward(self, size: int) -> float:
        """FLOPs of looking at one image."""
        patches, wide = self.patches(size), self.hidden * self.merge**2
        embedding = 2 * patches * CHANNELS * FRAMES * self.patch**2 * self.hidden
        block = 2 * patches * self.hidden * (4 * self.hidden + 2 * self.mlp) + 4 * patches * patches * self.hidden
        merger = 2 * self.tokens(size) * wide * (wide + self.out)
        return float(embedding + self.depth * block + (1 + len(self.deepstack)) * merger)


@dataclass(frozen=True)
class Shape:
    language: Language
    tower: Tower


_SMALL, _LARGE = (24, 1024, 16, 4096), (27, 1152, 16, 4304)
# Qwen3-VL. The numbers of 2B, 8B and 30B-A3B as in github.com/pytorch/torchtitan, torchtitan/experiments/qwen3_vl/__init__.py;
# of 4B as in the model's config.json. Technical report: arXiv 2511.21631.
SHAPES = {
    "2B": Shape(Language(28, 2048, 16, 8, 6144, tied=True), Tower(*_SMALL, 2048, (5, 11, 17))),
    "4B": Shape(Language(36, 2560, 32, 8, 9728, tied=True), Tower(*_SMALL, 2560, (5, 11, 17))),
    "8B": Shape(Language(36, 4096, 32, 8, 12_288), Tower(*_LARGE, 4096, (8, 16, 24))),
    "30B-A3B": Shape(Language(48, 2048, 32, 4, 768, experts=128, active=8), Tower(*_LARGE, 2048, (8, 16, 24))),
}


BRACKETS = 2  # tokens that a VLM has about every image: where it begins and where it ends


@dataclass(frozen=True)
class Turn:
    """A user's turn: ``images`` of ``size`` × ``size`` pixels, and words."""

    images: int
    size: int = 512
    words: int = 60  # tokens of ordinary text
    marks: int = 0  # tokens that an image has beside it: 2 for `#1`, as in a list that is to be pointed at; none on a board

    def tokens(self, each: int) -> int:
        """Of the prompt, where an image takes ``each``."""
        return self.words + self.images * (self.marks + each)


def full(shape: Shape, turn: Turn) -> float:
    """FLOPs where every image is looked at."""
    return turn.images * shape.tower.forward(turn.size) + cached_tower(shape, turn)


def cached_tower(shape: Shape, turn: Turn) -> float:
    """FLOPs where the tower's output was kept, and only the language model reads it."""
    return shape.language.prefill(turn.tokens(BRACKETS + shape.tower.tokens(turn.size)))


def graft(shape: Shape, turn: Turn, k: int = 1) -> float:
    """FLOPs where an image is ``k`` soft tokens. The floor, as many tokens of text, is the same number with k = 1."""
    return shape.language.prefill(turn.tokens(k))


def on_paper(counts: tuple[int, ...] = (1, 10, 100, 1000)) -> dict[str, float]:
    """``flops.<shape>.n<N>.full`` and ``.graft`` in TFLOPs, and ``.full_over_graft``, for every shape; ``.marked`` the last with a `#k` an image."""
    found: dict[str, float] = {}
    for name, shape in SHAPES.items():
        for images in counts:
            turn, marked = Turn(images), Turn(images, marks=2)
            looked, grafted = full(shape, turn), graft(shape, turn)
            key = f"flops.{name}.n{images}"
            found |= {f"{key}.full": looked / 1e12, f"{key}.graft": grafted / 1e12, f"{key}.full_over_graft": looked / grafted}
            found[f"{key}.full_over_graft.marked"] = full(shape, marked) / graft(shape, marked)
    return found
