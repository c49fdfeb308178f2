"""The artefact of ``tags``, made and read: what is guessed of each item, beside what its owner says and never instead of it.

    guesses.parquet   id, name, value, confidence: one row a guess, best first within an item and a name
    tags.json         the space, the names, what each was learned from; written last

A guess repeats nothing that the owner wrote; of an attribute that never has two values nothing is guessed where the owner gave one. Knows
nothing of how words are learned (``tags``).
"""

from __future__ import annotations

import difflib
import io
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
    from pinhole.catalogue.store import Catalogue
    from pinhole.config import Config
    from pinhole.vision.align import Space
    from pinhole.vision.features import Features
    from pinhole.vision.signals import Signals

LAYOUT = 1
FILE = "guesses.parquet"
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
    usable = np.flatnonzero(features.has_image | features.has_text)
    said = _said(catalogue, features.ids, settings.attributes)
    examined, rows, learned = list[Guessed](), list[tuple[str, str, str, float]](), dict[str, Any]()
    for number, name in enumerate(settings.attributes):
        labels = read_labels(name, said[name], part.items, split.query, settings)
        if labels.values:
            guesser, sure = learn_attribute(evidence, labels, part.items, (inside.items, outside.items), settings)
            rows += _kept(guess(guesser, sure, usable), said[name], features.ids)
            examined.append(guess(guesser, sure, fresh(features, held.items, part.items, Pictures(space, features))))
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


def _write(rows: Sequence[tuple[str, str, str, float]], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, types = ("id", "name", "value", "confidence"), (pa.string(), pa.string(), pa.string(), pa.float32())
    columns = {name: pa.array([row[at] for row in rows], kind) for at, (name, kind) in enumerate(zip(names, types, strict=True))}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    write_atomic(out / FILE, buffer.getvalue())


# -- reading ------------------------------------------------------------------------------------


class Guesses:
    """What is guessed, by item, by value, and by words. May be used from several threads."""

    def __init__(self, rows: Sequence[tuple[str, str, str, float]], names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._of: dict[str, list[Guess]] = defaultdict(list)
        self._having: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
        for id, name, value, confidence in rows:
            self._of[id].append(Guess(name, value, confidence))
            if name != CAPTION:  # read, not searched: a sentence is no word
                self._having[name, value.lower()].append((id, confidence))

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
            table = pq.read_table(folder / FILE)
            columns = [table[name].to_pylist() for name in ("id", "name", "value", "confidence")]
        except Exception as error:  # pyarrow's own kinds
            fix = "delete the folder and run `pinhole build tags`"
            raise Corrupt(f"cannot be read: {error}", where=str(folder / FILE), fix=fix) from None
        return cls(list(zip(*columns, strict=True)), list(meta["names"]))

    def of(self, id: str) -> list[Guess]:
        """The surest first."""
        return sorted(self._of.get(id, ()), key=lambda one: -one.confidence)

    # -- search -----------------------------------------------------------------------------------

    @cached_property
    def _words(self) -> dict[str, list[tuple[tuple[str, str], frozenset[str]]]]:
        """Values by one of their words."""
        found: dict[str, list[tuple[tuple[str, str], frozenset[str]]]] = defaultdict(list)
        for key in self._having:
            words = _plain(key[1])
            if words:
                found[min(words)].append((key, words))
        return found

    def scores(self, text: str, items: int) -> dict[str, float]:
        """For the items that a value all of whose words stand in ``text`` is guessed of: the sum over such values of rarity times confidence,
        with ``items`` in the catalogue."""
        asked, found = _plain(text), dict[str, float]()
        best: dict[str, dict[frozenset[str], float]] = defaultdict(dict)
        for key, words in (pair for word in asked for pair in self._words.get(word, ()) if pair[1] <= asked):
            rarity = math.log(1 + items / len(self._having[key]))
            for id, confidence in self._having[key]:  # the same word as a keyword and as a category counts once
                best[id][words] = max(best[id].get(words, 0.0), rarity * confidence)
        for id, parts in best.items():
            found[id] = sum(parts.values())
        return found

    # -- filters ----------------------------------------------------------------------------------

    def matching(self, where: str, owned: Callable[[str], Sequence[str]], everything: Callable[[], Sequence[str]]) -> set[str]:
        """Ids that a condition with ``guess.NAME`` in it keeps; ``owned`` answers the parts that name no guess, ``everything`` gives all ids."""
        return self._keep(filters.parsed(where), where, owned, everything)

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
            found = self._bearing(*pair, where)
            return found if kind == "EQ" else {id for id, listed in self._of.items() if any(one.name == pair[0] for one in listed)} - found
        if kind == "In" and node.expressions and (pair := _name_and_texts(node.this, node.expressions)):
            return self._bearing(*pair, where)
        what = f"not understood of a guess: {node.sql(dialect='postgres')[:80]}"
        raise UsageError(what, where=where[:200], fix="guess.NAME = 'value', <> or IN, joined by AND, OR, NOT")

    def _bearing(self, name: str, values: Sequence[str], where: str) -> set[str]:
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, 3, 0.3) or list(self.names)
            fix = f"guessed are: {', '.join(near)}" if near else "name attributes in [tags] attributes and run `pinhole build tags`"
            raise UsageError(f"nothing is guessed under `{name}`", where=where[:200], fix=fix)
        return {id for value in values for id, _ in self._having.get((name, value.lower()), ())}


def _plain(text: str) -> frozenset[str]:
    """Words without case, punctuation and plural."""
    return frozenset(query_key(" ".join(re.findall(r"\w+", text))).split())


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
