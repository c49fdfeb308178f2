"""One self-contained HTML page: elements that escape what they hold, pictures as bounded data, conversations.

Every string is text until it is an :class:`Html`, so a title cannot become markup; the page runs no script,
loads nothing, and its own policy forbids both. Knows nothing of figures or of the catalogue: pictures come
through a function.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from pinhole.graft.prompt import NOTHING, RESULTS, parse_call

Thumbnail = Callable[[str], bytes | None]
PICTURE_BYTES = 60_000  # a larger thumbnail is left out
PAGE_BYTES = 12_000_000  # all pictures of a page together

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


class Html(str):
    """Markup that is safe to put into a page as it is."""


def text(value: Any) -> Html:
    """Anything as text: escaped, without control characters or tricks with the direction of writing."""
    return value if isinstance(value, Html) else Html(html.escape(_CONTROL.sub("\ufffd", str(value)), quote=True))


def el(tag: str, *children: Any, **attributes: Any) -> Html:
    """An element. ``class_="x"`` is ``class``; a child or attribute that is None is left out."""
    written = "".join(f' {name.rstrip("_").replace("_", "-")}="{text(value)}"' for name, value in attributes.items() if value is not None)
    if tag in ("img", "meta", "br"):
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Iterable[Any]) -> Html:
    return Html("".join(text(child) for child in children if child is not None))


def page(title: str, *body: Any) -> bytes:
    """A whole document in UTF-8."""
    style = Html(files("pinhole.evaluation").joinpath("page.css").read_text(encoding="utf-8"))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", style),
    )
    return ("<!doctype html>\n" + el("html", head, el("body", el("main", *body)), lang="en") + "\n").encode("utf-8", "replace")


# -- pictures -------------------------------------------------------------------------------------


class Album:
    """Pictures of one page. One that is missing, too large, no raster image or over the page's budget is a grey box."""

    def __init__(self, thumbnail: Thumbnail, budget: int = PAGE_BYTES) -> None:
        self._thumbnail, self._left = thumbnail, budget
        self._addresses: dict[str, str | None] = {}

    def picture(self, id: str) -> Html:
        if id not in self._addresses:
            self._addresses[id] = self._address(id)
        address = self._addresses[id]
        if address is None or len(address) > self._left:
            return el("span", "no picture", class_="nopicture", title=id)
        self._left -= len(address)
        return el("img", src=address, alt=id, title=id, loading="lazy", decoding="async")

    def _address(self, id: str) -> str | None:
        data = self._thumbnail(id)
        kind = raster(data) if data else None
        if not data or not kind or len(data) > PICTURE_BYTES:
            return None
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def raster(data: bytes) -> str | None:
    """The media type by the first bytes; None for anything that a browser might run."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)


# -- conversations --------------------------------------------------------------------------------

Part = str | Mapping[str, Any]


def turns(messages: Sequence[Mapping[str, Any]], album: Album) -> Html:
    """Messages (``role``, ``parts``: strings and ``{"item": id}``) as people see a conversation."""
    return join(_message(message["role"], message["parts"], album) for message in messages)


def _message(role: str, parts: Sequence[Part], album: Album) -> Html:
    plain = "".join(part for part in parts if isinstance(part, str))
    if role == "assistant":
        return el("div", said(plain), class_="turn assistant")
    if role == "system":
        return el("details", el("summary", "what the model was told first"), el("pre", plain), class_="turn system")
    found = plain.startswith((RESULTS, NOTHING))
    return el("div", *_blocks(parts, album, skip=RESULTS if found else ""), class_="turn found" if found else "turn user")


def _blocks(parts: Sequence[Part], album: Album, skip: str) -> Iterator[Html]:
    """Lines of words as bubbles, runs of lines with a picture as rows of tiles."""
    tiles: list[Html] = []
    words: list[str] = []
    for line in _lines(parts):
        ids = [part["item"] for part in line if not isinstance(part, str)]
        label = "".join(part if isinstance(part, str) else " " for part in line).strip()
        if ids:
            yield from _bubble(words)
            words = []
            number, _, title = label.partition(" ") if label.startswith("#") else ("", "", label)
            tiles += [_tile(id, number, title, album) for id in ids]
        elif label and label != skip:
            yield from _row(tiles)
            tiles = []
            words.append(label)
    yield from _row(tiles)
    yield from _bubble(words)


def _lines(parts: Sequence[Part]) -> Iterator[list[Part]]:
    line: list[Part] = []
    for part in parts:
        pieces: Sequence[Part] = part.split("\n") if isinstance(part, str) else [part]
        for number, piece in enumerate(pieces):
            if number:
                yield line
                line = []
            if piece:
                line.append(piece)
    yield line


def _bubble(words: Sequence[str]) -> Iterator[Html]:
    if words:
        yield el("p", "\n".join(words), class_="bubble")


def _row(tiles: Sequence[Html]) -> Iterator[Html]:
    if tiles:
        yield el("div", *tiles, class_="tiles")


def _tile(id: str, number: str, title: str, album: Album) -> Html:
    badge = el("b", number) if number else None
    return el("figure", album.picture(id), badge, el("figcaption", title) if title.strip() else None, class_="tile")


def said(answer: str) -> Html:
    """What a model said: a call as a chip, words as words."""
    call = parse_call(answer)
    if call is None:
        return el("span", answer if answer.strip() else "(nothing)", class_="words")
    name, arguments = call
    values = [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) for key, value in arguments.items()]
    return el("span", el("b", name), *(join([" ", el("i", key), " ", el("span", value)]) for key, value in values), class_="call")
