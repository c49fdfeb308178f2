"""A real workspace that builds in seconds: drawn shapes, tiny random encoders, a tiny random language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pinhole import config
from pinhole.workspace import Workspace

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (200, 40, 40),
    "blue": (40, 60, 200),
    "green": (40, 160, 60),
    "yellow": (230, 200, 40),
    "black": (20, 20, 25),
    "pink": (240, 130, 180),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "vision": {"workers": 1},
    "align": {"steps": 6, "batch": 32, "dim": 16, "nested": [8, 16]},
    "graft": {"seeing_steps": 4, "talking_steps": 3, "checkpoint_steps": 2, "batch_rows": 1, "lora_rank": 2},
    "evaluate": {"n": 4, "conversations": 4},
}


def make_models(folder: Path) -> dict[str, str]:
    """Checkpoints on disk; gives the settings that name them."""
    from test_vision import tiny
    from toy_model import tiny_lm, tiny_tokenizer

    tiny.vit(folder / "see")
    tiny.bert(folder / "read")
    tokenizer = tiny_tokenizer()
    tiny_lm(len(tokenizer) + 5).save_pretrained(folder / "speak")
    tokenizer.save_pretrained(folder / "speak")
    return {"image_encoder": f"hf:{folder / 'see'}", "text_encoder": f"hf:{folder / 'read'}", "base": str(folder / "speak")}


def draw(shape: str, colour: str, number: int, path: Path) -> None:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (64, 64), (250 - number * 3, 250, 245))
    pen, box = ImageDraw.Draw(picture), (6 + number, 6, 50 + number, 50 + number)
    inside = COLOURS[colour]
    if shape == "circle":
        pen.ellipse(box, fill=inside)
    elif shape == "square":
        pen.rectangle(box, fill=inside)
    elif shape == "triangle":
        pen.polygon([(box[0], box[3]), (box[2], box[3]), (32, box[1])], fill=inside)
    elif shape == "cross":
        pen.line(box, fill=inside, width=9)
        pen.line((box[0], box[3], box[2], box[1]), fill=inside, width=9)
    else:
        pen.ellipse(box, outline=inside, width=8)
    picture.save(path)


def make_source(folder: Path, each: int = 4) -> Path:
    """``items.jsonl``, ``boards.jsonl`` and ``queries.jsonl`` of ``each`` pictures of every shape and colour, and one that is broken."""
    folder.mkdir(parents=True, exist_ok=True)
    items, boards, queries = [], [], []
    for shape in SHAPES:
        for colour in COLOURS:
            ids = []
            for number in range(each):
                id = f"{shape}-{colour}-{number}"
                draw(shape, colour, number, folder / f"{id}.png")
                title = f"{colour} {shape} number {number}" if number % 3 else ""
                items.append({"id": id, "image": f"{id}.png", "title": title, "category": f"{shape}s", "keywords": [f"{colour} {shape}"]})
                queries += [{"text": text, "item": id} for text in (f"{colour} {shape}", f"something {colour}", f"a {shape}")]
                ids.append(id)
            boards.append({"id": f"{shape}-{colour}", "title": f"{colour} {shape}s", "items": ids})
    (folder / "broken.png").write_bytes(b"no picture")
    items.append({"id": "broken", "image": "broken.png", "title": "a broken thing"})
    for kind, rows in (("items", items), ("boards", boards), ("queries", queries)):
        (folder / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def make_workspace(root: Path, source: Path, models: dict[str, str]) -> Workspace:
    from pinhole.catalogue.ingest import ingest
    from pinhole.catalogue.store import Catalogue

    settings = {section: dict(values) for section, values in SETTINGS.items()}
    settings["vision"] |= {key: models[key] for key in ("image_encoder", "text_encoder")}
    settings["graft"]["base"] = models["base"]
    workspace = Workspace.create(root, config.parse(settings, where="toy"))
    for kind in ("items", "boards", "queries"):
        ingest(Catalogue(workspace.tables), kind, source / f"{kind}.jsonl")
    return workspace
