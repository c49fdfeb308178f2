"""Tuning the image encoder: what learns and what does not, merged = unmerged, resumed = undisturbed, and everything downstream follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pinhole import config as configuration
from pinhole.config import TuneConfig
from pinhole.errors import ConfigError, MissingArtefact
from pinhole.vision import tune
from pinhole.vision.encoders import ImageEncoder, image_encoder, tuned
from pinhole.vision.unfreeze import Kept, Unfrozen
from pinhole.workspace import read_json
from test_vision import tiny
from toy_workspace import make_source, make_workspace

CLASSES = [tiny.clip, tiny.siglip, tiny.siglip2, tiny.dinov2, tiny.vit]
ONE_BLOCK = {"blocks": 1, "lora_rank": 2}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINHOLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pixels(n: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def shaken(unfrozen: Unfrozen, steps: int = 4) -> None:
    """A few steps of gradient descent towards nothing in particular."""
    descent = torch.optim.Adam(unfrozen.trained, lr=0.02)
    for _ in range(steps):
        descent.zero_grad()
        unfrozen.see(pixels(6)).square().mean().backward()
        descent.step()


# -- what learns --------------------------------------------------------------------------------


@pytest.mark.parametrize("unfreeze", ["lora", "full"])
@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
def test_only_the_intended_weights_change_and_come_back_from_disk(make: Callable[[Path], Any], unfreeze: Any, tmp_path: Path) -> None:
    make(tmp_path / "open")
    encoder = image_encoder(f"hf:{tmp_path / 'open'}")
    unfrozen = Unfrozen(tuned.tunable(encoder), TuneConfig(unfreeze=unfreeze, **ONE_BLOCK))
    before = {name: weight.detach().clone() for name, weight in unfrozen.network.named_parameters()}
    with torch.no_grad():
        assert np.allclose(unfrozen.see(pixels(3)), encoder.encode(pixels(3).numpy()), atol=1e-5)
    shaken(unfrozen)
    changed = {name for name, weight in unfrozen.network.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and changed <= set(unfrozen.named)
    if unfreeze == "lora":
        assert all("lora_" in name and "vision_model" in name or make in (tiny.dinov2, tiny.vit) for name in changed)
    assert not any("text" in name or ".0." in name for name in changed)  # the first of two blocks, and the text side, stand still

    with torch.no_grad():
        unmerged = unfrozen.see(pixels(4)).numpy()
        unfrozen.settle([weight.detach().clone() for weight in unfrozen.trained])
        merged = unfrozen.see(pixels(4)).numpy()
    assert np.allclose(unmerged, merged, atol=1e-5)
    tuned.write(unfrozen.tunable, encoder, tmp_path / "tuned")
    again = image_encoder(f"tuned:{tmp_path / 'tuned'}")
    assert np.allclose(again.encode(pixels(4).numpy()), merged, atol=1e-4)
    assert not np.allclose(merged, encoder.encode(pixels(4).numpy()), atol=1e-4)
    assert again.identity != encoder.identity and again.recipe == encoder.recipe and again.dim == encoder.dim


def test_a_pooler_that_was_never_saved_is_not_saved_now(tmp_path: Path) -> None:
    tiny.vit(tmp_path / "open", pooler=False)
    encoder = image_encoder(f"hf:{tmp_path / 'open'}")
    unfrozen = Unfrozen(tuned.tunable(encoder), TuneConfig(unfreeze="full", blocks=0))
    assert not any("pooler" in name for name in unfrozen.named)
    tuned.write(unfrozen.tunable, encoder, tmp_path / "tuned")
    assert np.allclose(image_encoder(f"tuned:{tmp_path / 'tuned'}").encode(pixels(4).numpy()), encoder.encode(pixels(4).numpy()), atol=1e-6)


def test_share_goes_part_of_the_way(tmp_path: Path) -> None:
    tiny.dinov2(tmp_path)
    for unfreeze in ("lora", "full"):
        ends = {}
        for share in (1.0, 0.5):
            encoder = image_encoder(f"hf:{tmp_path}")
            unfrozen = Unfrozen(tuned.tunable(encoder), TuneConfig(unfreeze=unfreeze, share=share, **ONE_BLOCK))
            begin = {key: value.clone() for key, value in tuned.tunable(encoder).network.state_dict().items()}
            shaken(unfrozen)
            unfrozen.settle([weight.detach().clone() for weight in unfrozen.trained])
            ends[share] = {key: value - begin[key] for key, value in unfrozen.network.state_dict().items() if key in begin}
        assert max(float(one.abs().max()) for one in ends[1.0].values()) > 1e-4
        assert all(torch.allclose(ends[0.5][key], ends[1.0][key] / 2, atol=1e-6) for key in ends[1.0])


@pytest.mark.parametrize("unfreeze", ["lora", "full"])
def test_the_default_network_learns_in_its_last_blocks_from_kept_activations(unfreeze: Any, tmp_path: Path) -> None:
    encoder = image_encoder("pypi:efficientnet-lite0")
    unfrozen = Unfrozen(tuned.tunable(encoder), TuneConfig(unfreeze=unfreeze, blocks=2, lora_rank=2))
    shown = pixels(5, 224)
    assert unfrozen.tunable.lower is not None
    kept = Kept(unfrozen.tunable.lower(2), lambda rows: shown[rows], np.arange(5), tmp_path / "lower", lambda done, total: None)
    with torch.no_grad():
        assert np.allclose(unfrozen.see(kept(np.array([3, 1]))), encoder.encode(shown[[3, 1]].numpy()), atol=0.02)
    before = {name: value.clone() for name, value in unfrozen.network.state_dict().items()}
    descent = torch.optim.Adam(unfrozen.trained, lr=1e-3)
    for _ in range(2):
        unfrozen.see(kept(np.arange(5))).square().mean().backward()
        descent.step()
    changed = {name for name, value in unfrozen.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(unfrozen.named) and not any("_bn" in name for name in changed)
    assert {name.split(".")[1] for name in changed if "_blocks" in name} == {"14", "15"}
    with torch.no_grad():
        unmerged = unfrozen.see(kept(np.arange(5)))
        unfrozen.settle([weight.detach().clone() for weight in unfrozen.trained])
        assert torch.allclose(unfrozen.see(kept(np.arange(5))), unmerged, atol=1e-4)
        whole = unfrozen.tunable.upper(0)(shown).numpy()
    tuned.write(unfrozen.tunable, encoder, tmp_path / "tuned")
    again = image_encoder(f"tuned:{tmp_path / 'tuned'}")
    assert np.allclose(again.encode(shown.numpy()), whole, atol=1e-4) and again.identity != encoder.identity


def test_a_killed_run_keeps_the_activations_that_it_had(tmp_path: Path) -> None:
    seen: list[int] = []

    def pictures(rows: np.ndarray) -> torch.Tensor:
        seen.extend(rows.tolist())
        return torch.from_numpy(rows).float()[:, None]

    rows = np.arange(100, 1700, 1)
    first = Kept(lambda one: one, pictures, rows, tmp_path, lambda done, total: None)
    assert seen == rows.tolist() and first(np.array([1600, 100]))[:, 0].tolist() == [1600, 100]
    (tmp_path / "0000000512.npy").unlink()
    seen.clear()
    Kept(lambda one: one, pictures, rows, tmp_path, lambda done, total: None)
    assert seen == rows[512:1024].tolist()


# -- the stage ----------------------------------------------------------------------------------

SETTINGS = {"unfreeze": "full", "steps": 6, "batch": 16, "chunk": 64, "blocks": 1, "learning_rate": 1e-3, "lora_rank": 2}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A toy catalogue with tiny encoders; nothing is built."""
    folder = tmp_path_factory.mktemp("tune")
    tiny.dinov2(folder / "see")
    tiny.bert(folder / "read")
    models = {"image_encoder": f"hf:{folder / 'see'}", "text_encoder": f"hf:{folder / 'read'}", "base": "none"}
    return make_workspace(folder / "shop", make_source(folder / "source"), models)


def tuned_with(shop: Any, out: Path, **settings: Any) -> dict[str, float]:
    from pinhole.catalogue.store import Catalogue

    shares = {"held_out_items": 0.3, "held_out_boards": 0.3, "held_out_queries": 0.3}
    config = configuration.parse({**shop.config.model_dump(mode="json"), "tune": {**SETTINGS, **settings}, "catalogue": shares}, where="test")
    out.mkdir(parents=True, exist_ok=True)
    return tune.build_tune(Catalogue(shop.tables), config, out)


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("unfreeze", ["lora", "full"])
def test_the_loss_falls(shop: Any, tmp_path: Path, unfreeze: str) -> None:
    settings = {"unfreeze": unfreeze, "steps": 30, "learning_rate": 3e-3, "blocks": 0, "heads_learning_rate": 1e-9}
    tuned_with(shop, tmp_path, **settings)  # the heads stand still: what falls, falls by the encoder
    losses = [point["loss"] for point in read_json(tmp_path / "curve.json")]
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.1
    assert {path.name for path in tmp_path.iterdir()} == {"curve.json", "encoder"}  # what else there was is gone


@pytest.mark.parametrize("unfreeze", ["lora", "full"])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfreeze: str) -> None:
    tuned_with(shop, tmp_path / "calm", unfreeze=unfreeze)
    monkeypatch.setattr(tune, "CHECKPOINT_STEPS", 2)
    advance, begun = tune.Tuning.advance, list[int]()

    class Killed(Exception):
        pass

    def noted(self: Any) -> None:
        if self.step == 5 and 5 not in begun:
            begun.append(5)
            raise Killed
        begun.append(self.step)
        advance(self)

    monkeypatch.setattr(tune.Tuning, "advance", noted)
    with pytest.raises(Killed):
        tuned_with(shop, tmp_path / "killed", unfreeze=unfreeze)
    tuned_with(shop, tmp_path / "killed", unfreeze=unfreeze)
    assert begun == [0, 1, 2, 3, 4, 5, 4, 5]  # on from the checkpoint of step 4
    assert weights(tmp_path / "killed") == weights(tmp_path / "calm")


def test_a_batch_in_pieces_has_the_gradient_of_the_whole(shop: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tuned_with(shop, tmp_path / "whole", chunk=1000, steps=2)
    tuned_with(shop, tmp_path / "pieces", chunk=7, steps=2)
    pieces = load_file(tmp_path / "pieces" / "encoder" / "model.safetensors")
    for name, value in load_file(tmp_path / "whole" / "encoder" / "model.safetensors").items():
        assert torch.allclose(value, pieces[name], atol=2e-5), name
    curves = [read_json(tmp_path / name / "curve.json") for name in ("whole", "pieces")]
    assert np.allclose(*([point["loss"] for point in curve] for curve in curves), atol=1e-3)


def test_nothing_held_out_is_seen(shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pinhole.catalogue.split import Split

    seen: set[str] = set()
    asked: set[str] = set()
    look, begin = tune.Pictures.__call__, tune.Tuning.__init__

    def noted(self: Any, rows: np.ndarray) -> torch.Tensor:
        seen.update(self.ids[row] for row in rows)
        return look(self, rows)

    def noting(self: Any, material: Any, *rest: Any) -> None:
        asked.update(query.key for query in material.signals.queries)
        begin(self, material, *rest)

    monkeypatch.setattr(tune.Pictures, "__call__", noted)
    monkeypatch.setattr(tune.Tuning, "__init__", noting)
    tuned_with(shop, tmp_path, steps=10, batch=64)
    from pinhole.catalogue.store import Catalogue
    from pinhole.config import CatalogueConfig

    split = Split(CatalogueConfig(held_out_items=0.3, held_out_boards=0.3, held_out_queries=0.3))
    rows = Catalogue(shop.tables).items(["id", "title"]).to_pylist()
    held = {row["id"] for row in rows if split.item(row)}
    texts = set(Catalogue(shop.tables).queries()["text"].to_pylist())
    assert held and not seen & held and len(seen) > 40
    assert asked and asked < texts and not any(split.query(text) for text in asked)


def test_everything_downstream_follows(shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from pinhole.stages import build
    from pinhole.vision.align import Space
    from pinhole.vision.features import Features
    from pinhole.workspace import Workspace

    root = tmp_path / "shop"
    shutil.copytree(shop.root, root)
    shutil.copytree(shop.root.parent / "source", tmp_path / "source")
    assert [one.stage for one in build(Workspace.open(root), ["align"])] == ["embed", "align"]
    plain = Space.load(Workspace.open(root).need("align").path)
    Workspace.open(root).change({f"tune.{name}": value for name, value in SETTINGS.items()})
    outcomes = build(Workspace.open(root), ["align"])
    assert [(one.stage, one.action) for one in outcomes] == [("tune", "built"), ("embed", "built"), ("align", "built")]
    assert "tune was rebuilt" in outcomes[1].reason
    opened = Workspace.open(root)
    space, features = Space.load(opened.need("align").path), Features.load(opened.need("embed").path)
    assert space.identity != plain.identity and features.image_encoder.identity != plain.image_encoder.identity
    see = image_encoder(features.image_spec)
    id = features.ids[int(np.flatnonzero(features.has_image)[0])]
    from pinhole.catalogue.store import Catalogue

    assert np.allclose(see.encode_bytes([Catalogue(opened.tables).image(id)])[0], features.image[features.row(id)], atol=1e-4)
    assert {one.action for one in build(Workspace.open(root), ["align"])} == {"fresh"}

    Workspace.open(root).change({"align.steps": 7})  # what the heads do is no reason to tune again
    assert [one.action for one in build(Workspace.open(root), ["align"])] == ["fresh", "fresh", "built"]
    root.rename(tmp_path / "moved")
    assert image_encoder(Features.load(Workspace.open(tmp_path / "moved").need("embed").path).image_spec).identity == see.identity
    Workspace.open(tmp_path / "moved").change({"tune.unfreeze": "no", "align.steps": 6})
    assert [one.action for one in build(Workspace.open(tmp_path / "moved"), ["align"])][0] == "reused"


# -- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"tune": {"unfreeze": "all"}}, "tune.unfreeze"),
        ({"tune": {"share": 0}}, "tune.share"),
        ({"tune": {"blocks": -1}}, "tune.blocks"),
        ({"tune": {"unfreeze": "full"}, "evaluate": {"splits": 5}}, "has seen what other splits hold out"),
    ],
)
def test_wrong_settings_are_named(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configuration.parse(sections, where="test")


def test_more_blocks_than_there_are(shop: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 2"):
        tuned_with(shop, tmp_path, blocks=3)


def test_an_encoder_without_gradients_is_refused_before_anything_runs(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pinhole.stages import build
    from pinhole.vision import encoders
    from pinhole.vision.images import Recipe
    from pinhole.workspace import Workspace

    mean = ImageEncoder("colours:mean", "0" * 16, Recipe(8), 3, lambda pixels: pixels.mean((1, 2)).astype(np.float32))
    monkeypatch.setitem(encoders.IMAGE, "colours", lambda name: mean)
    config = shop.config.model_copy(
        update={"vision": shop.config.vision.model_copy(update={"image_encoder": "colours:mean"}), "tune": TuneConfig(unfreeze="lora")}
    )
    with pytest.raises(ConfigError, match="colours:mean.*cannot be tuned.*pypi:efficientnet-lite0"):
        build(Workspace(shop.root, config), ["embed"])


def test_a_tuned_encoder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="pinhole build"):
        image_encoder(f"tuned:{tmp_path}")
