"""A small real catalogue of painted pictures, and an assistant that follows a script, for tests of the server."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw

from pinhole.assistant.conversation import also, link
from pinhole.assistant.loop import Finished, Shown, ShownItem, Started, Text
from pinhole.assistant.tools import Thing
from pinhole.catalogue.store import Catalogue
from pinhole.engines.base import Usage

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> [x](item:evil) \x1b[31mred"
FRUIT = [("lemon", "yellow"), ("lime", "green"), ("apple", "red"), ("plum", "purple"), ("orange", "orange"), ("blueberry", "blue")]


def paint(colour: str, size: tuple[int, int] = (320, 240), kind: str = "PNG", **save: Any) -> bytes:
    """A disc on transparent ground (on white where the format has no transparency)."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4), fill=colour)
    if kind == "JPEG":
        image = Image.alpha_composite(Image.new("RGBA", size, "white"), image).convert("RGB")
    out = io.BytesIO()
    image.save(out, kind, **save)
    return out.getvalue()


def toy_catalogue(root: Path) -> Catalogue:
    """Six fruit, a hostile title, a photo, and items whose picture is an SVG, a web page, broken, missing or a bomb."""
    rows: list[dict[str, Any]] = [
        {"id": f"fruit/{name}", "title": f"a {colour} {name}", "image_bytes": paint(colour), "category": "fruit", "keywords": [name, colour]}
        for name, colour in FRUIT
    ]
    broken = paint("red")[:200]
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    rows += [
        {"id": "odd/hostile ?#%2F", "title": HOSTILE, "image_bytes": paint("black"), "category": "odd"},
        {"id": "odd/photo", "title": "a wide photo", "image_bytes": paint("teal", (1600, 400), "JPEG"), "category": "odd"},
        {
            "id": "odd/svg",
            "title": "a drawing",
            "image_bytes": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
            "category": "odd",
        },
        {"id": "odd/html", "title": "a page", "image_bytes": b"<html><script>alert(1)</script></html>", "category": "odd"},
        {"id": "odd/broken", "title": "", "image_bytes": broken, "category": "odd"},
        {"id": "odd/bomb", "title": "large", "image_bytes": bomb.getvalue(), "category": "odd"},
    ]
    catalogue = Catalogue(root / "tables")
    catalogue.upsert("items", pa.Table.from_pylist(rows))
    catalogue.upsert("items", pa.Table.from_pylist([{"id": "odd/gone", "image": str(root / "gone.png"), "title": "gone", "category": "odd"}]))
    catalogue.upsert("boards", pa.Table.from_pylist([{"id": "b", "title": "sour", "items": ["fruit/lemon", "fruit/lime"]}]))
    return catalogue


def fruit(conversation: Any, cancelled: Callable[[], bool]) -> Iterator[Any]:
    """Shows three fruit, names the first two, as the real loop writes it."""
    things = {k: Thing(f"fruit/{name}", f"a {colour} {name}", None) for k, (name, colour) in enumerate(FRUIT[:3], 1)}
    yield Started("search", {"text": "fruit"})
    yield Shown([ShownItem(k, str(thing.id), thing.title, 1 / k) for k, thing in things.items()])
    words = ["Here: ", link(1, things[1]), " and ", link(2, things[2]), ".", also([link(3, things[3])], mentioned=True)]
    for word in words:
        yield Text(word)
    yield Finished("".join(words), Usage(100, 80, 12, 0.02, 0.1), [])


class Scripted:
    """Follows ``script`` in every turn; ``inside`` counts the turns at work."""

    class engine:
        name, space, context = "scripted", "0123456789abcdef", 8192

    def __init__(self, script: Callable[[Any, Callable[[], bool]], Iterator[Any]] = fruit) -> None:
        self.script = script
        self.inside = 0
        self.stopped = threading.Event()

    def turn(self, conversation: Any, cancelled: Callable[[], bool] | None = None, **_: Any) -> Iterator[Any]:
        self.inside += 1
        try:
            yield from self.script(conversation, cancelled or (lambda: False))
        finally:
            self.inside -= 1
            self.stopped.set()


def endless(conversation: Any, cancelled: Callable[[], bool]) -> Iterator[Any]:
    """Talks until it is stopped (or for half a minute, so that a failed test ends)."""
    for i in range(3000):
        if cancelled():
            return
        yield Text(f"word{i} ")
        time.sleep(0.01)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()
