"""The tables' columns, and the one function that turns what an owner brings into rows of them.

A batch comes in as named columns (Arrow arrays, or Python lists where a source has no types) and
leaves as a typed Arrow table plus the rows that cannot be kept, each with a reason. Columns that a
table does not know are folded into the JSON object ``attributes`` (items) or ``context`` (events).

Knows nothing of files, of Lance, or of what other rows exist. Does not look inside images.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pinhole.errors import IngestError, UnknownName

TIME = pa.timestamp("us", tz="UTC")
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
BOARDS = pa.schema([("id", pa.string()), ("title", pa.string()), ("owner", pa.string()), ("items", pa.list_(pa.string())), ("private", pa.bool_())])
QUERIES = pa.schema([("text", pa.string()), ("item", pa.string()), ("count", pa.int64())])
EVENTS = pa.schema([(name, pa.string()) for name in ("event_id", "user", "item", "action")] + [("time", TIME), ("context", pa.string())])
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
SCHEMAS: dict[str, pa.Schema] = {"items": ITEMS, "boards": BOARDS, "queries": QUERIES, "events": EVENTS, "rejected": REJECTED}
KEYS: dict[str, tuple[str, ...]] = {"items": ("id",), "boards": ("id",), "queries": ("text", "item"), "events": ("event_id",), "rejected": ("key",)}
KINDS = ("items", "boards", "queries", "events")

# Columns without which no row of a kind means anything.
NEEDED = {"items": ("id",), "boards": ("id", "items"), "queries": ("text", "item"), "events": ("user", "item", "action")}
# The column that takes whatever the schema does not name.
OVERFLOW = {"items": "attributes", "events": "context"}
SHORT = 2000  # characters of a rejected row that are kept

Column = pa.Array | pa.ChunkedArray | Sequence[Any]


@dataclass(frozen=True)
class Counts:
    """What an upsert did, in rows."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    rejected: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.added + other.added, self.changed + other.changed, self.unchanged + other.unchanged, self.rejected + other.rejected)


@dataclass
class Batch:
    """Named columns of equal length, and for each row where it stood in its source."""

    columns: dict[str, Column]
    rows: Sequence[int | None]
    broken: list[Rejection] = field(default_factory=list)  # rows that the source could not even read

    @staticmethod
    def of(table: pa.Table, first: int = 1) -> Batch:
        return Batch({name: table.column(name) for name in table.column_names}, range(first, first + len(table)))


@dataclass(frozen=True)
class Rejection:
    row: int | None
    id: str
    reason: str
    data: str = ""


def check_kind(kind: str) -> str:
    """Raises :class:`UnknownName` for anything but items, boards, queries, events."""
    if kind not in KINDS:
        raise UnknownName(f"unknown kind `{kind}`", fix=f"known: {', '.join(KINDS)}")
    return kind


def normalise(kind: str, batch: Batch, *, where: str = "", base: Path | None = None, root: Path | None = None) -> tuple[pa.Table, list[int | None], list[Rejection]]:
    """Type a batch: (rows of the kind's schema, each row's place in the source, rows refused with reasons).

    ``base`` is the folder that image paths are relative to. A path inside ``root`` (the workspace) is
    kept relative to it, so that the workspace can be moved; any other is kept absolute.
    Raises :class:`IngestError` where a needed column is missing altogether.
    """
    schema, columns = SCHEMAS[check_kind(kind)], batch.columns
    missing = [name for name in NEEDED[kind] if name not in columns]
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        there = ", ".join(columns) or "none"
        raise IngestError(f"{kind} need a column {names}", where=where, fix=f"columns there: {there}; rename one with --map {missing[0]}=COLUMN")
    size, bad = len(batch.rows), Faults()
    typed = {f.name: _typed(f, columns.get(f.name), size, bad) for f in schema}
    _FINISH[kind](typed, columns, bad, base, root)
    for name in NEEDED[kind]:
        if pa.types.is_string(schema.field(name).type):
            bad.where(pc.equal(typed[name], ""), f"no {name}")
    table = pa.table(typed, schema=schema)
    place = list(batch.rows)
    identity = KEYS[kind][0] if kind != "events" else "item"
    refused = batch.broken + [
        Rejection(place[i], table.column(identity)[i].as_py() or "", reason, _shown(columns, i)) for i, reason in sorted(bad.reasons.items())
    ]
    if bad.reasons:
        keep = [i for i in range(size) if i not in bad.reasons]
        table, place = table.take(pa.array(keep, pa.int64())), [place[i] for i in keep]
    return table, place, refused


def rejections(kind: str, source: str, refused: Sequence[Rejection]) -> pa.Table:
    """The refused rows as rows of the ``rejected`` table."""
    return pa.table(
        {
            "key": [f"{kind}:{source}:{r.id if r.row is None else r.row}" for r in refused],
            "kind": [kind] * len(refused),
            "source": [source] * len(refused),
            "row": [r.row for r in refused],
            "id": [r.id for r in refused],
            "reason": [r.reason for r in refused],
            "data": [r.data for r in refused],
        },
        schema=REJECTED,
    )


def digests(kind: str, table: pa.Table, stamps: pa.Array | None = None) -> pa.Array:
    """16 bytes for each row, a hash of its content; ``stamps`` stand for what a path points at."""
    parts = [_hashable(table.column(name)) for name in SCHEMAS[kind].names]
    if stamps is not None:
        parts.append(stamps)
    joined = pc.binary_join_element_wise(*parts, "\x1f", null_handling="replace", null_replacement="\x00")
    return pa.array([hashlib.blake2b(text.encode(), digest_size=16).digest() for text in joined.to_pylist()], pa.binary(16))


def attributes(table: pa.Table, column: str = "attributes") -> list[dict[str, Any]]:
    """The JSON objects of a column as Python dicts."""
    return [json.loads(text) if text else {} for text in table.column(column).to_pylist()]


def dumps(value: Any) -> str:
    """JSON in one canonical form: sorted keys, no spaces, characters as they are."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


# -- typing a column --------------------------------------------------------------------------------


class Faults:
    """The first reason against each row."""

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}

    def add(self, row: int, reason: str) -> None:
        self.reasons.setdefault(row, reason)

    def where(self, mask: pa.Array, reason: str) -> None:
        for row in pc.indices_nonzero(pc.fill_null(mask, True)).to_pylist():
            self.add(row, reason)


def _typed(field: pa.Field, column: Column | None, size: int, bad: Faults) -> pa.Array:
    kind = field.type
    if column is None:
        if field.name in ("title", "description", "owner", "event_id"):
            return pa.array([""] * size, kind)
        return pa.nulls(size, kind)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if field.name in OVERFLOW.values():
        return _objects(column, field.name, bad)
    if pa.types.is_string(kind):
        return _texts(column, field.name, bad)
    if pa.types.is_timestamp(kind):
        return _each(column, field.name, kind, as_time, bad, fast=pa.types.is_timestamp)
    if pa.types.is_list(kind):
        return _each(column, field.name, kind, as_ids, bad, fast=lambda t: t == kind)
    if pa.types.is_integer(kind):
        return _each(column, field.name, kind, as_integer, bad, fast=pa.types.is_integer)
    if pa.types.is_boolean(kind):
        return _each(column, field.name, kind, as_truth, bad, fast=pa.types.is_boolean)
    return _each(column, field.name, kind, as_bytes, bad, fast=lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t))


def _texts(column: Column, name: str, bad: Faults) -> pa.Array:
    """Text, trimmed, "" for null; numbers are written out, anything else is a fault."""
    plain = isinstance(column, pa.Array) and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_integer(column.type))
    if plain:
        texts = column.cast(pa.string())
    else:
        values = column.to_pylist() if isinstance(column, pa.Array) else column
        texts = _each(values, name, pa.string(), as_text, bad)
    return pc.fill_null(pc.utf8_trim_whitespace(texts), "")


def _each(column: Column, name: str, kind: pa.DataType, convert: Callable[[Any], Any], bad: Faults, fast: Callable[[pa.DataType], bool] | None = None) -> pa.Array:
    """One converter over a column, a cast where its type is right already; a fault where it raises."""
    if isinstance(column, pa.Array):
        if fast is not None and fast(column.type):
            return column.cast(kind, safe=False)
        column = column.to_pylist()
    out = []
    for row, value in enumerate(column):
        try:
            out.append(None if value is None else convert(value))
        except (ValueError, TypeError, OverflowError) as error:
            bad.add(row, f"{name}: {error}")
            out.append(None)
    return pa.array(out, kind)


def _objects(column: Column, name: str, bad: Faults) -> pa.Array:
    values = column.to_pylist() if isinstance(column, pa.Array) else column
    return _each(values, name, pa.string(), lambda value: dumps(as_object(value)), bad)


def as_text(value: Any) -> str:
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= c <= "\udfff" for c in value if c > "\ud7ff"):
            raise ValueError("text with characters that are not valid")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"text expected, got {_kind(value)}")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def as_integer(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError("number expected, got true or false")
    if isinstance(value, str):
        value = float(value) if value.strip() else 1
    if not isinstance(value, (int, float)) or not math.isfinite(value) or int(value) != value:
        raise ValueError(f"whole number expected, got {value!r:.40}")
    return int(value)


def as_truth(value: Any) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False, "0.0": False, "1.0": True}
    if str(value).strip().lower() not in known:
        raise ValueError(f"true or false expected, got {value!r:.40}")
    return known[str(value).strip().lower()]


def as_time(value: Any) -> datetime | None:
    """ISO 8601, or seconds (or milliseconds) since 1970. Without a zone it is UTC."""
    if isinstance(value, str):
        if not value.strip():
            return None
        text = value.strip()
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            if not re.fullmatch(r"\d{9,13}(\.\d+)?", text):
                raise ValueError(f"a time like 2026-01-31T12:00:00Z expected, got {text!r:.40}") from None
            return as_time(float(text))
    elif isinstance(value, bool):
        raise ValueError("time expected, got true or false")
    elif isinstance(value, (int, float)):
        found = datetime.fromtimestamp(value / 1000 if abs(value) > 1e11 else value, UTC)
    elif isinstance(value, datetime):
        found = value
    elif isinstance(value, date):
        found = datetime(value.year, value.month, value.day, tzinfo=UTC)
    else:
        raise ValueError(f"time expected, got {_kind(value)}")
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def as_ids(value: Any) -> list[str]:
    """A list of ids; in text, a JSON list or ids parted by ``|``, ``;`` or ``,``. Repeats go, order stays."""
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else [part for part in re.split(r"[|;,]", text) if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"list of ids expected, got {_kind(value)}")
    return list(dict.fromkeys(as_text(part).strip() for part in value if part is not None))


def as_bytes(value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise ValueError(f"bytes expected, got {_kind(value)}")
    return bytes(value)


def as_object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except json.JSONDecodeError as error:
            raise ValueError(f"a JSON object expected: {error}") from None
    if isinstance(value, list) and all(isinstance(part, tuple) and len(part) == 2 for part in value):
        value = dict(value)  # an Arrow map
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object expected, got {_kind(value)}")
    return {str(key): kept for key, entry in value.items() if (kept := plain(entry)) is not None}


def plain(value: Any) -> Any:
    """A value as JSON has it; None for what is empty, binary, or no number."""
    if isinstance(value, (bytes, bytearray)) or value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    return value


def _kind(value: Any) -> str:
    return {bool: "true or false", dict: "an object", list: "a list", bytes: "bytes", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def _hashable(column: pa.ChunkedArray) -> pa.Array:
    """A column as text, equal where and only where the values are."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_list(array.type):
        return pc.binary_join(array, "\x1e")
    if pa.types.is_large_binary(array.type):
        if array.null_count == len(array):
            return pa.nulls(len(array), pa.string())
        return pa.array([None if v is None else hashlib.blake2b(v, digest_size=16).hexdigest() for v in array.to_pylist()], pa.string())
    return array.cast(pa.int64()).cast(pa.string()) if pa.types.is_timestamp(array.type) else array.cast(pa.string())


def _shown(columns: dict[str, Column], row: int) -> str:
    """A refused row for a person to look at."""
    shown = {}
    for name, column in columns.items():
        value = column[row]
        shown[name] = value.as_py() if isinstance(value, pa.Scalar) else value
    return dumps({name: value for name, value in shown.items() if value is not None and not isinstance(value, bytes)})[:SHORT]


# -- what only one kind needs -----------------------------------------------------------------------


def _overflow(kind: str, typed: dict[str, Any], columns: dict[str, Column], bad: Faults) -> None:
    """Fold the columns that the schema does not name into its JSON column; a name in both: the object's own wins."""
    into = OVERFLOW[kind]
    extra = [name for name in columns if name not in SCHEMAS[kind].names]
    own = typed[into].to_pylist()
    if extra:
        lists = [(c.to_pylist() if isinstance(c, (pa.Array, pa.ChunkedArray)) else c) for c in (columns[name] for name in extra)]
        rest = [{name: kept for name, value in zip(extra, values, strict=True) if (kept := plain(value)) is not None} for values in zip(*lists, strict=True)]
        own = [dumps({**more, **(json.loads(text) if text else {})}) for more, text in zip(rest, own, strict=True)]
    typed[into] = pa.array([text or "{}" for text in own], pa.string())


def _finish_items(typed: dict[str, Any], columns: dict[str, Column], bad: Faults, base: Path | None, root: Path | None) -> None:
    _overflow("items", typed, columns, bad)
    images = [_place(image, base, root) if image else None for image in typed["image"].to_pylist()]
    typed["image"] = pa.array(images, pa.string())
    typed["image_bytes"] = pc.if_else(pc.equal(pc.binary_length(typed["image_bytes"]), 0), None, typed["image_bytes"])


def _place(image: str, base: Path | None, root: Path | None) -> str:
    if "://" in image:
        return image
    path = Path(image)
    if not path.is_absolute():
        path = (base or root or Path.cwd()) / path
    path = Path(*path.parts) if ".." not in path.parts else path.resolve()
    if root is not None and path.is_relative_to(root):
        return str(path.relative_to(root))
    return str(path)


def _finish_boards(typed: dict[str, Any], columns: dict[str, Column], bad: Faults, base: Path | None, root: Path | None) -> None:
    typed["private"] = pc.fill_null(typed["private"], False)
    bad.where(pc.equal(pc.list_value_length(typed["items"]), 0), "no items")


def _finish_queries(typed: dict[str, Any], columns: dict[str, Column], bad: Faults, base: Path | None, root: Path | None) -> None:
    typed["text"] = pc.replace_substring_regex(typed["text"], r"\s+", " ")
    typed["count"] = pc.fill_null(typed["count"], 1)
    bad.where(pc.less(typed["count"], 1), "count: at least 1 expected")


def _finish_events(typed: dict[str, Any], columns: dict[str, Column], bad: Faults, base: Path | None, root: Path | None) -> None:
    _overflow("events", typed, columns, bad)
    typed["action"] = pc.utf8_lower(typed["action"])
    parts = [typed["user"], typed["item"], typed["action"], pc.fill_null(typed["time"].cast(pa.int64()).cast(pa.string()), "")]
    joined = pc.binary_join_element_wise(*parts, "\x1f").to_pylist()
    given = typed["event_id"].to_pylist()
    made = [own or "~" + hashlib.sha256(key.encode()).hexdigest()[:24] for own, key in zip(given, joined, strict=True)]
    typed["event_id"] = pa.array(made, pa.string())


_FINISH: dict[str, Callable[..., None]] = {"items": _finish_items, "boards": _finish_boards, "queries": _finish_queries, "events": _finish_events}
