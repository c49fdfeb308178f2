"""Where a projector begins: each picture near the words it is called by, among the model's input embeddings.

Ridge regression, then a few seconds of a softmax over all words at once (as a classifier would, with the words'
own embeddings as its weights), so that a picture is nearer to its words than to those of others; half of the content is
dropped at random meanwhile. The language model is not run at all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear, normalize

from pinhole.graft.model import Graft
from pinhole.graft.world import World

_RIDGE = 0.3  # of the mean eigenvalue of the Gram matrix
_FEWEST, _MOST = 8, 20_000  # pictures with words: below the one nothing is fitted, beyond the other they are a sample
_STEPS, _EPOCHS, _BATCH, _RATE, _DROP = 200, 12, 256, 2e-3, 0.5
_SHARPNESS = 10.0  # of the softmax at its start; it is learned
_PARTS = 4  # of the pictures, each left out once
_LEAST = 1e-3  # of the mean eigenvalue: how exactly a move makes up a difference
_SAMPLE = 256  # pictures whose cells are looked at
_UNEXPLAINED = 0.5  # of a content embedding by its picture's features: beyond it they are not of one kind
_KIND = 0.5  # what its kind weighs among a picture's words: every picture has one, and most pictures share it


@dataclass(frozen=True)
class Words:
    """All words of some training pictures, each as a direction from the middle of all."""

    pictures: list[int]
    middle: Tensor  # (hidden,)
    directions: Tensor  # (words, hidden), of length 1
    spread: float  # mean distance from the middle
    called: Tensor  # (pictures, words): which are whose, each row with the sum 1

    def nearest(self, found: Tensor) -> float:
        """Share of the pictures whose nearest word is their own; ``found`` (pictures, hidden) is seen from the middle."""
        nearest = (normalize(found, dim=-1) @ self.directions.T).argmax(1, keepdim=True)
        return float((self.called.gather(1, nearest) > 0).float().mean())

    def of(self, rows: Sequence[int]) -> Words:
        return replace(self, pictures=[self.pictures[row] for row in rows], called=self.called[list(rows)])


def words_of(graft: Graft, world: World) -> Words | None:
    """What the training pictures are called, those of them that are called anything; ``None`` where there are too few."""
    own = {i: words for i in world.train if (words := world.words_of(i))}
    if len(own) < _FEWEST:
        return None
    pictures = sorted(random.Random(0).sample(list(own), min(_MOST, len(own))))
    own = {i: own[i] for i in pictures}
    known = sorted({word for words in own.values() for word in words})
    column = {word: at for at, word in enumerate(known)}
    called = torch.zeros(len(pictures), len(known))
    for row, i in enumerate(pictures):
        for word in own[i]:
            called[row, column[word]] = _KIND if word == world.pictures[i].category else 1.0
    embedded = torch.stack([graft.embedded(word) for word in known]).cpu()
    middle = embedded.mean(0)
    apart = embedded - middle
    return Words(pictures, middle, normalize(apart, dim=-1), float(apart.norm(dim=-1).mean()), normalize(called, p=1.0, dim=-1))


def warm_start(graft: Graft, world: World, seed: int = 0) -> dict[str, float]:
    """Start the projector's skip path and fill ``world.strange``. Returns how often the nearest of all words is a picture's own.

    A projector puts pictures that it was fitted to nearer to their words than others: the share is given for those
    (``graft.warm_start``) and for the same pictures, each left out of the fit (``.strange``).
    """
    words = words_of(graft, world)
    if words is None:
        return {}
    projector = graft.projector
    projector.normalise(torch.from_numpy(world.vectors[words.pictures]).to(graft.device))
    x = (torch.from_numpy(world.vectors[words.pictures]) - projector.mean.cpu()) * projector.scale.cpu()
    weight, bias = fit(x, words, seed)
    projector.start(weight, words.middle + bias, graft.token_length())
    start_cells(graft, world, words.pictures)
    moved = strangers(x, weight, bias, words, seed)
    vectors = ((x + moved) / projector.scale.cpu() + projector.mean.cpu()).numpy()
    world.strange = dict(zip(words.pictures, vectors, strict=True))
    shares = {"graft.warm_start": words.nearest(linear(x, weight, bias)), "graft.warm_start.strange": words.nearest(linear(x + moved, weight, bias))}
    return {**shares, "graft.warm_start.n": len(x)}


@torch.no_grad()
def start_cells(graft: Graft, world: World, pictures: Sequence[int]) -> None:
    """Let a cell add what the skip path would make of a picture that looked like it.

    A whole picture's features are the mean of its cells' where an encoder pools by averaging; how the content embedding follows
    from them is found by least squares, number by number. Where it does not, cells begin with nothing to add.
    """
    projector, rows = graft.projector, list(pictures[:_SAMPLE])
    if not projector.cell_dim:
        return
    assert world.cells is not None and world.whole is not None
    apart, whole = torch.from_numpy(world.cells(rows)), torch.from_numpy(world.whole(rows))  # (n, cells, cell_dim), (n, cell_dim)
    scale = 1 / (apart.std((0, 1)).clamp_min(1e-6) * apart.shape[-1] ** 0.5)
    content = torch.from_numpy(world.vectors[rows])[:, : apart.shape[-1]]
    gain, exact = slopes(whole, content) if content.shape[1] == apart.shape[-1] else (scale, False)
    skip = projector.skip.weight[:, : apart.shape[-1]].cpu() * projector.scale[: apart.shape[-1]].cpu()  # of the content embedding as it is
    projector.start_cells(scale, skip * gain / scale if exact else torch.zeros(projector.hidden, apart.shape[-1]))


def slopes(x: Tensor, y: Tensor) -> tuple[Tensor, bool]:
    """(n, d), (n, d) → the slopes (d,) of y on x, number by number, and whether they explain most of it."""
    x, y = x - x.mean(0), y - y.mean(0)
    slope = (x * y).sum(0) / x.pow(2).sum(0).clamp_min(1e-12)
    left = (y - slope * x).pow(2).sum() / y.pow(2).sum().clamp_min(1e-12)
    return slope, bool(left < _UNEXPLAINED)


def strangers(x: Tensor, weight: Tensor, bias: Tensor, words: Words, seed: int) -> Tensor:
    """:func:`left_out` of the fit to ``words``."""
    return left_out(x, weight, bias, lambda rows: fit(x[rows], words.of(rows), seed), seed)


def left_out(x: Tensor, weight: Tensor, bias: Tensor, refit: Callable[[list[int]], tuple[Tensor, Tensor]], seed: int) -> Tensor:
    """(n, content) by how much ``x`` must move to be put where a projector would put it that was not fitted to it.

    As in stacked generalization (Wolpert 1992) one is fitted without each part of the pictures in turn (``refit`` gives weights and bias from
    some rows); each picture of the part moves by the least that makes up the difference.
    """
    gram = (weight @ weight.T).double()
    gram += _LEAST * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    moved, order = torch.zeros_like(x), random.Random(seed).sample(range(len(x)), len(x))
    for part in range(_PARTS):
        rows = order[part::_PARTS]
        without = linear(x[rows], *refit(sorted(set(order) - set(rows))))
        moved[rows] = torch.linalg.solve(gram, (without - linear(x[rows], weight, bias)).double().T).T.float() @ weight
    return moved


def fit(x: Tensor, words: Words, seed: int) -> tuple[Tensor, Tensor]:
    """Weights (hidden, content) and bias (hidden,) from ``x`` (n, content) to the middle of words, as far from there as words are."""
    weight, bias = tell_apart(x, ridge(x, normalize(words.called @ words.directions, dim=-1)), words, seed)
    stretch = words.spread / linear(x, weight, bias).norm(dim=1).mean().clamp_min(1e-9)
    return stretch * weight, stretch * bias


def ridge(x: Tensor, directions: Tensor) -> Tensor:
    """(n, content), (n, hidden) → the (hidden, content) weights that predict the directions, in closed form."""
    x, y = x.double(), directions.double()
    gram = x.T @ x
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram, x.T @ y).T.float()


def tell_apart(x: Tensor, weight: Tensor, words: Words, seed: int) -> tuple[Tensor, Tensor]:
    """Weights and bias (hidden,) by which pictures come nearer to their own words than to others, from ``weight`` on.

    ``x`` is (n, content). How common a word is goes into a bias of the softmax, not into the pictures.
    """
    weight = (weight / linear(x, weight).norm(dim=1).mean().clamp_min(1e-9)).requires_grad_()
    bias, common = torch.zeros(len(weight), requires_grad=True), torch.zeros(len(words.directions), requires_grad=True)
    sharpness = torch.tensor(math.log(_SHARPNESS), requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias, common, sharpness], lr=_RATE, weight_decay=0.0)
    steps = max(_STEPS, _EPOCHS * math.ceil(len(x) / _BATCH))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = _RATE * min(1.0, 2 * (1 - step / steps))
            batch = torch.randint(len(x), (min(_BATCH, len(x)),))
            found = normalize(linear(dropout(x[batch], _DROP), weight, bias), dim=-1)
            logits = sharpness.exp() * found @ words.directions.T + common
            loss = -(words.called[batch] * logits.log_softmax(-1)).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return weight.detach(), bias.detach()
