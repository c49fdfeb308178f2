"""Which titles of the samples say what a picture shows; the others are blanked and the item kept.

A title is blank after these rules, in this order:

1. "Clipart by SOMEBODY - NAME" is NAME where the file's own name has the same letters, else nothing
   (that library copied many titles from file to file).
2. A file name is no title: underscores become spaces, trailing numbers go, an e-mail address goes.
3. No word of two letters, one of a list of empty words ("untitled", "icon"), or its creator's name: nothing.
4. A title that more than 12 items carry names a set, not a picture: nothing.

Pure functions over text; knows nothing of files or tables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SHARED_MOST = 12
EMPTY = {"untitled", "unknown", "unnamed", "no title", "title", "new", "new document", "document", "test", "none", "various", "misc", "stuff"}
EMPTY |= {"drawing", "image", "picture", "photo", "graphic", "icon", "icons", "clipart", "clip art", "svg", "vector"}
CAMERA = {"img", "dsc", "dscn", "dscf", "pxl", "dji", "gopr", "mvimg", "screenshot", "scan", "image img", "whatsapp image", "p", "pic"}
EMPTY |= {"symbol", "sign", "logo", "theme", "collection"}

_EMAIL = re.compile(r"[\[(<]?\s*[\w.+-]+@[\w.-]+\.\w+\s*[\])>]?")


def informative(given: Mapping[str, str], makers: Mapping[str, str]) -> dict[str, str]:
    """By id: the title where it says something, else "". ``makers`` are the creators by id."""
    cleaned = {id: _clean(title, id, makers.get(id, "")) for id, title in given.items()}
    carried = Counter(title.casefold() for title in cleaned.values())
    return {id: title if carried[title.casefold()] <= SHARED_MOST else "" for id, title in cleaned.items()}


def _clean(title: str, id: str, maker: str) -> str:
    stem = id.rsplit("/", 1)[-1]
    stated = re.match(r"(?i)clipart by .* - (.*)$", title.strip(), re.DOTALL)
    if stated:
        title = stated[1] if letters(stated[1]) == letters(stem) else ""
    title = re.sub(r"[\s_]+", " ", _EMAIL.sub("", title)).strip(" -.")
    title = "" if title.upper().startswith("HASH(0X") else re.sub(r"([\s#-]*\d+)+$", "", title).strip(" -.")
    if not re.search(r"[^\W\d_]{2}", title) or title.casefold() in EMPTY or title.casefold() == maker.casefold():
        return ""
    if maker and set(title.casefold().split()) <= set(maker.casefold().split()):
        return ""
    return title


def of_file(stem: str) -> str:
    """A file's name as a title, or "" where it is only a camera's or a download's number."""
    title = re.sub(r"[\s_-]+", " ", stem).strip()
    bare = re.sub(r"[\W\d]+", " ", title).strip().casefold()
    if bare in EMPTY | CAMERA or not re.search(r"[^\W\d_]{2}", title) or re.fullmatch(r"(?i)[0-9a-f]{8,}( [0-9a-f]{4,})*", title):
        return ""
    return re.sub(r"( \d+)+$", "", title)


def description(text: str, title: str) -> str:
    """The description without e-mail addresses; nothing where it only repeats the title."""
    text = re.sub(r"[ \t]+", " ", _EMAIL.sub("", text)).strip()
    return "" if not re.search(r"[^\W\d_]{2}", text) or text.casefold().strip(". ") == title.casefold() else text


def person(name: str) -> str:
    """A creator's name without an address: "Jean-Victor Balin (balin_j@epita.fr)" is "Jean-Victor Balin"."""
    if re.match(r"HASH\(0x", name):  # what a broken export left of some names
        return ""
    bare = re.sub(r"\s+", " ", _EMAIL.sub("", name)).strip(" -,")
    return bare or name.split("@")[0].strip(" <([")


def words(name: str) -> str:
    """A folder's or file's name as words: "00_flat-theme" is "flat theme"."""
    return re.sub(r"[\s_-]+", " ", re.sub(r"^\d+[_ -](?=\w)", "", name)).strip()


def letters(text: str) -> str:
    return re.sub(r"[\W\d_]+", "", text.casefold())


def slug(text: str) -> str:
    return re.sub(r"[\W_]+", "-", text.casefold()).strip("-") or "x"


def folder_boards(folders: Mapping[str, Sequence[str]], least: int = 1) -> list[dict[str, Any]]:
    """A board for each folder that holds ``least`` items itself; titles are last names, longer where two would be equal."""
    kept = {folder: ids for folder, ids in sorted(folders.items()) if len(ids) >= least}
    short = Counter(words(folder.rsplit("/", 1)[-1]) for folder in kept)
    boards = []
    for folder, ids in kept.items():
        parts = folder.split("/")
        title = words(parts[-1])
        if short[title] > 1 and len(parts) > 1:
            title = f"{words(parts[-2])} {title}"
        boards.append({"id": f"folder/{folder}", "title": title, "owner": "", "items": list(ids)})
    return boards
