"""The tables' columns, and the one function that turns what an owner brings into rows of them.

A batch comes in as named columns (Arrow arrays, or Python lists where a source has no types) and
leaves as a typed Arrow table plus the rows that cannot be kept, each with a reason. Columns that a
table does not name are folded into the JSON object ``attributes`` (items) or ``context`` (events);
the others leave them out. Knows nothing of files, of Lance, or of what other rows exist.
Does not look inside images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pinhole.catalogue.values import as_bytes, as_ids, as_integer, as_json, as_object, as_text, as_time, as_truth, dumps
from pinhole.errors import IngestError, UnknownName

TIME = pa.timestamp("us", tz="UTC")
IDS = pa.list_(pa.string())
ITEMS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),  # path or URL; null where there is none
        ("image_bytes", pa.large_binary()),
        ("title", pa.string()),  # "" where there is none
        ("description", pa.string()),
        ("attributes", pa.string()),  # a JSON object, keys sorted
        ("created_at", TIME),
    ]
)
BOARDS = pa.schema([("id", pa.string()), ("title", pa.string()), ("owner", pa.string()), ("items", IDS), ("private", pa.bool_())])
QUERIES = pa.schema([("text", pa.string()), ("item", pa.string()), ("count", pa.int64())])
EVENTS = pa.schema([*((name, pa.string()) for name in ("event_id", "user", "item", "action")), ("time", TIME), ("context", pa.string())])
JUDGEMENTS = pa.schema([("text", pa.string()), ("item", pa.string()), ("grade", pa.int64())])  # 0 = nothing to do with it … 4 = just that
REJECTED = pa.schema(
    [
        ("key", pa.string()),  # kind, source and row (or id) in one: a rerun replaces, never repeats
        ("kind", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),  # the line of a text file, else the row counted from 1; null where the id says which
        ("id", pa.string()),
        ("reason", pa.string()),
        ("data", pa.string()),  # the row as JSON, shortened
    ]
)
KINDS = ("items", "boards", "queries", "events", "judgements")
SCHEMAS: dict[str, pa.Schema] = {
    "items": ITEMS,
    "boards": BOARDS,
    "queries": QUERIES,
    "events": EVENTS,
    "judgements": JUDGEMENTS,
    "rejected": REJECTED,
}
KEYS: dict[str, tuple[str, ...]] = {
    "items": ("id",),
    "boards": ("id",),
    "queries": ("text", "item"),
    "events": ("event_id",),
    "judgements": ("text", "item"),
    "rejected": ("key",),
}
# Columns without which no row of a kind means anything, and the one that takes whatever the schema does not name.
NEEDED = {
    "items": ("id",),
    "boards": ("id", "items"),
    "queries": ("text", "item"),
    "events": ("user", "item", "action"),
    "judgements": ("text", "item", "grade"),
}
OVERFLOW = {"items": "attributes", "events": "context"}
WORTH = 4  # the best grade of a judgement
SHORT = 2000  # characters of a rejected row that are kept

Column: TypeAlias = Any  # a pyarrow Array or ChunkedArray, or a list of Python values


@dataclass(frozen=True)
class Counts:
    """What an upsert did, in rows."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    rejected: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.added + other.added, self.changed + other.changed, self.unchanged + other.unchanged, self.rejected + other.rejected)


@dataclass(frozen=True)
class Rejection:
    """A row that is not kept: where it stood in its source (or, with no row, its id), and why."""

    row: int | None
    id: str
    reason: str
    data: str = ""


@dataclass
class Batch:
    """Named columns of equal length, for each row its place in the source, and the rows that could not be read at all."""

    columns: dict[str, Column]
    rows: Sequence[int]
    broken: list[Rejection] = field(default_factory=list)

    @staticmethod
    def of(table: pa.Table, first: int = 1) -> Batch:
        return Batch({name: _micro(table.column(name)) for name in table.column_names}, range(first, first + len(table)))


@dataclass
class Rows:
    """Typed rows, for each its place in the source, and what was refused on the way."""

    table: pa.Table
    places: list[int]
    refused: list[Rejection]

    def keep(self, mask: list[bool], more: list[Rejection]) -> Rows:
        """The rows under the mask; ``more`` was refused besides."""
        places = [place for place, kept in zip(self.places, mask, strict=True) if kept]
        return Rows(self.table.filter(pa.array(mask, pa.bool_())), places, self.refused + more)


def check_kind(kind: str) -> str:
    """Raises :class:`UnknownName` for anything but items, boards, queries, events, judgements."""
    if kind not in KINDS:
        raise UnknownName(f"unknown kind `{kind}`", fix=f"known: {', '.join(KINDS)}")
    return kind


def normalise(kind: str, batch: Batch, *, where: str = "", base: Path | None = None, root: Path | None = None) -> Rows:
    """Type a batch, row by row where types do not say enough.

    ``base`` is the folder that image paths are relative to. A path inside ``root`` (the workspace) is
    kept relative to it, so that the workspace can be moved; any other is kept absolute.
    Raises :class:`IngestError` where a needed column is missing altogether.
    """
    schema, columns, size = SCHEMAS[check_kind(kind)], batch.columns, len(batch.rows)
    missing = [name for name in NEEDED[kind] if name not in columns]
    if missing:
        names, there = ", ".join(f"`{name}`" for name in missing), ", ".join(columns) or "none"
        raise IngestError(f"{kind} need a column {names}", where=where, fix=f"columns there: {there}; rename one with --map {missing[0]}=COLUMN")
    bad = _Faults()
    typed = {column.name: _typed(column, columns.get(column.name), size, bad) for column in schema}
    if kind in OVERFLOW:
        _fold(kind, typed, columns, bad)
    _FINISH[kind](typed, bad, base, root)
    for name in NEEDED[kind]:
        if pa.types.is_string(schema.field(name).type):
            bad.where(pc.equal(typed[name], ""), f"no {name}")
    table, names_row = pa.table(typed, schema=schema), "item" if kind in ("queries", "events", "judgements") else "id"
    refused = [Rejection(batch.rows[i], table[names_row][i].as_py() or "", reason, _shown(columns, i)) for i, reason in sorted(bad.reasons.items())]
    whole = Rows(table, list(batch.rows), batch.broken)
    return whole.keep([i not in bad.reasons for i in range(size)], refused) if refused else whole


def refer(kind: str, rows: Rows, known: pa.ChunkedArray) -> Rows:
    """Refuse rows that name items which are not ``known``; a board keeps those of its items that are."""
    fix = "ingest the items first, then this source again"
    if kind != "boards":
        mask = pc.is_in(rows.table["item"], value_set=known).to_pylist()
        gone = [i for i, there in enumerate(mask) if not there]
        texts = rows.table.take(pa.array(gone, pa.int64())).to_pylist()
        reasons = (f"unknown item `{row['item']}`: {fix}" for row in texts)
        more = [Rejection(rows.places[i], row["item"], why, dumps(row)[:SHORT]) for i, row, why in zip(gone, texts, reasons, strict=True)]
        return rows.keep(mask, more)
    there, lists, more = set(known.to_pylist()), [], []
    for id, items, place in zip(rows.table["id"].to_pylist(), rows.table["items"].to_pylist(), rows.places, strict=True):
        lists.append([item for item in items if item in there])
        if unknown := [item for item in items if item not in there]:
            some = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
            left = f"the board keeps the other {len(lists[-1])}" if lists[-1] else "none is left, so the board is not kept"
            more.append(Rejection(place, id, f"unknown items ({some}): {left}; {fix}", dumps({"id": id, "unknown": unknown})[:SHORT]))
    table = rows.table.set_column(rows.table.schema.get_field_index("items"), "items", pa.array(lists, IDS))
    return Rows(table, rows.places, rows.refused).keep([bool(items) for items in lists], more)


def rejections(kind: str, source: str, refused: Sequence[Rejection]) -> pa.Table:
    """Refused rows as rows of the ``rejected`` table."""
    rows = [
        {"key": rejection_key(kind, source, r), "kind": kind, "source": source, "row": r.row, "id": r.id, "reason": r.reason, "data": r.data}
        for r in refused
    ]
    return pa.Table.from_pylist(rows, schema=REJECTED)


def rejection_key(kind: str, source: str, refused: Rejection) -> str:
    return f"{kind}:{source}:{refused.id if refused.row is None else refused.row}"


def digests(kind: str, table: pa.Table, stamps: pa.Array | None = None) -> pa.Array:
    """16 bytes for each row, a hash of its content; ``stamps`` stand for what a path points at."""
    parts = [_hashable(table.column(name)) for name in SCHEMAS[kind].names]
    if stamps is not None:
        parts.append(stamps)
    joined = pc.binary_join_element_wise(*parts, "\x1f", null_handling="replace", null_replacement="\x00")
    return pa.array([hashlib.blake2b(text.encode(), digest_size=16).digest() for text in joined.to_pylist()], pa.binary(16))


def key_of(kind: str, table: pa.Table) -> pa.ChunkedArray:
    """The rows' keys, those of several columns joined into one."""
    keys = KEYS[kind]
    return table[keys[0]] if len(keys) == 1 else pc.binary_join_element_wise(*(table[key] for key in keys), "\x1f")


def attributes(table: pa.Table, column: str = "attributes") -> list[dict[str, Any]]:
    """A column of JSON objects as Python dicts."""
    return [json.loads(text) if text else {} for text in table.column(column).to_pylist()]


# -- typing a column --------------------------------------------------------------------------------


class _Faults:
    """The first reason against each row of a batch."""

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}

    def add(self, row: int, reason: str) -> None:
        self.reasons.setdefault(row, reason)

    def where(self, mask: pa.Array, reason: str) -> None:
        for row in pc.indices_nonzero(pc.fill_null(mask, True)).to_pylist():
            self.add(row, reason)


def _typed(column: pa.Field, values: Column | None, size: int, bad: _Faults) -> pa.Array:
    kind, name = column.type, column.name
    if values is None:
        return pa.array([""] * size, kind) if name in ("title", "description", "owner", "event_id") else pa.nulls(size, kind)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if name in OVERFLOW.values():
        return _each(values, name, kind, lambda value: dumps(as_object(value)), bad)
    if pa.types.is_string(kind):
        return pc.fill_null(pc.utf8_trim_whitespace(_each(values, name, kind, as_text, bad, _is_text)), "")
    if pa.types.is_timestamp(kind):
        return _each(values, name, kind, as_time, bad, pa.types.is_timestamp)
    if pa.types.is_list(kind):
        return _each(values, name, kind, as_ids, bad)
    if pa.types.is_integer(kind):
        return _each(values, name, kind, as_integer, bad, pa.types.is_signed_integer)
    if pa.types.is_boolean(kind):
        return _each(values, name, kind, as_truth, bad, pa.types.is_boolean)
    return _each(values, name, kind, as_bytes, bad, lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t))


def _micro(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times in nanoseconds, which Python has no type for, as microseconds."""
    kind = column.type
    return column.cast(pa.timestamp("us", tz=kind.tz), safe=False) if pa.types.is_timestamp(kind) and kind.unit == "ns" else column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def _each(
    values: Column, name: str, kind: pa.DataType, convert: Callable[[Any], Any], bad: _Faults, fast: Callable[[pa.DataType], bool] | None = None
) -> pa.Array:
    """A cast where the type is right already, else one converter over all values; a fault where it raises."""
    if isinstance(values, pa.Array):
        if fast is not None and fast(values.type):
            return values.cast(kind, safe=False)
        values = values.to_pylist()
    out = []
    for row, value in enumerate(values):
        try:
            out.append(None if value is None else convert(value))
        except ValueError as error:
            bad.add(row, f"{name}: {error}")
            out.append(None)
    return pa.array(out, kind)


def _hashable(column: pa.ChunkedArray) -> pa.Array:
    """A column as text, equal where and only where the values are."""
    array = column.combine_chunks()
    if pa.types.is_list(array.type):
        return pc.binary_join(array, "\x1e")
    if pa.types.is_large_binary(array.type):
        if array.null_count == len(array):
            return pa.nulls(len(array), pa.string())
        return pa.array([None if v is None else hashlib.blake2b(v, digest_size=16).hexdigest() for v in array.to_pylist()], pa.string())
    return array.cast(pa.int64()).cast(pa.string()) if pa.types.is_timestamp(array.type) else array.cast(pa.string())


def _shown(columns: dict[str, Column], row: int) -> str:
    """A refused row for a person to look at: no bytes, not more than SHORT characters."""
    shown = {name: value.as_py() if isinstance(value := column[row], pa.Scalar) else value for name, column in columns.items()}
    text = dumps({str(name): value for name, value in shown.items() if value is not None and not isinstance(value, (bytes, bytearray))})
    return text[:SHORT].encode("utf-8", "replace").decode()


# -- what only one kind needs -----------------------------------------------------------------------


def _fold(kind: str, typed: dict[str, Any], columns: dict[str, Column], bad: _Faults) -> None:
    """Fold columns that the schema does not name into its JSON column; where both have a name the object's own wins."""
    into, extra = OVERFLOW[kind], [name for name in columns if name not in SCHEMAS[kind].names]
    texts = typed[into].to_pylist()
    lists = [values.to_pylist() if isinstance(values, (pa.Array, pa.ChunkedArray)) else values for values in (columns[name] for name in extra)]
    for row, values in enumerate(zip(*lists, strict=True)):
        try:
            more = {name: kept for name, value in zip(extra, values, strict=True) if (kept := as_json(value)) is not None}
        except ValueError as error:
            bad.add(row, str(error))
            continue
        if more:
            texts[row] = dumps({**more, **json.loads(texts[row] or "{}")})
    typed[into] = pa.array([text or "{}" for text in texts], pa.string())


def _finish_items(typed: dict[str, Any], bad: _Faults, base: Path | None, root: Path | None) -> None:
    places = {image: _place(image, base, root) for image in pc.unique(typed["image"]).to_pylist() if image}
    typed["image"] = pa.array([places.get(image) for image in typed["image"].to_pylist()], pa.string())
    typed["image_bytes"] = pc.if_else(pc.equal(pc.binary_length(typed["image_bytes"]), 0), None, typed["image_bytes"])


def _place(image: str, base: Path | None, root: Path | None) -> str:
    """An image's path as it is kept: absolute, or relative to the workspace it lies in; a URL as it is."""
    image = image.removeprefix("file://")
    if "://" in image:
        return image
    path = os.path.normpath(os.path.join(base or root or Path.cwd(), image))
    return os.path.relpath(path, root) if root is not None and path.startswith(f"{root}{os.sep}") else path


def _finish_boards(typed: dict[str, Any], bad: _Faults, base: Path | None, root: Path | None) -> None:
    typed["private"] = pc.fill_null(typed["private"], False)
    bad.where(pc.equal(pc.list_value_length(typed["items"]), 0), "no items")


def _finish_queries(typed: dict[str, Any], bad: _Faults, base: Path | None, root: Path | None) -> None:
    typed["text"] = pc.replace_substring_regex(typed["text"], r"\s+", " ")
    typed["count"] = pc.fill_null(typed["count"], 1)
    bad.where(pc.less(typed["count"], 1), "count: at least 1 expected")


def _finish_judgements(typed: dict[str, Any], bad: _Faults, base: Path | None, root: Path | None) -> None:
    typed["text"] = pc.replace_substring_regex(typed["text"], r"\s+", " ")
    bad.where(pc.is_null(typed["grade"]), "no grade")
    bad.where(pc.or_(pc.less(typed["grade"], 0), pc.greater(typed["grade"], WORTH)), f"grade: 0 to {WORTH} expected")


def _finish_events(typed: dict[str, Any], bad: _Faults, base: Path | None, root: Path | None) -> None:
    typed["action"] = pc.utf8_lower(typed["action"])
    parts = [typed["user"], typed["item"], typed["action"], pc.fill_null(typed["time"].cast(pa.int64()).cast(pa.string()), "")]
    joined = pc.binary_join_element_wise(*parts, "\x1f").to_pylist()
    given = typed["event_id"].to_pylist()
    made = [own or "~" + hashlib.sha256(key.encode()).hexdigest()[:24] for own, key in zip(given, joined, strict=True)]
    typed["event_id"] = pa.array(made, pa.string())


_FINISH: dict[str, Callable[..., None]] = {
    "items": _finish_items,
    "boards": _finish_boards,
    "queries": _finish_queries,
    "events": _finish_events,
    "judgements": _finish_judgements,
}
