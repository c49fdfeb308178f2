"""The tuxpaint sample: photos and drawings with a caption each, in folders by subject.

Two rules: of files with the same bytes the first by path is the item; a stamp that is there as PNG and as SVG is
the PNG. A stamp that is SVG only is drawn as PNG once, into the sample's folder. A title is the English
caption without its last full stop. Knows nothing of Lance or downloads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from pinhole.catalogue import drawn, records, titles
from pinhole.catalogue.values import dumps
from pinhole.errors import DownloadError

BOARD_LEAST = 3
# What ends the head of a caption: "A rake for sweeping leaves" is about a rake.
_AFTER = re.compile(r"[,.;:()–—-]| (?:of|on|in|for|with|from|that|which|who|called|and|or|at|to|by|is|used|made|sitting|standing|wearing)\b")
_ARTICLE = re.compile(r"^(?:an?|the|some|one|two|three|four|his|her|my|i’m|it’s|this is)\b\s*", re.IGNORECASE)
Progress = Callable[[int, int], None]


def read(folder: Path, progress: Progress | None = None) -> dict[str, pa.Table]:
    """Tables of items, boards and queries. Raises :class:`DownloadError` where the folder holds no stamps,
    ``MissingDependency`` where stamps have to be drawn and the renderer is not installed."""
    root = folder / "usr/share/tuxpaint/stamps"
    pictures = {path.with_suffix(""): path for suffix in (".svg", ".png") for path in sorted(root.rglob(f"*{suffix}"))}
    if not pictures:
        raise DownloadError("no stamps in the tuxpaint package", where=str(root), fix=f"delete {folder} and run the command again")
    vector = [path for path in pictures.values() if path.suffix == ".svg"]
    made = drawn.draw(vector, root, folder / "drawn", 400, progress)
    seen: dict[bytes, str] = {}
    items, queries = [], []
    folders: dict[str, list[str]] = {}
    for stem, path in sorted(pictures.items(), key=lambda entry: entry[0].as_posix()):
        place = stem.relative_to(root)
        id = seen.setdefault(hashlib.sha256(path.read_bytes()).digest(), place.as_posix())
        folders.setdefault(place.parent.as_posix(), []).append(id)
        if id != place.as_posix():
            continue
        title = caption(stem.with_suffix(".txt"))
        about = {"category": place.parts[0], "folder": place.parent.as_posix(), "source": "tuxpaint", "licence": "GPL-2"}
        about["attribution"] = "Tux Paint stamps, Bill Kendrick and contributors, GPL-2"
        words = list(dict.fromkeys([*(titles.words(part) for part in place.parent.parts), *heads(title)]))
        items.append({"id": id, "image": str(made.get(path, path)), "title": title, "attributes": dumps({**about, "keywords": words})})
        queries += [{"text": word, "item": id, "count": 1} for word in words]
    schema = pa.schema([records.ITEMS.field(name) for name in ("id", "image", "title", "attributes")])
    boards = pa.schema([records.BOARDS.field(name) for name in ("id", "title", "owner", "items")])
    return {
        "items": pa.Table.from_pylist(items, schema=schema),
        "boards": pa.Table.from_pylist(titles.folder_boards(folders, BOARD_LEAST), schema=boards),
        "queries": pa.Table.from_pylist(queries, schema=records.QUERIES),
    }


def caption(path: Path) -> str:
    """The English caption: the file's first line without its last full stop; "" where there is none."""
    try:
        first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""
    return re.sub(r"\s+", " ", first).strip().rstrip(".").strip()


def heads(title: str) -> list[str]:
    """What a caption is about, as people would ask for it: its head, and the head's last word."""
    head = _AFTER.split(title, maxsplit=1)[0]
    head = re.sub(r"[^\w\s’']", "", _ARTICLE.sub("", head.strip()), flags=re.UNICODE).strip().lower()
    words = head.split()
    if not words or len(words) > 4:
        return []
    return [text for text in dict.fromkeys([head, words[-1]]) if len(text) > 2 and not text.isdigit()]
