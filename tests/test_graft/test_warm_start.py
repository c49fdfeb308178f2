from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from pinhole.graft.projector import Projector
from pinhole.graft.seeing import Seeing
from pinhole.graft.warm_start import Words, ridge, tell_apart, warm_start, words_of
from toy_model import tiny_graft
from toy_world import NAMES, tiny_world


def named(graft: Any, world: Any, pictures: list[int], strange: Any = None) -> float:
    """Share of pictures nearer to their own thing's name than to those of the other eight."""
    middle = words_of(graft, world).middle  # type: ignore[union-attr]
    names = normalize(torch.stack([graft.embedded(name) for name in NAMES]) - middle, dim=-1)
    projector = graft.projector
    with torch.no_grad():
        vectors = np.stack([strange[i] for i in pictures]) if strange else world.vectors[pictures]
        apart = projector.skip((torch.from_numpy(vectors) - projector.mean) * projector.scale) - middle
    nearest = (normalize(apart, dim=-1) @ names.T).argmax(1)
    return sum(world.pictures[i].keywords[0] == NAMES[at] for i, at in zip(pictures, nearest, strict=True)) / len(pictures)


def test_pictures_never_seen_lie_near_their_names() -> None:
    graft, world = tiny_graft(), tiny_world()
    assert named(graft, world, world.held) < 0.4
    assert warm_start(graft, world)["graft.warm_start"] > 0.9
    assert named(graft, world, world.held) > 0.9


def test_it_starts_as_long_as_a_word_and_as_far_from_the_middle() -> None:
    graft, world = tiny_graft(), tiny_world()
    warm_start(graft, world)
    words = words_of(graft, world)
    assert words is not None
    x = (torch.from_numpy(world.vectors[words.pictures]) - graft.projector.mean) * graft.projector.scale
    with torch.no_grad():
        apart = graft.projector.skip(x) - words.middle
        tokens = graft.projector(torch.from_numpy(world.vectors[words.pictures]))
    assert float(x.norm(dim=1).mean()) == pytest.approx(1.0, abs=0.1)
    assert float(apart.norm(dim=1).mean()) == pytest.approx(words.spread, rel=1e-3)
    length = graft.lm.get_input_embeddings().weight.pow(2).mean().sqrt()
    torch.testing.assert_close(tokens.pow(2).mean(-1).sqrt(), length.expand(len(tokens)).detach(), rtol=1e-3, atol=1e-3)


def test_what_is_held_out_is_not_looked_at() -> None:
    """Neither the vectors of held-out pictures nor the titles of held-out boards change anything."""
    graft, world = tiny_graft(), tiny_world()
    warm_start(graft, world)
    other, changed = tiny_graft(), tiny_world()
    for i in changed.held:
        changed.vectors[i] = 0
    changed.boards = [board for board in changed.boards if not board.held]
    warm_start(other, changed)
    assert torch.equal(graft.projector.skip.weight, other.projector.skip.weight)


def test_same_seed_same_start_and_no_other_randomness_is_touched() -> None:
    world, starts = tiny_world(), []
    for seed in (0, 0, 1):
        graft = tiny_graft()
        torch.manual_seed(5)
        warm_start(graft, world, seed)
        drawn = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(1))
        starts.append(graft.projector.skip.weight.detach().clone())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_too_few_pictures_with_words_leave_it_as_it_was() -> None:
    graft, world = tiny_graft(), tiny_world(9)
    before = graft.projector.skip.weight.detach().clone()
    assert warm_start(graft, world) == {} == world.strange
    assert torch.equal(before, graft.projector.skip.weight)


def test_strangers_look_as_the_unfitted_do() -> None:
    """Where a picture's own words can only be known by heart, those fitted to it are right and those that were not are not."""
    graft, world = tiny_graft(), tiny_world()
    rng = np.random.default_rng(0)
    world.vectors[:] = rng.standard_normal(world.vectors.shape)
    world.vectors[:, 0] = 5.0
    told = warm_start(graft, world)
    assert told["graft.warm_start.strange"] < 0.7 * told["graft.warm_start"]
    assert named(graft, world, world.train, world.strange) < 0.7 * named(graft, world, world.train)
    assert set(world.strange) == set(world.train), "whatever is held out was not fitted to"
    assert not any(np.allclose(vector, world.vectors[i]) for i, vector in world.strange.items())


def test_strangers_of_what_can_be_learned_keep_their_words() -> None:
    graft, world = tiny_graft(), tiny_world()
    told = warm_start(graft, world)
    assert told["graft.warm_start.strange"] > 0.9 * told["graft.warm_start"]
    assert told["graft.warm_start.n"] == len(world.strange) == len(world.train)


def test_lessons_show_strangers_by_their_share() -> None:
    world = tiny_world()
    i, other = world.train[:2]
    world.strange = {i: world.vectors[i] + 1}
    for share in (0.0, 0.5, 1.0):
        soft = Seeing(world, random.Random(0), strange=share).soft(i)
        np.testing.assert_allclose(soft.vector, world.vectors[i] + share, rtol=1e-5)
        np.testing.assert_array_equal(Seeing(world, random.Random(0), strange=share).soft(other).vector, world.vectors[other])
    assert len({Seeing(world, random.Random(0), strange=share).soft(i).key for share in (0.0, 0.5, 1.0)}) == 3


def test_a_word_that_most_pictures_share_does_not_hide_the_others() -> None:
    """Ridge regression predicts mostly what is common; telling apart finds the word that is a picture's own."""
    torch.manual_seed(0)
    n, things = 600, 6
    directions = normalize(torch.randn(things + 1, 32), dim=-1)  # the last word is everybody's
    thing = torch.arange(n) % things
    x = torch.cat([torch.randn(n, 20), 0.5 * torch.randn(things, 20)[thing]], 1) / 6
    called = torch.zeros(n, things + 1)
    called[torch.arange(n), thing], called[:, things] = 0.2, 0.8
    words = Words(list(range(n)), torch.zeros(32), directions, 1.0, called)
    x[:, 0] = 1.0

    def own(weight: torch.Tensor, bias: torch.Tensor) -> float:
        found = normalize(x @ weight.T + bias, dim=-1) @ directions[:things].T
        return float((found.argmax(1) == thing).float().mean())

    start = ridge(x, normalize(called @ directions, dim=-1))
    weight, bias = tell_apart(x, start, words, 0)
    assert own(weight, bias) >= own(start, torch.zeros(32))
    cosine = cosine_similarity(x @ weight.T + bias, directions[things].expand(n, 32))
    assert cosine.mean() < cosine_similarity(x @ start.T, directions[things].expand(n, 32)).mean()


def test_ridge_is_the_closed_form() -> None:
    torch.manual_seed(0)
    x, truth = torch.randn(400, 12), torch.randn(12, 20)
    found = x @ ridge(x, x @ truth).T
    assert cosine_similarity(found, x @ truth).min() > 0.99
    assert ridge(x, torch.randn(400, 20)).norm() < 0.2 * truth.norm()


def test_a_constant_feature_gives_no_infinity() -> None:
    content = torch.randn(50, 6)
    content[:, 2] = 1.0
    projector = Projector(6, 8, 16)
    projector.normalise(content)
    assert torch.isfinite(projector(content)).all()
