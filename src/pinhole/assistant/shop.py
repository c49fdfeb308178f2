"""The catalogue as tools see it: the public boards, items with their soft tokens, searches of one embedding space.

Reads only. Titles and details are data from strangers: they are handed on as text and never acted upon.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.assistant.tools import Thing
from pinhole.graft.prompt import Soft
from pinhole.graft.world import patches
from pinhole.vision.grid import apart

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.config import Config
    from pinhole.retrieval.index import Hit, Searcher
    from pinhole.vision.align import Space
    from pinhole.vision.features import Features

DETAILS = 200  # characters of one value of an item's details


def plain(name: str) -> str:
    """A name as people type it: lower case, spaces, no plural s."""
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return " ".join(word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words)


def nearest(name: str, known: Sequence[str]) -> tuple[str, list[str]]:
    """The known name that is meant: the same but for case and plural, else the only one that has all its words, else a
    misspelling. "" where none is, with up to three near ones."""
    wanted = plain(name)
    plains: dict[str, str] = {}
    for other in known:
        plains.setdefault(plain(other), other)
    if wanted in plains:
        return plains[wanted], []
    words = set(wanted.split())
    having = [other for other in plains if words and (words <= set(other.split()) or set(other.split()) and set(other.split()) <= words)]
    if len(having) == 1:
        return plains[having[0]], []
    close = difflib.get_close_matches(wanted, plains, 1, 0.84)
    if close and not having:
        return plains[close[0]], []
    near = having[:3] or difflib.get_close_matches(wanted, plains, 3, 0.5) or list(plains)[:3]
    return "", [plains[other] for other in near[:3]]


class CatalogueShop:
    """A :class:`~pinhole.assistant.tools.Shop` over a built workspace. Any number of threads may use it."""

    def __init__(
        self,
        catalogue: Catalogue,
        features: Features,
        space: Space,
        searcher: Searcher,
        config: Config,
        tokens_per_item: int = 1,
        related: Callable[[str, int], list[Hit]] | None = None,
    ) -> None:
        """``related`` finds what goes with an item; by default what the searcher finds like it."""
        self._related = related or searcher.related
        self.catalogue, self.features, self._space, self.searcher, self.config = catalogue, features, space, searcher, config
        self.tokens_per_item = tokens_per_item  # at most: what the model reads
        self._patches = patches(features, np.arange(len(features)), tokens_per_item)
        self.results = config.assistant.results
        self._encoder: Any = None
        self._guard = threading.Lock()
        self._names: tuple[list[str], list[tuple[str, list[str]]]] | None = None

    @property
    def space(self) -> str:
        return self._space.identity

    # -- finding --------------------------------------------------------------------------------

    def search(self, text: str, like: Sequence[Thing], unlike: Sequence[Thing], category: str) -> list[tuple[str, float]]:
        """The best items, without the ones that were given as examples."""
        where = f"{_column(self.config.catalogue.category)} = {_text(category)}" if category else ""
        hits = self.searcher.search(text, like=_examples(like), unlike=_examples(unlike), where=where, n=self.results)
        return [(hit.id, hit.score) for hit in hits]

    def related(self, thing: Thing) -> list[tuple[str, float]]:
        if thing.id is None:
            return self.search("", [thing], [], "")
        return [(hit.id, hit.score) for hit in self._related(thing.id, self.results)]

    # -- names ----------------------------------------------------------------------------------

    def category(self, name: str) -> tuple[str, Sequence[str]]:
        return nearest(name, self._known()[0])

    def board(self, title: str) -> tuple[str, Sequence[str], Sequence[str]]:
        boards = self._known()[1]
        found, near = nearest(title, [name for name, _ in boards])
        named = next((items for name, items in boards if name == found), [])
        there = set(self.catalogue.items(columns=["id"], ids=named)["id"].to_pylist()) if named else set()
        return found, [id for id in named if id in there], near

    def _known(self) -> tuple[list[str], list[tuple[str, list[str]]]]:
        """Categories (the commonest first) and public boards with a title, read once."""
        with self._guard:
            if self._names is None:
                counts: dict[str, int] = {}
                for text in self.catalogue.items(columns=["attributes"])["attributes"].to_pylist():
                    value = (json.loads(text) if text else {}).get(self.config.catalogue.category)
                    for name in value if isinstance(value, list) else [value]:
                        if isinstance(name, str) and name:
                            counts[name] = counts.get(name, 0) + 1
                rows = self.catalogue.boards().to_pylist()
                boards = [(row["title"], list(row["items"])) for row in rows if row["title"] and not row["private"]]
                self._names = (sorted(counts, key=lambda name: -counts[name]), boards)
            return self._names

    # -- items ----------------------------------------------------------------------------------

    def things(self, ids: Sequence[str]) -> list[Thing]:
        rows = {row["id"]: row["title"] or "" for row in self.catalogue.items(columns=["id", "title"], ids=list(dict.fromkeys(ids))).to_pylist()}
        for id in ids:
            if id not in rows:
                self.catalogue.item(id)  # raises, naming the nearest
        softs = self._softs(ids)
        return [Thing(id, rows[id], softs.get(id)) for id in ids]

    def details(self, id: str) -> Mapping[str, Any]:
        row = self.catalogue.item(id)
        named = {"title": row["title"], "description": row["description"], **row["attributes"]}
        for guess in self.guesses(id):
            named.setdefault(f"{guess['name']} (guessed)", []).append(guess["value"])
        return {name: short for name, value in named.items() if (short := _words(value))}

    def guesses(self, id: str) -> list[dict[str, Any]]:
        """What is guessed of an item, the surest first: name, value, confidence."""
        known = self.searcher.guesses
        return [one.public() for one in known.of(id)] if known is not None else []

    def picture(self, data: bytes) -> Thing:
        with self._guard:
            if self._encoder is None:
                from pinhole.vision.encoders import image_encoder

                self._encoder = image_encoder(self.features.image_spec)
        pixels, edge = self._encoder.decode(data, self.config.vision.max_pixels)[None], math.isqrt(self.tokens_per_item)
        image, cells = (self._encoder.encode(pixels), None) if edge == 1 else self._encoder.encode_grid(pixels, edge)
        key = f"{self.space}:sent:{hashlib.sha256(data).hexdigest()}"
        return Thing(None, "", Soft(key, self._content(image)[0], cells=None if cells is None else apart(cells, edge)[0]), image[0])

    # -- vectors --------------------------------------------------------------------------------

    def _softs(self, ids: Iterable[str]) -> dict[str, Soft]:
        """Soft tokens of the items that have a picture and were there when the features were made."""
        known = self._rows()
        rows = {id: known[id] for id in ids if id in known and self.features.has_image[known[id]]}
        if not rows:
            return {}
        content = self._content(np.asarray(self.features.image[list(rows.values())], dtype=np.float32))
        cells = self._patches(list(rows.values())) if self._patches else [None] * len(rows)
        return {id: Soft(f"{self.space}:{id}", vector, cells=some) for id, vector, some in zip(rows, content, cells, strict=True)}

    def _rows(self) -> dict[str, int]:
        if not hasattr(self, "_row"):
            self._row = {id: i for i, id in enumerate(self.features.ids)}
        return self._row

    def _content(self, image: np.ndarray) -> np.ndarray:
        """Frozen image vectors (n, d) → content embeddings (n, content_dim), from the picture alone."""
        return self._space.content(image, self._space.seen_vectors(image))


def _examples(things: Sequence[Thing]) -> list[Any]:
    return [thing.id if thing.id is not None else thing.seen for thing in things]


def _column(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _words(value: Any) -> str:
    value = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else "" if value is None else str(value)
    return " ".join(value.split())[:DETAILS]
