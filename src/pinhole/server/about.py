"""What the page shows before the first question: counts, kinds of things with a picture each, and example requests.

Read from the catalogue when first asked for, and again when the catalogue has changed size. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import json
import threading
from heapq import nsmallest
from typing import Any

from pinhole import __version__

MAX_CATEGORIES = 24
FACES = 4


class About:
    """The catalogue in a few lines. ``category`` names the attribute that says what kind of thing an item is."""

    def __init__(self, catalogue: Any, *, name: str, category: str = "category", tokens_per_item: int = 1, engine: Any = None) -> None:
        self.catalogue, self.name, self.category, self.tokens_per_item, self.engine = catalogue, name, category, tokens_per_item, engine
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._facts: dict[str, Any] = {}

    def facts(self) -> dict[str, Any]:
        """Blocking."""
        counts = (self.catalogue.count("items"), self.catalogue.count("boards"))
        with self._lock:
            if counts != self._seen:
                self._facts, self._seen = self._read(*counts), counts
            return self._facts

    def _read(self, items: int, boards: int) -> dict[str, Any]:
        categories = self._categories()
        return {
            "model": self.name,
            "version": __version__,
            "items": items,
            "boards": boards,
            "categories": categories[:MAX_CATEGORIES],
            "examples": examples([row["name"] for row in categories]),
            "tokens_per_item": self.tokens_per_item,
            "embedding": getattr(self.engine, "space", None),
            "engine": getattr(self.engine, "name", None),
            "context": getattr(self.engine, "context", None),
        }

    def _categories(self) -> list[dict[str, Any]]:
        """Kinds of things, the most frequent first, each with a few of its items, titled ones first, drawn by a hash."""
        table = self.catalogue.items(columns=["id", "title", "attributes"])
        members: dict[str, list[tuple[bool, str, str]]] = {}
        for item_id, title, attributes in zip(*(table[name].to_pylist() for name in ("id", "title", "attributes")), strict=True):
            kind = kind_of(attributes, self.category)
            if kind:
                members.setdefault(kind, []).append((not title, hashlib.sha256(item_id.encode()).hexdigest(), item_id))
        kinds = sorted(members, key=lambda kind: (-len(members[kind]), kind))
        return [{"name": kind, "count": len(members[kind]), "items": [row[2] for row in nsmallest(FACES, members[kind])]} for kind in kinds]


def kind_of(attributes: Any, category: str) -> str:
    """The category in an item's attributes (a JSON object or its text), or ''."""
    if isinstance(attributes, str | bytes):
        try:
            attributes = json.loads(attributes)
        except ValueError:
            return ""
    value = attributes.get(category) if isinstance(attributes, dict) else None
    return value.strip() if isinstance(value, str) else ""


def examples(categories: list[str]) -> list[str]:
    """Requests to start with, in the catalogue's own words."""
    words = [name.replace("_", " ") for name in categories]
    plural = next((word for word in words if word.endswith("s") and " " not in word), None)
    other = next((word for word in words if word != plural), None)
    ideas = [f"Find pictures of {plural}"] if plural else []
    ideas += ["I need something for a winter card", "Show me something red and round"]
    return ideas + ([f"What is in the category {other}?"] if other else [])
