"""Finding: words, likes and unlikes composed into one query, candidates by index, scores fused, best first.

    index.json         identities of the space and the features, fusion weights, cohort; written last
    learned.faiss      the learned vectors of all items
    titles.faiss       the text vectors of those that have a title
    memory.safetensors texts of the training part and the learned vectors they lead to
    graph.safetensors  items and what holds them together, for random walks
    base.parquet       which rows the two indexes are of; `extend` says how an index grows from there

Up to ``EXACT`` items (the whole catalogue, or what a filter leaves) are all scored; above it only
candidates are: nearest in the learned space, nearest titles, best by full text. Reads may come from
several threads. Knows nothing of conversations or of who asks.
"""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.config import DiversifyConfig
from pinhole.errors import Corrupt, MissingArtefact, SpaceMismatch, UsageError
from pinhole.retrieval.arrange import POOL, Arranger
from pinhole.retrieval.extend import Moves, extend, keep_base, open_nearest
from pinhole.retrieval.guesses import Guesses, names_guesses
from pinhole.retrieval.nearest import Nearest
from pinhole.retrieval.ranker import PART, RANKED, Ranker
from pinhole.retrieval.scores import COLUMNS, Bridge, BridgeShape, Scorer, Side, memory, picture_bridge
from pinhole.retrieval.student import inputs
from pinhole.retrieval.trials import word_unit
from pinhole.retrieval.weights import KINDS, UNLIKE, WORDS, WORDS_LEAST, Weights, learn
from pinhole.vision.align import Asked, Learned, Space, Titles, learned_vectors
from pinhole.vision.encoders.base import ImageEncoder, TextEncoder
from pinhole.vision.features import Features
from pinhole.vision.images import MAX_PIXELS
from pinhole.workspace import digest, read_json, write_atomic, write_json

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.config import Config

LAYOUT = 2
GUESSED = "text.guessed"
NO_WORDS: Mapping[str, float] = MappingProxyType({})
EXACT = 8192  # items that are scored one and all
CANDIDATES = 200  # from each source, at least
WORDS_MOST = 2000  # items that full text names
COHORT = 1024  # items that scores are standardised by
TEXT_MOST = 2000  # characters of a query that are read
RESULTS_MOST = 1000
AS_FOUND = DiversifyConfig(apart=0)

Like = str | bytes | np.ndarray
"""An item's id, an encoded picture, or a picture's vector (image dim,) as the encoder gave it."""


@dataclass(frozen=True)
class Hit:
    """One result. ``parts`` are the weighted columns that ``score`` is the sum of, such as ``text.learned``."""

    id: str
    score: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A query in words, and what a search finds before anything is ranked anew."""

    side: Side
    words: dict[int, float]
    """Full text's score of the rows that it names."""
    rows: np.ndarray
    """Candidates, best first."""
    scores: np.ndarray
    """(rows,)"""


# -- the stage ----------------------------------------------------------------------------------


def build_index(
    catalogue: Catalogue,
    features: Features,
    space: Space,
    config: Config,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    asked: Asked | None = None,
) -> dict[str, float]:
    """The stage ``index``: fusion weights (learned inside the training part), then the two faiss indexes, and the graph.

    ``asked`` are the query texts' vectors that ``align`` left beside the space (None encodes them again). Returns figures for the manifest. Raises
    :class:`SpaceMismatch` where the features come from other encoders than the space.
    """
    from pinhole.catalogue.graph import Graph, read_edges
    from pinhole.vision.signals import read_signals, read_titles

    space.check_features(features)
    part, _ = read_signals(catalogue, features, config.graph).part(config.catalogue)
    titles = read_titles(catalogue, features.ids)
    catalogue.refresh_text_index()
    kept = out / "weights.json"
    asked = asked or Asked.make(catalogue.queries()["text"].to_pylist(), features.text_encoder.spec, features.text_encoder.dim, out)
    if not kept.exists():
        write_json(kept, learn(features, part, asked.of, titles, config, progress, out).as_json())
    for folds in out.glob("fold-*"):
        shutil.rmtree(folds)
    weights = Weights.from_json(read_json(kept))
    usable, titled = np.flatnonzero(features.has_image | features.has_text), np.flatnonzero(features.has_text)
    texts = asked.of([query.key for query in part.queries])
    _save_memory(memory(features, part, texts, Learned(space, features)), out)
    Nearest.build(Learned(space, features, only=usable), usable, config.index, space.query_vectors(texts)).save(out / "learned.faiss")
    whole = config.index.model_copy(update={"width": 0})  # the text encoder's vectors were not trained to be cut
    Nearest.build(Titles(features, titled), titled, whole, texts).save(out / "titles.faiss")
    graph = Graph.of(len(features), read_edges(catalogue, features.ids, config.graph), config.graph)
    graph.save(out / "graph.safetensors")
    keep_base(features, out)
    _write_meta(out, features, space, weights)
    figures = {f"weight.{kind}.{name}": value for kind, columns in weights.kinds.items() for name, value in columns.items()}
    found = {"items": len(usable), "titles": len(titled), "links": graph.edges}
    return {**found, **{f"questions.{kind}": count for kind, count in weights.questions.items()}, **figures}


def extend_index(catalogue: Catalogue, features: Features, space: Space, config: Config, before: Path, out: Path) -> dict[str, float]:
    """The stage ``index`` where little changed: what ``before`` was built of stays, with its fusion weights and its memory; see ``extend``."""
    space.check_features(features)
    catalogue.refresh_text_index()
    graph = extend(catalogue, features, space, config, before, out)
    weights = Weights.from_json(read_json(before / "index.json")["weights"])
    usable = _write_meta(out, features, space, weights)
    moves = Moves.since(before, features)
    found = {"items": len(usable), "titles": int(features.has_text.sum()), "links": graph.edges}
    return {**found, "appended": len(moves.fresh), "removed": moves.removed, "tail": round(moves.tail, 5)}


def _write_meta(out: Path, features: Features, space: Space, weights: Weights) -> np.ndarray:
    """``index.json``; the rows that can be found."""
    usable = np.flatnonzero(features.has_image | features.has_text)
    cohort = np.sort(np.random.default_rng(0).choice(usable, min(COHORT, len(usable)), replace=False))
    meta = {"layout": LAYOUT, "space": space.identity, "items": digest(features.ids), "weights": weights.as_json(), "cohort": cohort.tolist()}
    write_json(out / "index.json", meta)
    return usable


def _save_memory(known: Bridge, path: Path) -> None:
    from safetensors.numpy import save

    write_atomic(path / "memory.safetensors", save({"texts": known.texts, "vectors": np.asarray(known.vectors)}))


def _load_memory(path: Path) -> Bridge:
    from safetensors.numpy import load

    try:
        found = load((path / "memory.safetensors").read_bytes())
        return Bridge(found["texts"], found["vectors"], BridgeShape())
    except Exception as error:
        where, fix = str(path / "memory.safetensors"), "delete the folder and run `pinhole build index`"
        raise Corrupt(f"cannot be read: {error}", where=where, fix=fix) from None


# -- searching ----------------------------------------------------------------------------------


class Searcher:
    """Opened once, asked often. Raises :class:`SpaceMismatch` where index, space and features do not belong together."""

    def __init__(
        self,
        catalogue: Catalogue,
        features: Features,
        space: Space,
        path: Path | str,
        text_encoder: TextEncoder | Callable[[], TextEncoder],
        image_encoder: ImageEncoder | Callable[[], ImageEncoder],
        max_pixels: int = MAX_PIXELS,
        diversify: DiversifyConfig = AS_FOUND,
        ranker: Ranker | None = None,
        guesses: Guesses | None = None,
        guessed: float = 0.0,
    ) -> None:
        """``path`` is the artefact of ``index``. An encoder may be a function that makes it when it is first needed.

        Liked pictures of more than ``max_pixels`` are refused before they are decoded. ``diversify`` arranges results; the default leaves them as
        they are found. ``ranker`` orders the best of what words alone find. A word of ``guesses``
        counts ``guessed`` times as much as one that the owner wrote.
        """
        self.ranker, self.guesses, self.guessed = ranker, guesses, guessed
        self.catalogue, self.features, self.space, self.path, self.max_pixels = catalogue, features, space, Path(path), max_pixels
        self._encoders = (text_encoder, image_encoder)
        meta = self._open()
        self.weights = Weights.from_json(meta["weights"])
        self._learned, self._titles = open_nearest(self.path, "learned"), open_nearest(self.path, "titles")
        bridge = picture_bridge(features, space, np.arange(len(features)), self.weights.bridge, lasting=True)
        self.learned = learned_vectors(space, features)
        """(n, dim): the learned vectors that stand for the items."""
        self._scorer = Scorer(features, space, self.learned, bridge, _load_memory(self.path), lasting=True)
        self._cohort = self._scorer.block(np.array(meta["cohort"], dtype=np.int64))
        self._arranger = Arranger(catalogue, features.ids, self._pictures, diversify)
        self._version, self._guard = -1, threading.Lock()
        self._look()
        self._encode_text = lru_cache(maxsize=4096)(lambda text: self._text_encoder.encode([text]))

    def _look(self) -> None:
        """Items deleted since the build are found no more, from the moment their rows are gone. Asked before every search; reads
        ids only where the table has changed."""
        version = self.catalogue.version("items")
        if version == self._version:
            return
        with self._guard:
            there, features = set(self.catalogue.ids().to_pylist()), self.features
            place = {id: row for row, id in enumerate(features.ids) if id in there}
            findable = np.zeros(len(features), dtype=bool)
            findable[list(place.values())] = True
            findable &= features.has_image | features.has_text
            self._place, self._findable, self._usable = place, findable, np.flatnonzero(findable)
            self._version = version

    def _open(self) -> dict[str, Any]:
        if not (self.path / "index.json").exists():
            raise MissingArtefact("no index", where=str(self.path), fix="run `pinhole build index`")
        meta: dict[str, Any] = read_json(self.path / "index.json")
        if meta.get("layout") != LAYOUT:
            raise Corrupt(f"an index of layout {meta.get('layout')}, not {LAYOUT}", where=str(self.path), fix="run `pinhole build index`")
        self.space.check(meta["space"], where=str(self.path))
        self.space.check_features(self.features)
        if meta["items"] != digest(self.features.ids):
            raise SpaceMismatch(
                f"the index is of other items than the features {self.features.identity}", where=str(self.path), fix="run `pinhole build`"
            )
        return meta

    @cached_property
    def _text_encoder(self) -> TextEncoder:
        encoder = self._encoders[0]
        encoder = encoder if isinstance(encoder, TextEncoder) else encoder()
        self.features.check(text=encoder.identity)
        return encoder

    @cached_property
    def _image_encoder(self) -> ImageEncoder:
        encoder = self._encoders[1]
        encoder = encoder if isinstance(encoder, ImageEncoder) else encoder()
        self.features.check(image=encoder.identity)
        return encoder

    # -- asking ---------------------------------------------------------------------------------

    def search(
        self, text: str = "", like: Sequence[Like] = (), unlike: Sequence[Like] = (), where: str = "", n: int = 10, arranged: bool = True
    ) -> list[Hit]:
        """The ``n`` best items, best first; equal scores in the order of ids. What is liked or unliked by id is left out.
        Where they are ``arranged``, order and choice are what ``diversify`` asks for.

        Raises :class:`UnknownItem`, ``BadImage``, and ``UsageError`` for a bad filter or a query that asks nothing.
        With a filter alone: the items it keeps, in the order of their ids, score 0.
        """
        text, like, unlike = text.strip()[:TEXT_MOST], _listed(like), _listed(unlike)
        if not (text or like or unlike or where.strip()):
            raise UsageError("nothing to search for", fix="give words, an item to be like or unlike, or a filter")
        if not 1 <= n <= RESULTS_MOST:
            raise UsageError(f"cannot show {n} results", fix=f"ask for 1 to {RESULTS_MOST}")
        self._look()
        sides = self._sides(text, like, unlike)
        named = [self.features.row(one) for one in (*like, *unlike) if isinstance(one, str)]
        allowed = self._allowed(where, named)
        if not sides or not len(allowed):
            return [Hit(self.features.ids[row], 0.0) for row in allowed[:n]]
        kind = "both" if text and like else "like" if like or not text else "text"
        columns = dict(zip(KINDS[kind], self.weights.array(kind).tolist(), strict=True))
        if WORDS in columns:
            columns[WORDS] = max(columns[WORDS], WORDS_LEAST)
        words, supposed = (self._worded(text, where), self._supposed(text)) if text else ({}, {})
        rows = self._candidates(sides, columns, [*words, *supposed], allowed, n)
        parts = self._parts(sides, columns, words, rows, supposed)
        if self.ranker is not None and set(sides) == {"text"}:
            total = np.sum(list(parts.values()), axis=0)
            parts[PART] = self.ranker.moves(Question(sides["text"], self._named(words), rows, total), rows, total, self)
        return self.ranked(parts, rows, n, arranged)

    def related(self, id: str, n: int = 10, arranged: bool = True) -> list[Hit]:
        """Items like this one. Raises :class:`UnknownItem`."""
        return self.search(like=[id], n=n, arranged=arranged)

    def shown(self, rows: np.ndarray) -> np.ndarray:
        """Mask of the rows that may be found: still in the catalogue, with a picture or a title."""
        self._look()
        return np.asarray(self._findable[rows])

    def like_parts(self, row: int, rows: np.ndarray, kind: str) -> dict[str, np.ndarray]:
        """Each weighted like column (rows,) of item ``row`` against ``rows``, with the weights of one of ``KINDS``."""
        return self._parts({"like": self._scorer.items(np.array([row]))}, self.weights.kinds[kind], {}, rows)

    # -- what a ranker learns from --------------------------------------------------------------

    def remembering(self, memory: Bridge) -> Searcher:
        """The same searcher with another memory, and no ranker."""
        other = copy.copy(self)
        other.ranker, other._scorer = None, copy.copy(self._scorer)
        other._scorer.memory = memory
        return other

    def question(self, text: str) -> Question:
        """What :meth:`search` finds for words alone, before it is ranked anew: at least the best 200 candidates."""
        text = text.strip()[:TEXT_MOST]
        self._look()
        sides, columns = self._sides(text, [], []), dict(zip(KINDS["text"], self.weights.array("text").tolist(), strict=True))
        columns[WORDS] = max(columns[WORDS], WORDS_LEAST)
        words, supposed = self._worded(text, ""), self._supposed(text)
        rows = self._candidates(sides, columns, [*words, *supposed], self._usable, RANKED)
        scores = np.sum(list(self._parts(sides, columns, words, rows, supposed).values()), axis=0)
        order = np.lexsort((rows, -np.round(scores, 5)))
        return Question(sides["text"], self._named(words), rows[order], scores[order])

    def read(self, question: Question, rows: np.ndarray, values: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
        """(rows, width): what a student reads of a question and these items."""
        words = np.array([question.words.get(row, 0.0) for row in rows.tolist()], dtype=np.float32)
        return inputs(self._scorer, self._cohort, question.side, rows, words, values([self.features.ids[row] for row in rows]))

    def _worded(self, text: str, where: str) -> dict[str, float]:
        """Full text's scores. A condition on guesses it does not know: what such a one keeps is sorted out among the candidates."""
        known = where if where.strip() and not names_guesses(where) else ""
        return dict(self.catalogue.text_search(text, WORDS_MOST, known or None))

    def _supposed(self, text: str) -> dict[str, float]:
        """The best scores of guessed words."""
        return self.guesses.scores(text, len(self.features), WORDS_MOST) if self.guesses is not None and self.guessed else {}

    def _named(self, words: Mapping[str, float]) -> dict[int, float]:
        unit = word_unit(len(self.features))
        return {self._place[id]: score / unit for id, score in words.items() if id in self._place}

    # -- one query ------------------------------------------------------------------------------

    def _sides(self, text: str, like: Sequence[Like], unlike: Sequence[Like]) -> dict[str, Side]:
        sides = {}
        if text:
            sides["text"] = self._scorer.words(self._encode_text(text))
        if like:
            sides["like"] = self._centre(like)
        if unlike:
            sides["unlike"] = self._centre(unlike)
        return sides

    def _centre(self, likes: Sequence[Like]) -> Side:
        """Several likes are one: the mean of their vectors (Rocchio 1971)."""
        found = [self._one(like) for like in likes]
        return Side(*(np.stack([getattr(side, name)[0] for side in found]).mean(0, keepdims=True) for name in COLUMNS))

    def _one(self, like: Like) -> Side:
        if isinstance(like, str):
            return self._scorer.items(np.array([self.row(like)]))
        if isinstance(like, bytes):
            return self._scorer.image(self._image_encoder.encode_bytes([like], self.max_pixels))
        vector = np.asarray(like, dtype=np.float32)
        if vector.shape != (self.space.image_encoder.dim,):
            raise UsageError(
                f"a picture's vector of shape {vector.shape}, not ({self.space.image_encoder.dim},)", fix="give it as the image encoder made it"
            )
        return self._scorer.image(vector[None])

    def row(self, id: str) -> int:
        """An item's row in the features. Raises :class:`UnknownItem` with the nearest ids."""
        self._look()
        row = self._place.get(id)
        if row is None:
            self.catalogue.item(id)  # raises UnknownItem with the nearest ids
        return self.features.row(id)  # known to the catalogue, new since the build: says to build

    def _allowed(self, where: str, left_out: Sequence[int]) -> np.ndarray:
        """Rows that may be shown, ascending."""
        rows = self._usable
        if where.strip():
            rows = np.intersect1d(rows, [self._place[id] for id in self._kept(where) if id in self._place])
        return np.setdiff1d(rows, left_out) if left_out else rows

    def _kept(self, where: str) -> Collection[str]:
        """Ids that a condition keeps."""
        if not names_guesses(where):
            return self.catalogue.filter_ids(where)
        if self.guesses is None:
            raise UsageError("nothing is guessed here yet", where=where[:200], fix="run `pinhole build tags`")
        return self.guesses.matching(where, self.catalogue.filter_ids, lambda: list(self._place))

    def _candidates(self, sides: dict[str, Side], columns: dict[str, float], words: Sequence[str], allowed: np.ndarray, n: int) -> np.ndarray:
        if len(allowed) <= EXACT:
            return allowed
        count = max(CANDIDATES, 4 * n)
        only = None if len(allowed) == len(self._usable) else allowed
        sources = [self._learned.search(self._composed(sides, columns, "learned"), count, only)]
        sources.append(self._titles.search(self._composed(sides, columns, "title"), count, only))
        sources.append(np.array([self._place[id] for id in words if id in self._place], dtype=np.int64))
        return np.intersect1d(np.concatenate(sources), allowed)

    def _composed(self, sides: dict[str, Side], columns: dict[str, float], name: str) -> np.ndarray:
        """One vector for all sides: what an index can be asked."""
        total = np.zeros(getattr(next(iter(sides.values())), name).shape[1], np.float32)
        for side, vectors in sides.items():
            total += self._factor(side, name, columns) * getattr(vectors, name)[0]
        return total

    def _factor(self, side: str, name: str, columns: dict[str, float]) -> float:
        if side != "unlike":
            return columns[f"{side}.{name}"]
        return -UNLIKE * columns.get(f"like.{name}", self.weights.kinds["like"][f"like.{name}"])

    def _parts(
        self, sides: dict[str, Side], columns: dict[str, float], words: dict[str, float], rows: np.ndarray, supposed: Mapping[str, float] = NO_WORDS
    ) -> dict[str, np.ndarray]:
        """Each weighted column (rows,)."""
        most = 2 * len(rows) > len(self.features)  # then scoring all, as they lie, is cheaper than gathering
        block = self._scorer.block(None if most else rows)
        parts = {}
        for side, vectors in sides.items():
            factors = {name: self._factor(side, name, columns) for name in COLUMNS}
            weighed = [name for name, factor in factors.items() if factor]
            found = self._scorer.standardised(vectors, block, self._cohort, weighed)[:, 0]  # (columns, rows)
            for name, values in zip(COLUMNS, found[:, rows] if most else found, strict=True):
                parts[f"{side}.{name}"] = factors[name] * values
        if words:
            place = self._named(words)
            parts[WORDS] = columns[WORDS] * np.array([place.get(row, 0.0) for row in rows.tolist()], dtype=np.float32)
        if supposed:
            place = self._named(supposed)
            parts[GUESSED] = self.guessed * columns[WORDS] * np.array([place.get(row, 0.0) for row in rows.tolist()], dtype=np.float32)
        return parts

    def ranked(self, parts: dict[str, np.ndarray], rows: np.ndarray, n: int, arranged: bool = True) -> list[Hit]:
        """The ``n`` of ``rows`` with the largest sums of ``parts``, each (rows,); in another order where they are ``arranged``."""
        total = np.round(np.sum(list(parts.values()), axis=0), 5)
        order = np.lexsort((rows, -total))[: max(n, POOL)]
        order = order[self._arranger(rows[order], total[order], n)] if arranged else order[:n]
        return [
            Hit(self.features.ids[rows[place]], float(total[place]), {name: round(float(values[place]), 5) for name, values in parts.items()})
            for place in order
        ]

    def _pictures(self, rows: np.ndarray) -> np.ndarray:
        return self.space.picture(self.features.image[rows]) * self.features.has_image[rows][:, None]


def _listed(likes: Sequence[Like] | Like) -> list[Like]:
    return [likes] if isinstance(likes, str | bytes | np.ndarray) else list(likes)
