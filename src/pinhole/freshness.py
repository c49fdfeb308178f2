"""When data has changed enough: what a stage was made from is noted beside it, and compared with what there is now.

    basis.npz   for each table a sorted array of 64-bit hashes: an item with its picture and title, a board with one of its items, a
                query with an item that it led to, a judgement

The stages' policies stand here: a space, a graft and exams are kept until a share of that has changed; an index is
extended until then. Counts of clicks and prices change every day and decide nothing. Knows nothing of how stages run.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.builder import Build, Standing, Verdict, root
from pinhole.workspace import Workspace, write_atomic

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.vision.features import Features

BASIS = "basis.npz"
NAMES = {"items": "items", "boards": "boards' links", "queries": "queries' links", "judgements": "judgements"}
TEACHING = ("items", "boards", "queries")  # the tables whose change is counted
FOLLOWING = ("embed", "tags")  # stages that are made anew with every change of items: what they hold changes as much as that
Basis = dict[str, np.ndarray]


# -- what a stage was made from -----------------------------------------------------------------


def note(job: Build, attributes: Sequence[str] = (), tables: Sequence[str] = TEACHING) -> None:
    """``basis.npz`` of what there is now in ``tables``, beside what is being made; ``attributes`` of an item that are read too."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **_basis(job.workspace, _features(job.inputs["embed"].path), tables, attributes))
    write_atomic(job.out / BASIS, buffer.getvalue())


def shares(path: Path, workspace: Workspace, features: Features, tables: Sequence[str], attributes: Sequence[str] = ()) -> dict[str, float] | None:
    """For each table how much of it is another than was noted at ``path``: what came or what went, the larger, as a share of what there
    was. None where nothing was noted."""
    if not (path / BASIS).exists():
        return None
    with np.load(path / BASIS, allow_pickle=False) as noted:
        old = {table: noted[table] for table in noted.files}
    if not set(tables) <= old.keys():
        return None
    new = _basis(workspace, features, tables, attributes)
    return {table: _changed(old[table], new[table]) for table in tables}


def _changed(old: np.ndarray, new: np.ndarray) -> float:
    came, went = (len(np.setdiff1d(*pair, assume_unique=True)) for pair in ((new, old), (old, new)))
    return max(came, went) / max(len(old), 1)


def _features(path: Path) -> Features:
    from pinhole.vision.features import Features

    return Features.load(path)


def _basis(workspace: Workspace, features: Features, tables: Sequence[str], attributes: Sequence[str]) -> Basis:
    from pinhole.catalogue.store import Catalogue

    catalogue = Catalogue(workspace.tables)
    return {table: _hashed(_items(catalogue, features, attributes) if table == "items" else _links(catalogue, table)) for table in tables}


def _items(catalogue: Catalogue, features: Features, attributes: Sequence[str]) -> Iterable[str]:
    columns = [features.rows[name].to_pylist() for name in ("id", "image", "title")]
    if not attributes:
        return ("\x1f".join(one or "" for one in row) for row in zip(*columns, strict=True))
    from pinhole.catalogue.records import attributes as parsed

    table = catalogue.items(["id", "attributes"])
    told = {id: [str(values.get(name, "")) for name in attributes] for id, values in zip(table["id"].to_pylist(), parsed(table), strict=True)}
    return ("\x1f".join([*(one or "" for one in row), *told.get(row[0], ())]) for row in zip(*columns, strict=True))


def _links(catalogue: Catalogue, table: str) -> Iterable[str]:
    if table == "boards":
        boards = catalogue.boards()
        columns = zip(boards["id"].to_pylist(), boards["items"].to_pylist(), boards["private"].to_pylist(), strict=True)
        return (f"{id}\x1f{item}" for id, items, private in columns if not private for item in items)
    if table == "judgements":
        judged = catalogue.judgements()
        return ("\x1f".join(map(str, row)) for row in zip(*(judged[name].to_pylist() for name in ("text", "item", "grade")), strict=True))
    queries = catalogue.queries()
    return (f"{text}\x1f{item}" for text, item in zip(queries["text"].to_pylist(), queries["item"].to_pylist(), strict=True))


def _hashed(texts: Iterable[str]) -> np.ndarray:
    """(n,) uint64, ascending, distinct."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.unique(np.frombuffer(joined, dtype="<u8"))


# -- policies -----------------------------------------------------------------------------------


def judge_trained(standing: Standing, limit: float, tables: Sequence[str], attributes: Sequence[str] = (), again: str = "trained again") -> Verdict:
    """``kept`` below ``limit``, unless something that it learned from but the features is another."""
    if strange := _another(standing):
        return Verdict("anew", f"{strange} is another")
    found = shares(standing.latest.path, standing.workspace, _features(standing.inputs["embed"].path), tables, attributes)
    if found is None:
        return Verdict("anew", "what it was made from was not noted")
    what = _in_words(found)
    if max(found.values()) >= limit and any(found.values()):
        return Verdict("anew", f"{what} changed since, {limit:.0%} is the limit")
    return Verdict("kept", f"{what} changed since, it is {again} from {limit:.0%}" if what else "nothing changed of what it learned from")


def judge_index(standing: Standing) -> Verdict:
    """``extended`` in the same space, while little changed and the index still finds what a scan finds."""
    from pinhole.retrieval.extend import BASE, Moves

    config = standing.workspace.config.index
    if strange := _another(standing):
        return Verdict("anew", f"{strange} is another")
    features = _features(standing.inputs["embed"].path)
    found = shares(standing.latest.path, standing.workspace, features, TEACHING)
    if found is None or not (standing.latest.path / BASE).exists():
        return Verdict("anew", "what it was made from was not noted")
    moves = Moves.since(standing.latest.path, features)
    if max(*found.values(), moves.tail) >= config.rebuild_at and (any(found.values()) or moves.tail):
        return Verdict("anew", f"{_in_words(found)} changed since, tail {moves.tail:.1%}, {config.rebuild_at:.0%} is the limit")
    recall = _recall(standing, features, moves)
    if recall < config.least_recall:
        return Verdict("anew", f"extended its recall@10 would be {recall:.3f}, {config.least_recall:.2f} is the least")
    measured = f", recall@10 {recall:.3f}" if recall < 1 else ""
    appended = f"{len(moves.fresh):,} appended, {moves.removed:,} removed, tail {moves.tail:.1%}{measured}"
    return Verdict("extended", f"{appended} (built anew from {config.rebuild_at:.0%})")


def _recall(standing: Standing, features: Features, moves: Any) -> float:
    """1 where every vector is looked at: nothing can be missed."""
    from pinhole.retrieval.extend import Extended, approximate, recall, tails
    from pinhole.retrieval.nearest import Nearest
    from pinhole.vision.align import Space

    base = Nearest.load(standing.latest.path / "learned.faiss")
    if not approximate(base):
        return 1.0
    tail, _ = tails(features, Space.load(standing.inputs["align"].path), moves, standing.workspace.config.index)
    return recall(Extended(base, moves.now, tail))


def _another(standing: Standing) -> str:
    """The first input, those that follow the items apart, that is neither what it was nor an extension of the same."""
    for name, key in standing.latest.manifest["recipe"]["inputs"].items():
        now, was = standing.inputs[name], standing.workspace.find(name, key)
        if name not in FOLLOWING and now.key != key and (was is None or root(was) != root(now)):
            return str(name)
    return ""


def _in_words(found: dict[str, float]) -> str:
    """ "1.0% of the items, 0.4% of the queries' links" """
    return ", ".join(f"{share:.1%} of the {NAMES[table]}" for table, share in found.items() if share)
