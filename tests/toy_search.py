"""A small shop whose pictures, titles, boards and queries agree: eight kinds of things, vectors drawn around each.

The features are written as the stage ``embed`` writes them; the text encoder is a sum of fixed random
vectors of words, so that "red boat" lies between "red" and "boat". No model, no picture is needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

KINDS = ("boat", "lemon", "horse", "arrow", "house", "guitar", "flower", "train")
COLOURS = ("red", "blue", "green", "black")
D_IMAGE, D_TEXT = 48, 24


def word(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(D_TEXT)


def encode(texts: list[str]) -> np.ndarray:
    out = np.stack([sum((word(one) for one in text.lower().split()), np.zeros(D_TEXT)) for text in texts]) if texts else np.zeros((0, D_TEXT))
    return (out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)).astype(np.float32)


@dataclass
class Toy:
    folder: Path
    catalogue: Any
    features: Any
    kinds: dict[str, str]
    colours: dict[str, str]
    config: Any

    @cached_property
    def text_encoder(self) -> Any:
        from pinhole.vision.encoders.base import TextEncoder

        return TextEncoder("toy:words", "t" * 16, D_TEXT, encode)

    @cached_property
    def asked(self) -> Any:
        from pinhole.vision.align import Asked

        texts = sorted(set(self.catalogue.queries()["text"].to_pylist()))
        return Asked(texts, encode(texts))


def make_toy(folder: Path, n: int = 320, seed: int = 0, align: dict[str, Any] | None = None) -> Toy:
    """Items ``KIND/NUMBER``; every fifth has no title, one has no picture. Boards by kind and by colour, queries by both."""
    from pinhole import config
    from pinhole.catalogue.store import Catalogue
    from pinhole.vision.features import Features

    draw = np.random.default_rng(seed)
    names, titles, kinds, colours = [], [], {}, {}
    for number in range(n):
        kind, colour = KINDS[number % len(KINDS)], COLOURS[int(draw.integers(len(COLOURS)))]
        id = f"{kind}/{number:04d}"
        names.append(id)
        kinds[id], colours[id] = kind, colour
        titles.append(
            "" if number % 5 == 4 else f"{colour} {kind} {'abcdefghijklmnopqrstuvwxyz'[number % 26]}{'klmnopqrstuvwxyz'[number // 26 % 16]}"
        )
    catalogue = Catalogue(folder / "tables")
    attributes = [{"category": kinds[id], "keywords": [colours[id]]} for id in names]
    catalogue.upsert("items", pa.table({"id": names, "title": titles, "category": [one["category"] for one in attributes]}))
    groups = {f"{kind}-{part}": [id for at, id in enumerate(names) if kinds[id] == kind and at % 3 == part] for kind in KINDS for part in range(3)}
    groups |= {
        f"{colour}-{part}": [id for at, id in enumerate(names) if colours[id] == colour and at % 3 == part] for colour in COLOURS for part in range(3)
    }
    catalogue.upsert("boards", pa.table({"id": list(groups), "title": list(groups), "items": list(groups.values())}))
    asked = [(text, id) for id in names for text in (kinds[id], colours[id], f"{colours[id]} {kinds[id]}", f"my {kinds[id]}")]
    catalogue.upsert("queries", pa.table({"text": [text for text, _ in asked], "item": [id for _, id in asked], "count": [1] * len(asked)}))
    features = write_features(folder / "features", sorted(names), dict(zip(names, titles, strict=True)), kinds, colours, draw)
    shares = {"held_out_items": 0.3, "held_out_boards": 0.3, "held_out_queries": 0.3}
    settings = config.parse({"catalogue": shares, "align": {"dim": 16, "nested": [8, 16], "steps": 40, "batch": 64, **(align or {})}}, where="toy")
    assert isinstance(features, Features)
    return Toy(folder, catalogue, features, kinds, colours, settings)


def write_features(
    folder: Path, ids: list[str], titles: dict[str, str], kinds: dict[str, str], colours: dict[str, str], draw: np.random.Generator
) -> Any:
    import pyarrow.parquet as pq

    from pinhole.vision.features import Features
    from pinhole.workspace import write_json

    looks = {name: draw.standard_normal(D_IMAGE) for name in (*KINDS, *COLOURS)}
    image = np.stack([looks[kinds[id]] + 0.6 * looks[colours[id]] + 1.5 * draw.standard_normal(D_IMAGE) for id in ids]).astype(np.float32) + 2
    has_image = np.ones(len(ids), dtype=bool)
    has_image[7] = False
    image[~has_image] = 0
    has_text = np.array([bool(titles[id]) for id in ids])
    text = encode([titles[id] for id in ids]) * has_text[:, None]
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", image)
    np.save(folder / "title.npy", text.astype(np.float32))
    hashes = [f"h{at}" if known else None for at, known in enumerate(has_text)]
    pq.write_table(
        pa.table(
            {
                "id": ids,
                "image": pa.array([hashlib.sha256(one.tobytes()).hexdigest() for one in image], pa.string()),
                "has_image": has_image,
                "title": pa.array(hashes, pa.string()),
                "text": pa.array(hashes, pa.string()),
            }
        ),
        folder / "rows.parquet",
    )
    write_json(folder / "rejected.json", [])
    encoders = {
        "image_encoder": {"spec": "toy:looks", "identity": "i" * 16, "dim": D_IMAGE},
        "text_encoder": {"spec": "toy:words", "identity": "t" * 16, "dim": D_TEXT},
    }
    write_json(folder / "features.json", {"layout": 1, "items": len(ids), **encoders})
    return Features.load(folder)


def as_workspace(toy: Toy) -> Any:
    """The toy as a built workspace in its own folder: embed, align and index as their stages leave them."""
    import shutil

    from pinhole.retrieval.index import build_index
    from pinhole.vision.align import save_array
    from pinhole.vision.heads import fit
    from pinhole.vision.signals import read_signals
    from pinhole.workspace import Workspace, write_json

    workspace = Workspace.create(toy.folder, toy.config)
    shutil.copytree(toy.folder / "features", workspace.start("embed", "e"), dirs_exist_ok=True)
    workspace.finish("embed", "e", {})
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    space = fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space
    aligned = workspace.start("align", "a")
    space.save(aligned)
    save_array(aligned / "queries.npy", toy.asked.vectors)
    write_json(aligned / "queries.json", toy.asked.texts)
    workspace.finish("align", "a", {})
    build_index(toy.catalogue, toy.features, space, toy.config, workspace.start("index", "i"), asked=toy.asked)
    workspace.finish("index", "i", {})
    return workspace
