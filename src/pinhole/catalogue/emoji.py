"""The openmoji sample: drawings of emoji with annotation, tags, group and author.

One rule: of drawings with the same bytes the first in the package's own order is the item. The package holds SVG only;
each is drawn as PNG once, into the sample's folder. Knows nothing of Lance or downloads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from pinhole.catalogue import drawn, records
from pinhole.catalogue.titles import words
from pinhole.catalogue.values import as_object, dumps
from pinhole.errors import DownloadError

BOARD_LEAST = 3
LICENCE = "CC BY-SA 4.0"


def read(folder: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, pa.Table]:
    """Tables of items, boards (subgroups), queries (tags) and events (authors). Raises :class:`DownloadError`
    where the package is not what it should be, ``MissingDependency`` without the renderer."""
    root = folder / "package/color/svg"
    try:
        entries = json.loads((folder / "package/data/openmoji.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "delete that folder and run the command again"
        raise DownloadError(f"no data in the openmoji package: {error}", where=str(folder), fix=fix) from None
    seen: set[bytes] = set()
    chosen: list[tuple[dict[str, Any], Path]] = []
    for entry in entries:
        path = root / f"{entry['hexcode']}.svg"
        if path.is_file() and (key := hashlib.sha256(path.read_bytes()).digest()) not in seen:
            seen.add(key)
            chosen.append((entry, path))
    made = drawn.draw([path for _, path in chosen], root, folder / "drawn", 256, progress)
    items, queries, events = [], [], []
    groups: dict[tuple[str, str], list[str]] = {}
    for entry, path in chosen:
        if path not in made:
            continue
        id, when, tags = entry["hexcode"], _date(entry.get("openmoji_date", "")), _tags(entry)
        items.append({"id": id, "image": str(made[path]), "title": entry["annotation"], "attributes": dumps(_about(entry, tags)), "created_at": when})
        queries += [{"text": tag, "item": id, "count": 1} for tag in tags]
        groups.setdefault((entry["group"], entry["subgroups"]), []).append(id)
        if author := entry.get("openmoji_author"):
            events.append({"user": author, "item": id, "action": "save", "time": when})
    boards = [
        {"id": f"{group}/{subgroup}", "title": words(subgroup), "owner": "", "items": ids}
        for (group, subgroup), ids in sorted(groups.items())
        if len(ids) >= BOARD_LEAST
    ]
    return {
        "items": pa.Table.from_pylist(items, schema=_some("items", "id", "image", "title", "attributes", "created_at")),
        "boards": pa.Table.from_pylist(boards, schema=_some("boards", "id", "title", "owner", "items")),
        "queries": pa.Table.from_pylist(queries, schema=records.QUERIES),
        "events": pa.Table.from_pylist(events, schema=_some("events", "user", "item", "action", "time")),
    }


def _about(entry: dict[str, Any], tags: list[str]) -> dict[str, Any]:
    author = entry.get("openmoji_author", "")
    about = {"category": entry["group"], "folder": entry["subgroups"], "keywords": tags, "creator": author, "emoji": entry.get("emoji")}
    return as_object({**about, "source": "openmoji", "licence": LICENCE, "attribution": f"{author or 'OpenMoji contributors'}, OpenMoji, {LICENCE}"})


def _tags(entry: dict[str, Any]) -> list[str]:
    parts = f"{entry.get('tags', '')},{entry.get('openmoji_tags', '')}".split(",")
    return list(dict.fromkeys(tag for part in parts if len(tag := re.sub(r"\s+", " ", part).strip().lower()) > 1))


def _date(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None


def _some(kind: str, *names: str) -> pa.Schema:
    return pa.schema([records.SCHEMAS[kind].field(name) for name in names])
