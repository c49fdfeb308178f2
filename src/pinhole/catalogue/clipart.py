"""The openclipart sample: drawings as PNG files, their words in SVG twins.

Two rules, stated here and in docs/catalogue.md. *Duplicates*: of files with the same bytes the first by
path is the item; the folders and keywords of the others count for it too. *Series*: where more than
100 pictures of a folder differ in name only by digits, 40 of them are kept, evenly spread.
Titles are blanked by the rules of ``titles``; the item stays. Knows nothing of Lance or downloads.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.parsers import expat

import pyarrow as pa

from pinhole.catalogue import records, titles
from pinhole.catalogue.values import as_object, dumps
from pinhole.errors import DownloadError

SERIES, SERIES_KEPT = 100, 40
BOARD_LEAST, WORKS_MOST = 3, 200
LIBRARY = "Open Clip Art Library"
# Keywords that say how the file was made or filed, not what it shows.
JUNK = {"hash", "unsorted", "clip art", "clipart", "clip", "art", "externalsource", "external source", "svg", "png", "eps", "vector"}
JUNK |= {"image", "images", "picture", "graphic", "graphics", "drawing", "public domain", "openclipart"}
_NOT_TEXT = re.compile(r"@|hash\(0x", re.IGNORECASE)  # addresses, and what a broken export left of some words


@dataclass
class Drawing:
    """One distinct picture, with what every copy of it says."""

    id: str
    path: Path
    title: str = ""
    description: str = ""
    creator: str = ""
    licence: str = ""
    date: datetime | None = None
    keywords: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def read(folder: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, pa.Table]:
    """Tables of items, boards, queries and events from the packages' ``png`` and ``svg`` folders.

    Raises :class:`DownloadError` where the folder holds no pictures.
    """
    root = folder / "usr/share/openclipart"
    files = sorted((root / "png").rglob("*.png"), key=lambda path: path.relative_to(root).as_posix())
    if not files:
        raise DownloadError("no pictures in the openclipart packages", where=str(root), fix="delete that folder and run the command again")
    drawings = _drawings(root, files, progress)
    drawings = _thin(drawings)
    found = titles.informative({d.id: d.title for d in drawings}, {d.id: d.creator for d in drawings})
    for drawing in drawings:
        drawing.title = found[drawing.id]
    return {"items": _items(drawings), "boards": _boards(drawings), "queries": _queries(drawings), "events": _events(drawings)}


def _drawings(root: Path, files: list[Path], progress: Callable[[int, int], None] | None) -> list[Drawing]:
    seen: dict[bytes, Drawing] = {}
    for number, path in enumerate(files):
        place = path.relative_to(root / "png").with_suffix("")
        key = hashlib.sha256(path.read_bytes()).digest()
        words = metadata((root / "svg" / place).with_suffix(".svg"))
        drawing = seen.get(key)
        if drawing is None:
            drawing = seen[key] = Drawing(place.as_posix(), path)
            drawing.title, drawing.description = words.get("title", ""), words.get("description", "")
            drawing.creator, drawing.date = titles.person(words.get("creator", "")), _date(words.get("date", ""))
            drawing.licence = "public domain" if "publicdomain" in words.get("licence", "publicdomain").lower() else words["licence"]
        drawing.keywords += [word for word in _keywords(words.get("keywords", ""), drawing.creator) if word not in drawing.keywords]
        drawing.folders.append(place.parent.as_posix())
        if progress is not None and number % 200 == 0:
            progress(number, len(files))
    spelled: dict[str, Counter[str]] = defaultdict(Counter)
    for drawing in seen.values():
        spelled[drawing.creator.casefold()][drawing.creator] += 1
    for drawing in seen.values():  # "PeterM" and "peterm" are one person: the commoner spelling
        drawing.creator = min(spelled[drawing.creator.casefold()].items(), key=lambda entry: (-entry[1], entry[0]))[0]
    return list(seen.values())


def _thin(drawings: list[Drawing]) -> list[Drawing]:
    series: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        series[re.sub(r"\d+", "0", drawing.id)].append(drawing)
    dropped: set[str] = set()
    for members in series.values():
        if len(members) > SERIES:
            kept = {members[i * len(members) // SERIES_KEPT].id for i in range(SERIES_KEPT)}
            dropped |= {drawing.id for drawing in members} - kept
    return [drawing for drawing in drawings if drawing.id not in dropped]


# -- the SVG's metadata -----------------------------------------------------------------------------


class _Enough(Exception):
    """The metadata ended; the drawing itself is of no interest."""


def metadata(path: Path) -> dict[str, str]:
    """Dublin Core words of an SVG: title, description, creator, date, licence, keywords (one a line).

    Entities that the file declares are never expanded, nothing external is read, parsing stops with the
    metadata. A file that is no XML gives what was read before the fault.
    """
    words: dict[str, list[str]] = defaultdict(list)
    stack: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        stack.append(name)
        if name == "cc:license" and "cc:Work" in stack:
            words["licence"].append(attributes.get("rdf:resource", ""))

    def end(name: str) -> None:
        stack.pop()
        if name == "metadata":
            raise _Enough
        if name == "rdf:li":
            words["keywords"].append("\n")

    def text(data: str) -> None:
        inside = stack[stack.index("cc:Work") + 1 :] if "cc:Work" in stack else []
        if inside in (["dc:title"], ["dc:description"], ["dc:date"]):
            words[inside[0][3:]].append(data)
        elif inside[:1] == ["dc:creator"] and inside[-1] == "dc:title":
            words["creator"].append(data)
        elif inside[-1:] == ["rdf:li"]:
            words["keywords"].append(data)

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.DefaultHandler = lambda data: None  # with a default handler set, declared entities are not expanded
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    try:
        with open(path, "rb") as file:
            parser.ParseFile(file)
    except (_Enough, expat.ExpatError, OSError):
        pass
    return {name: html.unescape("".join(parts)).strip() for name, parts in words.items()}


def _keywords(text: str, creator: str) -> list[str]:
    """Clean, in order, each once: no junk, no numbers, not the creator's name."""
    out = []
    for line in text.splitlines():
        word = re.sub(r"[\s_]+", " ", line).strip().lower()
        if len(word) > 1 and re.search(r"[^\W\d_]{2}", word) and word not in JUNK and word != creator.lower() and not _NOT_TEXT.search(word):
            out.append(word)
    return list(dict.fromkeys(out))


def _date(text: str) -> datetime | None:
    for form in ("%Y/%m/%d", "%Y-%m-%d", "%m/%d/%Y", "%d %m %Y", "%B %Y", "%d.%m.%Y", "%Y"):
        try:
            return datetime.strptime(text.strip(), form).replace(tzinfo=UTC)
        except ValueError:
            continue
    return None


# -- tables -----------------------------------------------------------------------------------------


def _items(drawings: list[Drawing]) -> pa.Table:
    rows = []
    for d in drawings:
        top, _, _ = d.folders[0].partition("/")
        found: dict[str, Any] = {"folder": d.folders[0], "keywords": d.keywords, "creator": d.creator, "licence": d.licence, "source": "openclipart"}
        if top != "unsorted":
            found["category"] = top
        found["attribution"] = f"{d.creator or 'unknown artist'}, {LIBRARY}, {d.licence}"
        about = titles.description(d.description, d.title)
        row = {"id": d.id, "image": str(d.path), "title": d.title, "description": about, "created_at": d.date}
        rows.append({**row, "attributes": dumps(as_object(found))})
    return pa.Table.from_pylist(rows, schema=pa.schema([f for f in records.ITEMS if f.name != "image_bytes"]))


def _boards(drawings: list[Drawing]) -> pa.Table:
    """Folders, and creators' works; three items at least."""
    folders: dict[str, list[str]] = defaultdict(list)
    works: dict[str, list[str]] = defaultdict(list)
    for d in drawings:
        for folder in dict.fromkeys(d.folders):
            if folder != "unsorted":
                folders[folder].append(d.id)
        if d.creator:
            works[d.creator].append(d.id)
    boards = titles.folder_boards(folders, BOARD_LEAST)
    for creator, ids in sorted(works.items()):
        if len(ids) >= BOARD_LEAST:
            cut = ids if len(ids) <= WORKS_MOST else [ids[i * len(ids) // WORKS_MOST] for i in range(WORKS_MOST)]
            boards.append({"id": f"creator/{titles.slug(creator)}", "title": f"Works by {creator}", "owner": creator, "items": cut})
    return pa.Table.from_pylist(boards, schema=pa.schema([f for f in records.BOARDS if f.name != "private"]))


def _queries(drawings: list[Drawing]) -> pa.Table:
    return pa.Table.from_pylist([{"text": word, "item": d.id, "count": 1} for d in drawings for word in d.keywords], schema=records.QUERIES)


def _events(drawings: list[Drawing]) -> pa.Table:
    rows = [{"user": d.creator, "item": d.id, "action": "save", "time": d.date} for d in drawings if d.creator]
    return pa.Table.from_pylist(rows, schema=pa.schema([f for f in records.EVENTS if f.name in ("user", "item", "action", "time")]))
