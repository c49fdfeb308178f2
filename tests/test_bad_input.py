"""Everything that is wrong with a catalogue at once: each has a usable result or a row in ``rejected``, and the build goes on."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pinhole import config, wiring
from pinhole.catalogue.ingest import ingest
from pinhole.catalogue.store import Catalogue
from pinhole.stages import build
from pinhole.vision.features import Features
from pinhole.workspace import Workspace
from toy_workspace import COLOURS, SETTINGS, SHAPES, draw, make_models


def encoded(picture: Image.Image, format: str, **settings: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **settings)
    return out.getvalue()


def bomb(edge: int = 40_000) -> bytes:
    """A PNG of a few kilobytes that unfolds to 1.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(1 + edge // 8)) for _ in range(edge)) + packed.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pictures(good: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(those that can be used however odd, those that cannot)"""
    plain = Image.open(good).convert("RGB")
    grey, png, jpeg = np.asarray(plain)[..., 0].astype(np.uint16) * 257, encoded(plain, "PNG"), encoded(plain, "JPEG")
    frames = [plain.rotate(90 * turn) for turn in range(1, 4)]
    usable = {
        "animated.gif": encoded(plain, "GIF", save_all=True, append_images=frames),
        "cmyk.jpg": encoded(plain.convert("CMYK"), "JPEG"),
        "sixteen.png": encoded(Image.fromarray(grey), "PNG"),
        "wide.png": encoded(Image.new("RGB", (20_000, 40), "red"), "PNG"),
        "empty.png": encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), "PNG"),
    }
    corrupt = png[:60] + bytes(40) + png[100:]
    broken = {"corrupt.png": corrupt, "cut.jpg": jpeg[: len(jpeg) // 2], "cut.png": png[: len(png) // 2], "zero.png": b"", "bomb.png": bomb()}
    return usable, broken


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    models = make_models(tmp_path / "models")
    vision = {**SETTINGS["vision"], "image_encoder": models["image_encoder"], "text_encoder": models["text_encoder"]}
    return Workspace.create(tmp_path / "shop", config.parse({"vision": vision, "align": SETTINGS["align"]}, where="toy"))


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_a_catalogue_of_everything_that_is_wrong(workspace: Workspace, tmp_path: Path) -> None:
    good = [f"{shape}-{colour}" for shape in SHAPES for colour in COLOURS]
    for id in good:
        draw(*id.split("-"), 1, tmp_path / f"{id}.png")
    usable, broken = pictures(tmp_path / f"{good[0]}.png")
    for name, data in (usable | broken).items():
        (tmp_path / name).write_bytes(data)
    items: list[Any] = [{"id": id, "image": f"{id}.png", "title": id.replace("-", " "), "price": 3} for id in good]
    items += [{"id": name, "image": name, "title": f"a {name}"} for name in (usable | broken)]
    items += [{"id": "words", "title": "words alone"}, {"id": "silent", "image": f"{good[0]}.png"}, {"id": "nothing"}]
    items += [{"id": good[1], "image": f"{good[1]}.png", "title": "the same id"}, {"id": ""}, {"id": "gone", "image": "nowhere.png", "title": "gone"}]
    items += ['{"id": "nan", "title": "not a number", "price": NaN, "size": -Infinity}', "{broken", "[1]"]
    boards = [{"id": "known", "items": [*good[:8], "nobody"]}, {"id": "ghosts", "items": ["nobody"]}, {"id": "bad", "items": ["bomb.png", "nan"]}]
    queries = [{"text": text, "item": id} for id in good for text in ("красный", "青い", "أحمر", id)]
    queries += [{"text": "x", "item": "nobody"}, {"text": "", "item": good[0]}, {"text": "y", "item": good[0], "count": -1}]
    catalogue = Catalogue(workspace.tables)
    for kind, rows in (("items", items), ("boards", boards), ("queries", queries)):
        ingest(catalogue, kind, lines(tmp_path / f"{kind}.jsonl", rows))
    stages = ["embed", "align", "index", "tags"]
    assert {one.stage: one.action for one in build(workspace, ["tags", "index"])} == dict.fromkeys(stages, "built")

    reasons = {row["id"]: row["reason"] for row in catalogue.rejected().to_pylist() if row["source"] == "embed"}
    assert set(reasons) == {*broken, "gone"} and "pixels" in reasons["bomb.png"] and "zero bytes" in reasons["zero.png"]
    refused = [row["reason"] for row in catalogue.rejected().to_pylist() if row["source"] != "embed"]
    for words in ("same key", "no id", "JSON", "none is left", "unknown item `nobody`", "no text", "count"):
        assert any(words in reason for reason in refused), words
    features = Features.load(workspace.need("embed").path)
    seen = {id: bool(features.has_image[row]) for row, id in enumerate(features.ids)}
    assert set(seen) == {*good, *usable, *broken, "words", "silent", "nothing", "gone", "nan"}
    assert {id for id, has in seen.items() if has} == {*good, *usable, "silent"}
    assert np.isfinite(features.image).all()
    found = {hit.id for hit in wiring.open_searcher(workspace).search("青い", n=100)}
    assert found == set(seen) - {"nothing"}, "what has a picture or a title can be found, and nothing else"
    assert {one.action for one in build(workspace, ["tags", "index"])} == {"fresh"}
