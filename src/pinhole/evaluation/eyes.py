"""A small vision-language model with eyes, to compare with: every patch of a picture is a token, at every turn.

As in LLaVA (Liu et al. 2023): the patches of a frozen encoder, through one projector, into a language model. It is a graft
whose pictures are made of patches in place of one content embedding, so that the same lessons train it and the same
exams ask it. For measuring only: nothing serves it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pinhole.graft.prompt import Soft
from pinhole.graft.world import Drop, World


class Patches(Soft):
    """A picture as all of its patches; its vector is their mean."""

    def tokens(self, count: int) -> tuple[Soft, ...]:
        """Patch by patch, however many are asked for."""
        assert self.cells is not None
        return tuple(Soft(f"{self.key}/patch{j}", self.vector + cell, self.word, self.lean, self.item) for j, cell in enumerate(self.cells))


@dataclass
class Eyed(World):
    """The same catalogue, seen patch by patch."""

    def soft(self, i: int, strange: float = 0.0, drop: Drop | None = None) -> Soft:
        soft = super().soft(i, strange, drop)
        return Patches(soft.key, soft.vector, soft.word, soft.lean, soft.item, soft.cells)

    @classmethod
    def of(cls, world: World) -> Eyed:
        """``world`` must have cells. Vectors are those of the encoder alone, each number by its spread over the training pictures."""
        assert world.cells is not None and world.whole is not None
        cells, whole_of = world.cells, world.whole
        whole = whole_of(range(len(world.pictures)))
        train = whole[world.train] if world.train else whole
        middle, spread = train.mean(0), np.maximum(train.std(0), 1e-6)
        return cls(
            world.pictures,
            world.boards,
            (whole - middle) / spread,
            f"{world.space}/patches",
            cells=lambda rows: cells(rows) / spread,
            whole=lambda rows: (whole_of(rows) - middle) / spread,
        )
