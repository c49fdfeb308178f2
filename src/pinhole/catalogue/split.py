"""Who is held out: drawn by a stable hash, so that every room agrees without asking another.

An item's key is its title without digits and punctuation, so that "Dog 01" and "Dog 02" fall on the
same side; a query's key is its words in any order and number. Knows nothing of tables.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Literal

from pinhole.config import CatalogueConfig

_OTHER = re.compile(r"[\W\d_]+", re.UNICODE)


def _words(text: str) -> list[str]:
    return _OTHER.sub(" ", text.lower()).split()


def item_key(title: str, id: str) -> str:
    """What near duplicates share: the title in plain lower-case words, else the id's last part likewise."""
    stem = id.rsplit("/", 1)[-1]
    stem = re.sub(r"\.\w{1,5}$", "", stem)
    return " ".join(_words(title)) or " ".join(_words(stem)) or id


def query_key(text: str) -> str:
    """Lower case, plural s stripped, words sorted: "Red Chairs" and "chair red" are one query."""
    words = text.lower().replace("_", " ").split()
    return " ".join(sorted(word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words))


def held_out(kind: Literal["item", "board", "query"], key: str, share: float, split: int = 0) -> bool:
    """True for ``share`` of all keys; another ``split`` draws others."""
    drawn = int.from_bytes(hashlib.sha256(f"{split}:{kind}:{key}".encode()).digest()[:8], "big")
    return drawn / 2**64 < share


class Split:
    """The three draws with a workspace's shares."""

    def __init__(self, config: CatalogueConfig) -> None:
        self.config = config

    def item(self, row: Mapping[str, Any]) -> bool:
        """True where the item (its ``title`` and ``id``) is held out."""
        return held_out("item", item_key(row.get("title") or "", row["id"]), self.config.held_out_items, self.config.split)

    def board(self, id: str) -> bool:
        return held_out("board", id, self.config.held_out_boards, self.config.split)

    def query(self, text: str) -> bool:
        return held_out("query", query_key(text), self.config.held_out_queries, self.config.split)
