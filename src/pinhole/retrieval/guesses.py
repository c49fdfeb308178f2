"""The artefact of ``tags``, made and read: what is guessed of each item, beside what its owner says and never instead of it.

    guesses.parquet   id, name, value, confidence: one row a guess, best first within an item and a name
    tags.json         the space, the names, what each was learned from; written last

A guess repeats nothing that the owner wrote; of an attribute that never has two values nothing is guessed where the owner gave one. Knows
nothing of how words are learned (``tags``).
"""

from __future__ import annotations

import bisect
import difflib
import io
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.catalogue import filters
from pinhole.catalogue.records import attributes
from pinhole.catalogue.split import Split, query_key
from pinhole.errors import Corrupt, MissingArtefact, SpaceMismatch, UsageError
from pinhole.retrieval.tags import Evidence, Guessed, fresh, guess, learn_attribute, read_labels, values_of
from pinhole.vision.align import Pictures
from pinhole.workspace import read_json, write_atomic, write_json

if TYPE_CHECKING:
    import pyarrow as pa

    from pinhole.catalogue.store import Catalogue
    from pinhole.config import Config
    from pinhole.vision.align import Space
    from pinhole.vision.features import Features
    from pinhole.vision.signals import Signals

LAYOUT = 1
FILE = "guesses.parquet"
SPLIT = "\x1f"  # between a name and a value; values have no control characters
CAPTION = "caption"  # the name under which a sentence about an item stands
SPACE = "guess"  # what stands before a name in a filter
Progress = Callable[[int, int], None]
Captions = Mapping[int, tuple[str, float]]
"""Of rows of the features: a text, and how sure it is."""
NONE: Captions = MappingProxyType({})


@dataclass(frozen=True)
class Guess:
    """``name`` of the item may be ``value``; of a hundred guesses as confident as this, so many hundredths are right."""

    name: str
    value: str
    confidence: float

    def public(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "confidence": round(self.confidence, 3)}


# -- the stage ----------------------------------------------------------------------------------


def build_tags(
    catalogue: Catalogue, features: Features, space: Space, signals: Signals, config: Config, out: Path, progress: Progress, captions: Captions = NONE
) -> tuple[list[Guessed], dict[str, float]]:
    """The stage ``tags``: learn each attribute on the training part, write what is guessed of every item, and ``captions`` beside it.

    Returns for each attribute the guesses about held-out items (what exams are made of) and figures for the manifest. Raises
    :class:`SpaceMismatch` where the features come from other encoders than the space.
    """
    space.check_features(features)
    settings, split, evidence = config.tags, Split(config.catalogue), Evidence(features, space)
    part, held = signals.part(config.catalogue)
    inside, outside = part.inner(config.catalogue)
    usable, pictures = np.flatnonzero(features.has_image | features.has_text), Pictures(space, features)
    tried, asked = fresh(features, outside.items, inside.items, pictures), fresh(features, held.items, part.items, pictures)
    said = _said(catalogue, features.ids, settings.attributes)
    examined, rows, learned = list[Guessed](), list[tuple[str, str, str, float]](), dict[str, Any]()
    for number, name in enumerate(settings.attributes):
        labels = read_labels(name, said[name], part.items, split.query, settings)
        if labels.values:
            guesser, sure = learn_attribute(evidence, labels, part.items, (inside.items, tried), settings)
            rows += _kept(guess(guesser, sure, usable), said[name], features.ids)
            examined.append(guess(guesser, sure, asked))
            learned[name] = {"values": len(labels.values), "least": sure.least, "one": labels.one}
        progress(number + 1, len(settings.attributes))
    rows += [(features.ids[row], CAPTION, text, sure) for row, (text, sure) in captions.items()]
    _write(rows, out)
    write_json(out / "tags.json", {"layout": LAYOUT, "space": space.identity, "names": learned})
    figures = {f"values.{name}": float(one["values"]) for name, one in learned.items()}
    return examined, {"guesses": float(len(rows)), "items": float(len({row[0] for row in rows})), **figures}


def _said(catalogue: Catalogue, ids: Sequence[str], names: Sequence[str]) -> dict[str, list[object]]:
    """For each name every row's attribute."""
    table = catalogue.items(["id", "attributes"])
    found = {id: [values.get(name) for name in names] for id, values in zip(table["id"].to_pylist(), attributes(table), strict=True)}
    nothing = [None] * len(names)
    return {name: [found.get(id, nothing)[place] for id in ids] for place, name in enumerate(names)}


def _kept(found: Guessed, said: Sequence[object], ids: Sequence[str]) -> list[tuple[str, str, str, float]]:
    out = []
    for row, values, chances in zip(found.rows.tolist(), found.values.tolist(), found.chances.tolist(), strict=True):
        own = {value.lower() for value in values_of(said[row])}
        for value, chance in zip(values, chances, strict=True):
            word = found.labels.values[value]
            if chance >= found.least and not (own and found.labels.one) and word.lower() not in own:
                out.append((ids[row], found.labels.name, word, chance))
    return out


def as_table(rows: Sequence[tuple[str, str, str, float]]) -> pa.Table:
    """Of (id, name, value, confidence)."""
    import pyarrow as pa

    names, types = ("id", "name", "value", "confidence"), (pa.string(), pa.string(), pa.string(), pa.float32())
    return pa.table({name: pa.array([row[at] for row in rows], kind) for at, (name, kind) in enumerate(zip(names, types, strict=True))})


def _write(rows: Sequence[tuple[str, str, str, float]], out: Path) -> None:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(as_table(rows), buffer)
    write_atomic(out / FILE, buffer.getvalue())


# -- reading ------------------------------------------------------------------------------------


class Guesses:
    """What is guessed, by item, by value, and by words: arrays, so that a million items' guesses fit into memory. Any number of threads may ask."""

    def __init__(self, table: pa.Table, names: Sequence[str]) -> None:
        """``table`` has the columns id, name, value, confidence."""
        import pyarrow as pa
        import pyarrow.compute as pc

        self.names = tuple(names)
        table = table.sort_by([("id", "ascending"), ("confidence", "descending")]).combine_chunks()
        ids = pc.dictionary_encode(pa.chunked_array(table["id"].chunks, pa.string()).combine_chunks())
        words = pc.dictionary_encode(pc.binary_join_element_wise(table["name"], table["value"], SPLIT).combine_chunks())
        self._ids, self._place = ids.dictionary, ids.indices.to_numpy()  # (items,) ascending; (guesses,) whose each is
        self._codes, self._confidence = words.indices.to_numpy(), table["confidence"].to_numpy()  # (guesses,)
        self._values: list[tuple[str, str]] = [(name, value) for name, _, value in (one.partition(SPLIT) for one in words.dictionary.to_pylist())]
        self._starts = np.searchsorted(self._place, np.arange(len(self._ids) + 1))
        self._by_code = np.argsort(self._codes, kind="stable")
        self._code_starts = np.searchsorted(self._codes[self._by_code], np.arange(len(self._values) + 1))

    @classmethod
    def load(cls, folder: Path, space: str) -> Guesses:
        """Raises :class:`MissingArtefact`, :class:`Corrupt`, and :class:`SpaceMismatch` where they were made in another space than ``space``."""
        import pyarrow.parquet as pq

        if not (folder / "tags.json").exists():
            raise MissingArtefact("no guesses", where=str(folder), fix="run `pinhole build tags`")
        meta = read_json(folder / "tags.json")
        if meta.get("layout") != LAYOUT:
            raise Corrupt(f"guesses of layout {meta.get('layout')}, not {LAYOUT}", where=str(folder), fix="run `pinhole build tags`")
        if meta["space"] != space:
            raise SpaceMismatch(f"guesses of space {meta['space']} met space {space}", where=str(folder), fix="run `pinhole build`")
        try:
            return cls(pq.read_table(folder / FILE, columns=["id", "name", "value", "confidence"]), list(meta["names"]))
        except Exception as error:  # pyarrow's own kinds
            fix = "delete the folder and run `pinhole build tags`"
            raise Corrupt(f"cannot be read: {error}", where=str(folder / FILE), fix=fix) from None

    def of(self, id: str) -> list[Guess]:
        """The surest first."""
        at = bisect.bisect_left(range(len(self._ids)), id, key=lambda place: self._ids[place].as_py())
        if at == len(self._ids) or self._ids[at].as_py() != id:
            return []
        mine = slice(self._starts[at], self._starts[at + 1])
        found = zip((self._values[code] for code in self._codes[mine]), self._confidence[mine].tolist(), strict=True)
        return [Guess(name, value, sure) for (name, value), sure in found]

    def _guesses(self, code: int) -> np.ndarray:
        """Numbers of the guesses of one value."""
        return np.asarray(self._by_code[self._code_starts[code] : self._code_starts[code + 1]])

    # -- search -----------------------------------------------------------------------------------

    @cached_property
    def _words(self) -> dict[str, list[tuple[frozenset[str], int]]]:
        """Values by one of their words."""
        found: dict[str, list[tuple[frozenset[str], int]]] = defaultdict(list)
        for code, (name, value) in enumerate(self._values):
            if name != CAPTION and (words := _plain(value)):  # a sentence is read, not searched
                found[min(words)].append((words, code))
        return found

    def scores(self, text: str, items: int, most: int = 1000) -> dict[str, float]:
        """Of the items that a value all of whose words stand in ``text`` is guessed of, the ``most`` best: the sum over such values of rarity times
        confidence, with ``items`` in the catalogue."""
        asked, among = _plain(text), defaultdict[frozenset[str], list[int]](list)
        for words, code in (pair for word in asked for pair in self._words.get(word, ()) if pair[0] <= asked):
            among[words].append(code)
        if not among:
            return {}
        total = np.zeros(len(self._ids), np.float32)
        for codes in among.values():
            best = np.zeros(len(self._ids), np.float32)
            for code in codes:  # the same word as a keyword and as a category counts once
                mine = self._guesses(code)
                best[self._place[mine]] = np.maximum(best[self._place[mine]], math.log(1 + items / len(mine)) * self._confidence[mine])
            total += best
        order = np.argsort(-total, kind="stable")[:most]
        kept = order[total[order] > 0]
        return dict(zip(self._ids.take(kept).to_pylist(), total[kept].tolist(), strict=True))

    # -- filters ----------------------------------------------------------------------------------

    def matching(self, where: str, owned: Callable[[str], Sequence[str]], everything: Callable[[], Sequence[str]]) -> set[str]:
        """Ids that a condition with ``guess.NAME`` in it keeps; ``owned`` answers the parts that name no guess, ``everything`` gives all ids."""
        try:
            return self._keep(filters.parsed(where), where, owned, everything)
        except RecursionError:
            raise UsageError("the filter is nested too deeply", where=where[:200], fix="write it with fewer parentheses") from None

    def _keep(self, node: Any, where: str, owned: Callable[[str], Sequence[str]], everything: Callable[[], Sequence[str]]) -> set[str]:
        if not guesses_in(node):
            return set(owned(node.sql(dialect="postgres")))
        kind = type(node).__name__
        below = [one for one in (node.this, node.args.get("expression")) if one is not None]
        if kind == "Paren":
            return self._keep(node.this, where, owned, everything)
        if kind in ("And", "Or"):
            left, right = (self._keep(one, where, owned, everything) for one in below)
            return left & right if kind == "And" else left | right
        if kind == "Not":
            return set(everything()) - self._keep(node.this, where, owned, everything)
        if kind in ("EQ", "NEQ") and (pair := _name_and_texts(node.this, [node.expression]) or _name_and_texts(node.expression, [node.this])):
            name, texts = pair
            found = self._bearing(name, texts, where)
            return found if kind == "EQ" else self._bearers(lambda other, value: other == name) - found
        if kind == "In" and node.expressions and (pair := _name_and_texts(node.this, node.expressions)):
            return self._bearing(*pair, where)
        what = f"not understood of a guess: {node.sql(dialect='postgres')[:80]}"
        raise UsageError(what, where=where[:200], fix="guess.NAME = 'value', <> or IN, joined by AND, OR, NOT")

    def _bearing(self, name: str, values: Sequence[str], where: str) -> set[str]:
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, 3, 0.3) or list(self.names)
            fix = f"guessed are: {', '.join(near)}" if near else "name attributes in [tags] attributes and run `pinhole build tags`"
            raise UsageError(f"nothing is guessed under `{name}`", where=where[:200], fix=fix)
        wanted = {value.lower() for value in values}
        return self._bearers(lambda other, value: other == name and value.lower() in wanted)

    def _bearers(self, asked: Callable[[str, str], bool]) -> set[str]:
        """Ids of the items that such a (name, value) is guessed of."""
        codes = [code for code, pair in enumerate(self._values) if asked(*pair)]
        places = np.unique(np.concatenate([self._place[self._guesses(code)] for code in codes])) if codes else np.zeros(0, np.int64)
        return set(self._ids.take(places).to_pylist())


def _plain(text: str) -> frozenset[str]:
    """Words without case, punctuation and plural."""
    return frozenset(query_key(" ".join(re.findall(r"\w+", text))).split())


@lru_cache(maxsize=256)
def names_guesses(where: str) -> bool:
    """Whether a condition names a guess; asked more than once a search. Raises :class:`UsageError` where it is no condition."""
    return guesses_in(filters.parsed(where))


def guesses_in(node: Any) -> bool:
    """Whether a parsed condition names a guess anywhere."""
    from sqlglot import exp

    return any(_named(column) for column in node.find_all(exp.Column))


def _named(node: Any) -> str:
    """The name in ``guess.NAME``, "" for anything else."""
    names = [part.name for part in node.parts] if type(node).__name__ == "Column" else []
    return ".".join(names[1:]) if len(names) > 1 and names[0].lower() == SPACE else ""


def _name_and_texts(left: Any, right: Sequence[Any]) -> tuple[str, list[str]] | None:
    name = _named(left)
    texts = [str(one.this) for one in right if type(one).__name__ == "Literal" and one.is_string]
    return (name, texts) if name and len(texts) == len(right) else None
