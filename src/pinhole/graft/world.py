"""The owner's catalogue as lessons and exams see it: pictures with names, kinds and boards, drawn into two pools.

``train`` and ``held`` never share an item, and a board's held-out pictures are asked about only in
exams. Knows nothing of phrasings, of tools or of the model.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.catalogue.split import Split
from pinhole.errors import MissingArtefact
from pinhole.graft.prompt import Soft
from pinhole.vision.grid import apart

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.vision.align import Space
    from pinhole.vision.features import Features

_COMMON = 0.1  # a keyword on a larger share of the items tells too little to be a name
_CONCEPT_AT_LEAST = 5  # training pictures that make a name something that can be learned
_KIND_AT_LEAST = 12  # training pictures that make a category a class


@dataclass(frozen=True)
class Picture:
    """One item with an image; ``names`` are the words that may be asked for, the most telling first."""

    id: str
    title: str
    category: str
    keywords: tuple[str, ...]
    names: tuple[str, ...]
    held: bool

    def answers_to(self, name: str) -> bool:
        """Would it be wrong to call this picture "not a ``name``"?"""
        words = set(name.split())
        return name == self.category or any(words <= set(other.split()) or set(other.split()) <= words for other in (*self.names, *self.keywords))


@dataclass(frozen=True)
class Board:
    id: str
    title: str
    pictures: tuple[int, ...]
    held: bool
    category: str


Theme = tuple[Board, list[int]]  # a board and those of its pictures that are meant


@dataclass(frozen=True)
class Drop:
    """Dropout (Srivastava et al. 2014) of a picture's content: each number becomes that of the mean picture with the probability ``share``."""

    share: float
    seed: int

    def kept(self, size: int) -> np.ndarray:
        """(size,) float32, 0 or what makes up for the others."""
        kept = np.random.default_rng(self.seed).random(size, np.float32) >= self.share
        return kept / np.float32(1 - self.share)


@dataclass
class World:
    pictures: list[Picture]
    boards: list[Board]
    vectors: np.ndarray  # (n, content_dim) float32, row i belongs to pictures[i]
    space: str
    categories: list[str] = field(default_factory=list)
    strange: dict[int, np.ndarray] = field(default_factory=dict)  # vectors of training pictures as if never seen (`warm_start.strangers`)
    cells: Callable[[Sequence[int]], np.ndarray] | None = None  # rows → (rows, edge · edge, cell_dim) float32, as they differ from their mean
    whole: Callable[[Sequence[int]], np.ndarray] | None = None  # rows → (rows, image dim) float32, the encoder's own vectors

    def __post_init__(self) -> None:
        self.train = [i for i, picture in enumerate(self.pictures) if not picture.held]
        self.held = [i for i, picture in enumerate(self.pictures) if picture.held]
        counts = Counter(self.pictures[i].category for i in self.train)
        self.categories = [name for name, count in counts.most_common() if name and count >= _KIND_AT_LEAST]
        taught = Counter(name for i in self.train for name in self.pictures[i].names)
        self.concepts = {name for name, count in taught.items() if count >= _CONCEPT_AT_LEAST}
        self.at = {picture.id: i for i, picture in enumerate(self.pictures)}
        self.shelves: dict[int, list[str]] = defaultdict(list)  # titles of the training boards that a picture is on
        for board in self.boards:
            for i in () if board.held else board.pictures:
                self.shelves[i].append(board.title)
        self._softs: dict[int, Soft] = {}
        self.mean = self.vectors[self.train].mean(0) if self.train else np.zeros(self.vectors.shape[1:], np.float32)
        self.by_category: dict[bool, dict[str, list[int]]] = {False: defaultdict(list), True: defaultdict(list)}
        for i, picture in enumerate(self.pictures):
            self.by_category[picture.held][picture.category].append(i)

    def concepts_of(self, i: int) -> list[str]:
        """Names of a picture that enough training pictures bear to be learned from them."""
        return [name for name in self.pictures[i].names if name in self.concepts]

    def words_of(self, i: int) -> list[str]:
        """What a picture is called where it is to be recognised: concepts, kind and training boards, else whatever names it has."""
        picture = self.pictures[i]
        kind = [picture.category] if picture.category in self.categories else []
        return list(dict.fromkeys([*self.concepts_of(i), *kind, *self.shelves[i]])) or list(picture.names[:3])

    def soft(self, i: int, strange: float = 0.0, drop: Drop | None = None) -> Soft:
        """A picture as it is; by the share ``strange`` as if it had never been seen; without what is to ``drop``."""
        if i not in self._softs:
            self._softs[i] = Soft(f"{self.space}:{self.pictures[i].id}", self.vectors[i], item=self.pictures[i].id)
        soft = self._softs[i]
        if strange and i in self.strange:
            moved = np.float32(strange) * (self.strange[i] - soft.vector)
            soft = replace(soft, key=f"{soft.key}~{strange:.3f}", vector=soft.vector + moved)
        cells = self.cells([i])[0] if self.cells else None  # not kept: they are large
        if drop:
            kept = drop.kept(len(self.mean)) * (soft.vector - self.mean)
            soft = replace(soft, key=f"{soft.key}~drop{drop.seed}", vector=self.mean + kept)
            cells = None if cells is None else drop.kept(cells.shape[1]) * cells  # the same of its numbers
        return soft if cells is None else replace(soft, cells=cells)

    def pool(self, held: bool) -> list[int]:
        return self.held if held else self.train

    def other(self, rng: random.Random, i: int, held: bool) -> int:
        """Another picture, half the time of the same category."""
        same = self.by_category[held][self.pictures[i].category]
        pool = same if rng.random() < 0.5 and len(same) > 1 else self.pool(held)
        return rng.choice(pool)

    def themed(self, held: bool, at_least: int) -> list[Theme]:
        """Boards with enough pictures of one pool. Training never sees a held-out board at all."""
        found = []
        for board in self.boards:
            if board.held and not held:
                continue
            members = [i for i in board.pictures if self.pictures[i].held == held]
            if len(members) >= at_least:
                found.append((board, members))
        return found

    @cached_property
    def groups(self) -> list[Theme]:
        """Training pictures of one name (often one alone), as if they were a board of that title: themes beyond those that people made boards of.

        None of a held-out board: it must not be taught under another name.
        """
        titles = {board.title for board in self.boards}
        hidden = {i for board in self.boards if board.held for i in board.pictures}
        bearing: dict[str, list[int]] = defaultdict(list)
        for i in self.train:
            for name in () if i in hidden else self.pictures[i].names:
                bearing[name].append(i)
        kinds = {name: Counter(self.pictures[i].category for i in members).most_common(1)[0][0] for name, members in bearing.items()}
        found = [(name, members) for name, members in sorted(bearing.items()) if name not in titles]
        return [(Board(f"name:{name}", name, tuple(members), False, kinds[name]), members) for name, members in found]


def build_world(
    catalogue: Catalogue, features: Features, space: Space, split: Split, category: str = "category", *, tokens_per_item: int = 1
) -> World:
    """Read the tables once. Items without a readable image are left out: there is nothing to see.

    For more than one of ``tokens_per_item`` the features must have a grid that is fine enough.
    """
    rows = catalogue.items(columns=["id", "title", "attributes"]).to_pylist()
    attributes = {row["id"]: _object(row["attributes"]) for row in rows}
    kept = [row for row in rows if features.has_image[features.row(row["id"])]]
    common = Counter(keyword for row in kept for keyword in set(_keywords(attributes[row["id"]])))
    limit = max(4, _COMMON * len(kept))
    rare = {keyword for keyword, count in common.items() if count <= limit}
    pictures = [_picture(row, attributes[row["id"]], rare, split, category) for row in kept]
    index = np.array([features.row(row["id"]) for row in kept], dtype=np.int64)
    vectors = _content(features, space, index)
    position = {picture.id: i for i, picture in enumerate(pictures)}
    boards = [_board(row, position, pictures, split) for row in catalogue.boards().to_pylist() if not row["private"]]
    cells = patches(features, index, tokens_per_item)
    found = World(pictures, [board for board in boards if board], vectors, space.identity, cells=cells)
    found.whole = lambda rows: np.asarray(features.image[index[list(rows)]], np.float32)
    return found


def patches(features: Features, index: np.ndarray, tokens_per_item: int) -> Callable[[Sequence[int]], np.ndarray] | None:
    """What :attr:`World.cells` is for ``index`` rows of the features; None where a picture is one token."""
    if tokens_per_item == 1:
        return None
    edge = math.isqrt(tokens_per_item)
    if features.grid < edge:
        what = f"{tokens_per_item} tokens a picture, and {features.grid**2 or 'no'} cells of each were kept"
        raise MissingArtefact(what, where=str(features.path), fix=f"set [vision] grid = {edge} and run `pinhole build`")
    _ = features.quantised  # mapped now: a server may outlive the files, whose place later builds take
    return lambda rows: apart(features.cells(index[list(rows)]), edge)


def _content(features: Features, space: Space, index: np.ndarray) -> np.ndarray:
    image = np.asarray(features.image[index], dtype=np.float32)
    nothing = np.zeros((len(index), features.text.shape[1]), np.float32)
    learned = space.item_vectors(image, np.ones(len(index), bool), nothing, np.zeros(len(index), bool))
    return np.asarray(space.content(image, learned), dtype=np.float32)


def _object(text: Any) -> dict[str, Any]:
    value = json.loads(text) if isinstance(text, str) and text else text
    return value if isinstance(value, dict) else {}


def _keywords(attributes: dict[str, Any]) -> list[str]:
    value = attributes.get("keywords") or attributes.get("tags") or []
    return [str(word).lower() for word in (value if isinstance(value, list) else [value])]


def _picture(row: dict[str, Any], attributes: dict[str, Any], rare: set[str], split: Split, category: str) -> Picture:
    held = split.item(row)
    keywords = tuple(_keywords(attributes))
    kind = _plain(str(attributes.get(category) or ""))
    title = " ".join((row["title"] or "").split())
    names = [_plain(title)] if 0 < len(title.split()) <= 5 else []
    # A query held out for the search exam is no name in any training lesson either.
    names += [word for word in keywords if word in rare and word != kind and len(word) > 2 and (held or not split.query(word))]
    return Picture(row["id"], title, kind, keywords, tuple(dict.fromkeys(names)), held)


def _board(row: dict[str, Any], position: dict[str, int], pictures: Sequence[Picture], split: Split) -> Board | None:
    """A board whose title is about its pictures; one named after its owner says nothing of what is on it."""
    title, owner = _plain(row["title"] or ""), _plain(row["owner"] or "")
    members = tuple(position[id] for id in row["items"] if id in position)
    if not title or not members or (owner and owner in title):
        return None
    kind = Counter(pictures[i].category for i in members).most_common(1)[0][0]
    return Board(row["id"], title, members, split.board(row["id"]), kind)


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").lower().split())
