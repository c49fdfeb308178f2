"""A base's own eyes: loaded alone they see what they saw in the whole, and a projector that starts at them is near them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from pinhole.config import Config, GraftConfig
from pinhole.errors import BadImage, UsageError
from pinhole.graft.base import files_read
from pinhole.graft.shards import Shards
from pinhole.graft.surgery import FAMILIES, plain_name
from pinhole.graft.tower import Tower, tower_at_hand, tower_start
from pinhole.graft.train import new_graft, start
from pinhole.vision.images import decode
from test_graft.test_surgery import in_two
from tiny_vlms import PROCESSORS, save_vlm
from toy_world import NAMES, tiny_world

CPU = torch.device("cpu")


def save(family: str, folder: Path) -> Any:
    vlm = save_vlm(family, folder)
    name, settings = PROCESSORS[family]
    getattr(transformers, name)(**settings).save_pretrained(folder)
    return vlm.set_attn_implementation("sdpa") or vlm


def picture(id: str) -> bytes:
    """Each of the nine things has a colour; a little noise."""
    number = int(id.partition("/")[2])
    rng = np.random.default_rng(number)
    colour = np.random.default_rng(number % len(NAMES) + 1000).integers(0, 255, 3)
    pixels = np.clip(colour + rng.integers(-20, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_they_see_what_they_saw_in_the_whole(family: str, tmp_path: Path) -> None:
    vlm = save(family, tmp_path)
    in_two(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    tower = Tower(tmp_path, torch.float32, CPU)
    pixels = decode(picture("item/3"), 56)
    whole = Tower.__new__(Tower)
    whole.model, whole.processor, whole.takes = vlm, tower.processor, tower.takes
    assert torch.equal(tower.tokens(pixels), whole.tokens(pixels)) and tower.tokens(pixels).shape[1] == 48
    assert sum(p.numel() for p in tower.model.parameters()) < sum(p.numel() for p in vlm.parameters())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save("qwen3_vl", tmp_path / "vlm")
    return tmp_path / "vlm"


def of(base: Path, **settings: Any) -> GraftConfig:
    return GraftConfig(base=str(base), dtype="float32", **settings)


def test_the_projector_starts_where_the_eyes_put_a_picture(base: Path) -> None:
    world = tiny_world()
    graft = new_graft(world, of(base))
    figures = start(graft, world, Config(graft=of(base)), picture)
    assert figures["graft.warm_start.tower.n"] == len(world.train) == len(world.strange)
    assert figures["graft.warm_start.tower"] > 0.5, "pictures of one thing look alike to both, and others were fitted"
    tower = Tower(base, torch.float32, CPU)
    seen = [tower.tokens(decode(picture(world.pictures[i].id), 224)) for i in world.held]
    soft = graft.soft_tokens([world.soft(i) for i in world.held]).detach()
    torch.testing.assert_close(soft.pow(2).mean(1).sqrt(), torch.full((len(soft),), float(graft.projector.length.detach())), rtol=1e-3, atol=0)
    assert float(graft.projector.length.detach()) == pytest.approx(float(torch.cat(seen).pow(2).mean().sqrt()), rel=0.1)
    means = torch.nn.functional.normalize(torch.stack([tokens.mean(0) for tokens in seen]), dim=1)
    middle = means.mean(0)
    near = torch.nn.functional.normalize(soft, dim=1) - middle
    own = torch.nn.functional.cosine_similarity(near, means - middle, dim=1).mean()
    other = torch.nn.functional.cosine_similarity(near, (means - middle).roll(1, 0), dim=1).mean()
    assert own > 0.5 > other, "of pictures that it was not fitted to"


def test_the_start_is_a_function_of_the_seed(base: Path) -> None:
    worlds, weights = [tiny_world(), tiny_world()], []
    for world in worlds:
        graft = new_graft(world, of(base))
        tower_start(graft, world, base, picture, seed=3)
        weights.append(graft.projector.skip.weight)
    assert torch.equal(*weights)
    assert all(np.array_equal(vector, worlds[1].strange[i]) for i, vector in worlds[0].strange.items())


def test_pictures_that_cannot_be_read_are_passed_over(base: Path) -> None:
    def some(id: str) -> bytes:
        if int(id.partition("/")[2]) % 2:
            raise BadImage("gone")
        return picture(id)

    def none(id: str) -> bytes:
        raise BadImage("gone")

    world = tiny_world()
    graft = new_graft(world, of(base))
    assert tower_start(graft, world, base, some)["graft.warm_start.tower.n"] < len(world.train)
    assert "graft.warm_start" in start(graft, world, Config(graft=of(base)), none), "then words do"


@pytest.mark.parametrize("lost", ["preprocessor_config.json", "model-2.safetensors"])
def test_what_is_at_hand(lost: str, base: Path) -> None:
    in_two(base)
    assert tower_at_hand(of(base)) == tower_at_hand(of(base, warm_start="tower")) == base
    assert tower_at_hand(of(base, warm_start="words")) is None
    eyes = base / "model-2.safetensors"
    assert eyes in files_read(base, "auto") and eyes not in files_read(base, "words")
    (base / lost).unlink()
    assert tower_at_hand(of(base)) is None and eyes not in files_read(base, "auto")
    with pytest.raises(UsageError, match=r"has no vision tower.*\[graft\] warm_start.*words"):
        tower_at_hand(of(base, warm_start="tower"))


def test_a_tower_with_a_tensor_missing_is_refused(base: Path) -> None:
    in_two(base)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.visual.merger.norm.weight"]
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"1 missing: model\.visual\.merger\.norm\.weight"):
        Tower(base, torch.float32, CPU)


def test_of_the_language_model_nothing_is_read(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    honest: Callable[[Shards, str], Any] = Shards.read
    monkeypatch.setattr(Shards, "read", lambda self, name: read.append(name) or honest(self, name))  # type: ignore[func-returns-value]
    Tower(base, torch.float32, CPU)
    assert read and all(plain_name(name) is None for name in read)
