"""The catalogue: five Lance tables and the rows they refused, upserted by key, read as Arrow.

Every batch is one commit of one table: a process killed at any instant leaves the batch whole or
absent, and running it again changes nothing that is there. Reads see the latest commit, return rows
in the order of their keys, and may come from several threads. Knows nothing of where rows come from
(``ingest``), never fetches a URL, never decodes an image. One writer at a time is the workspace's
business, not this file's.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pinhole.catalogue import filters, records
from pinhole.catalogue.records import Batch, Counts, Rejection, Rows
from pinhole.errors import BadImage, Corrupt, UnknownItem, UsageError
from pinhole.workspace import disk_errors

if TYPE_CHECKING:
    from lancedb.table import Table

BATCH_ROWS = 25_000
BATCH_BYTES = 64_000_000
SEEN_MOST = 5_000_000  # keys of one source that are remembered to tell repeats
# Columns that no reader is handed: what full text reads, and the hash that tells a changed row.
WORDS, DIGEST = "words", "digest"
TEXT_ATTRIBUTES = ("keywords", "tags")


class Catalogue:
    """``Catalogue(workspace.tables)``. Tables are made when something is first written to them."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.root = Path(os.path.abspath(self.path)).parent  # image paths inside it are kept relative to it
        self._database: Any = None
        self._tables: dict[str, Table] = {}
        self._guard = threading.RLock()

    # -- tables ---------------------------------------------------------------------------------

    def _db(self) -> Any:
        with self._guard:
            if self._database is None:
                os.environ.setdefault("RUST_LOG", "error")  # Lance warns on every table it creates
                import lancedb

                self._database = lancedb.connect(str(self.path), read_consistency_interval=timedelta(0))
            return self._database

    def _table(self, kind: str) -> Table | None:
        """The Lance table, or None where nothing was ever written."""
        with self._guard:
            if kind not in self._tables:
                if not (self.path / f"{kind}.lance" / "_versions").is_dir():
                    return None
                with self._trouble(kind):
                    self._tables[kind] = self._db().open_table(kind)
            return self._tables[kind]

    def _make(self, kind: str) -> Table:
        found = self._table(kind)
        if found is None:
            with self._guard, self._trouble(kind):
                self._tables[kind] = found = self._db().create_table(kind, schema=_stored(kind), exist_ok=True)
        return found

    @contextmanager
    def _trouble(self, kind: str) -> Iterator[None]:
        """Lance's failures as ours: a full disk, a damaged table."""
        with disk_errors(self.path):
            try:
                yield
            except (RuntimeError, ValueError) as error:
                text = str(error)
                if "No space left" in text or "StorageFull" in text:
                    raise OSError(28, text) from None
                fix = "restore it from a copy, or ingest into a new workspace"
                raise Corrupt(f"table `{kind}` cannot be used: {_line(text)}", where=str(self.path), fix=fix) from None

    def _scan(self, kind: str, columns: Sequence[str], where: str | None = None) -> pa.Table:
        table = self._table(kind)
        if table is None:
            return pa.schema([_stored(kind).field(name) for name in columns]).empty_table()
        query = table.search()
        if where:
            query = query.where(where)
        with self._trouble(kind):
            return query.select(list(columns)).to_arrow()

    # -- writing --------------------------------------------------------------------------------

    def upsert(
        self,
        kind: str,
        table: pa.Table | pa.RecordBatchReader,
        *,
        source: str = "",
        base: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Counts:
        """Add or replace rows by their key; rows that cannot be kept go to ``rejected`` with a reason.

        ``base`` is the folder that image paths are relative to (default: the workspace). Raises
        :class:`~pinhole.errors.IngestError` where a needed column is missing, and ``UnknownName``.
        """
        records.check_kind(kind)
        writer, first = Writer(self, kind, source, base), 1
        total = len(table) if isinstance(table, pa.Table) else 0
        for part in _parts(table):
            writer.write(Batch.of(part, first))
            first += len(part)
            if progress is not None:
                progress(first - 1, total)
        return writer.counts

    def reject(self, kind: str, source: str, refused: Sequence[Rejection]) -> None:
        """Note rows or items that could not be used, and why. Noting one again changes nothing."""
        if refused:
            last = {records.rejection_key(kind, source, r): r for r in refused}
            self.merge("rejected", records.rejections(kind, source, list(last.values())))

    def settle(self, kind: str, source: str, keys: set[str]) -> None:
        """After a whole source was read: forget refusals of it that are not among ``keys`` any more."""
        old = self._scan("rejected", ["key"], f"kind = {_quoted(kind)} AND source = {_quoted(source)}")["key"].to_pylist()
        if gone := [key for key in old if key not in keys]:
            self.delete("rejected", gone)

    def delete(self, kind: str, ids: Sequence[str]) -> None:
        """Remove rows by id (queries, judgements: by text). Boards and all others stop naming a removed item."""
        column = {"queries": "text", "judgements": "text"}.get(kind, records.KEYS[kind][0])
        self._drop(kind, column, ids)
        if kind == "items":
            self._drop("queries", "item", ids)
            self._drop("events", "item", ids)
            self._drop("judgements", "item", ids)
            boards = self.boards()
            if len(boards):
                gone = set(ids)
                lists = [[id for id in items if id not in gone] for items in boards["items"].to_pylist()]
                boards = boards.set_column(boards.schema.get_field_index("items"), "items", pa.array(lists, pa.list_(pa.string())))
                self.merge("boards", boards.filter(pc.greater(pc.list_value_length(boards["items"]), 0)))
                self._drop("boards", "id", [id for id, items in zip(boards["id"].to_pylist(), lists, strict=True) if not items])

    def compact(self, kind: str) -> None:
        """Fewer, larger files; rows and fingerprints stay."""
        table = self._table(kind)
        if table is not None:
            with self._trouble(kind):
                table.optimize()

    def refresh_text_index(self) -> None:
        """Make the full-text index, or bring it up to date. Rows written since are found without it, slower."""
        from lancedb.index import FTS

        table = self._table("items")
        if table is None or not table.count_rows():
            return
        with self._guard, self._trouble("items"):
            if any(WORDS in index.columns for index in table.list_indices()):
                table.optimize()
            else:
                table.create_index(WORDS, config=FTS(with_position=False), replace=True)

    def _drop(self, kind: str, column: str, ids: Sequence[str]) -> None:
        table = self._table(kind)
        for start in range(0, len(ids) if table is not None else 0, 1000):
            assert table is not None
            with self._trouble(kind):
                table.delete(f"{column} IN ({', '.join(_quoted(id) for id in ids[start : start + 1000])})")

    def merge(self, kind: str, rows: pa.Table) -> Counts:
        """Write typed rows with distinct keys: what is new or differs, in one commit; count the rest as unchanged."""
        if not len(rows):
            return Counts()
        digest = self.digests(kind, rows)
        table = self._make(kind)
        keys = list(records.KEYS[kind])
        old = self._scan(kind, [*keys, DIGEST])
        where = pc.index_in(records.key_of(kind, rows), value_set=records.key_of(kind, old))
        new = pc.is_null(where)
        same = pc.fill_null(pc.equal(old[DIGEST].combine_chunks().take(where), digest), False) if len(old) else pa.array([False] * len(rows))
        added, unchanged = pc.sum(new).as_py(), pc.sum(same).as_py() or 0
        if unchanged < len(rows):
            full = rows.append_column(DIGEST, digest).filter(pc.invert(same))
            if kind == "items":
                full = full.append_column(WORDS, _words(full))
            write = full.select(_stored(kind).names).cast(_stored(kind))
            with self._trouble(kind):
                table.merge_insert(keys).when_matched_update_all().when_not_matched_insert_all().execute(write)
        return Counts(added, len(rows) - added - unchanged, unchanged)

    def digests(self, kind: str, rows: pa.Table) -> pa.Array:
        """A hash of each row, and of what tells a replaced picture file."""
        if kind != "items":
            return records.digests(kind, rows)
        stamps = {image: self._stamp(image) for image in pc.unique(rows["image"]).to_pylist()}
        return records.digests(kind, rows, pa.array([stamps[image] for image in rows["image"].to_pylist()], pa.string()))

    def _stamp(self, image: str | None) -> str | None:
        """What tells a replaced picture file from the one seen before, without reading it."""
        if not image or "://" in image:
            return None
        try:
            found = os.stat(os.path.join(self.root, image))
        except (OSError, ValueError):
            return "missing"
        return f"{found.st_size}-{found.st_mtime_ns}"

    # -- reading --------------------------------------------------------------------------------

    def items(self, columns: Sequence[str] | None = None, where: str | None = None, ids: Sequence[str] | None = None) -> pa.Table:
        """Items in the order of their ids, or in the order of ``ids`` (unknown ones left out).

        ``columns`` default to all but ``image_bytes``; ``image`` is an absolute path, or a URL; ``attributes``
        comes as JSON text (:func:`pinhole.catalogue.records.attributes` parses a column of it). ``where`` is a filter as in
        :meth:`filter_ids`.
        """
        names = list(columns) if columns is not None else [name for name in records.ITEMS.names if name != "image_bytes"]
        if unknown := [name for name in names if name not in records.ITEMS.names]:
            known = ", ".join(records.ITEMS.names)
            raise UsageError(f"items have no column `{unknown[0]}`", fix=f"columns: {known}; the others are inside `attributes`")
        condition = filters.rewrite(where, records.ITEMS.names) if where else None
        if ids is not None and len(ids) <= 1000:
            named = f"id IN ({', '.join(_quoted(id) for id in ids)})" if ids else "false"
            condition = f"({condition}) AND {named}" if condition else named
        rows = self._filtered(list(dict.fromkeys(["id", *names])), condition, where)
        if ids is not None:
            place = pc.drop_null(pc.index_in(pa.array(ids, pa.string()), value_set=rows["id"]))
            rows = rows.take(place)
        else:
            rows = rows.sort_by("id")
        rows = rows.select(names).cast(pa.schema([records.ITEMS.field(name) for name in names]))
        if "image" in names:
            rows = rows.set_column(names.index("image"), "image", pa.array(map(self._found, rows["image"].to_pylist()), pa.string()))
        return rows

    def _found(self, image: str | None) -> str | None:
        """A kept path as one that can be opened from anywhere; a URL as it is."""
        return image if not image or "://" in image else os.path.join(self.root, image)

    def ids(self) -> pa.ChunkedArray:
        """All items' ids, in no order."""
        return self._scan("items", ["id"])["id"]

    def boards(self) -> pa.Table:
        return self._all("boards")

    def queries(self) -> pa.Table:
        return self._all("queries")

    def events(self) -> pa.Table:
        return self._all("events")

    def judgements(self) -> pa.Table:
        return self._all("judgements")

    def rejected(self) -> pa.Table:
        return self._all("rejected")

    def item(self, id: str) -> dict[str, Any]:
        """One item's columns but its bytes, ``attributes`` parsed. Raises :class:`UnknownItem` with the nearest ids."""
        rows = self.items(ids=[id])
        if not len(rows):
            raise self._unknown(id)
        row: dict[str, Any] = rows.to_pylist()[0]
        row["attributes"] = records.attributes(rows)[0]
        return row

    def count(self, kind: str) -> int:
        table = self._table(kind if kind == "rejected" else records.check_kind(kind))
        return table.count_rows() if table is not None else 0

    def fingerprint(self, kind: str) -> str:
        """16 hex digits of the table's content, whatever order, number of upserts or versions made it."""
        table = self._scan(kind if kind == "rejected" else records.check_kind(kind), [DIGEST])
        return hashlib.sha256(b"".join(sorted(table[DIGEST].to_pylist()))).hexdigest()[:16]

    def version(self, kind: str) -> int:
        """A number that grows with every commit of a table, by whatever process; 0 where nothing was ever written. Cheap to ask."""
        table = self._table(kind)
        if table is None:
            return 0
        with self._trouble(kind):
            return int(table.version)

    def image(self, id: str) -> bytes:
        """The original bytes. Raises :class:`UnknownItem`, or :class:`BadImage` where none can be had."""
        rows = self._scan("items", ["image", "image_bytes"], f"id = {_quoted(id)}")
        if not len(rows):
            raise self._unknown(id)
        image, blob = rows["image"][0].as_py(), rows["image_bytes"][0].as_py()
        if blob:
            return bytes(blob)
        if not image:
            raise BadImage("the item has no image", where=id)
        if "://" in image:
            raise BadImage("the image is a URL; URLs are not fetched", where=f"{id}: {image}", fix="download it and ingest a path or bytes")
        try:
            return (self.root / image).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadImage(f"the image cannot be read: {reason}", where=f"{id}: {image}", fix="correct the path and ingest the item again") from None

    def filter_ids(self, where: str) -> list[str]:
        """Ids that a SQL condition keeps: ``category = 'chair' AND price < 30``.

        A name that is no column of the table is looked up inside ``attributes``; a list there equals
        each of its members. Anything but one condition raises :class:`UsageError`.
        """
        ids: list[str] = self._filtered(["id"], filters.rewrite(where, records.ITEMS.names), where)["id"].to_pylist()
        return sorted(ids)

    def text_search(self, text: str, n: int, where: str | None = None) -> list[tuple[str, float]]:
        """The ``n`` best items by BM25 over title, description and keywords: (id, score), best first."""
        from lancedb.query import MatchQuery

        table = self._table("items")
        if table is None or not text.strip() or n < 1:
            return []
        condition = filters.rewrite(where, records.ITEMS.names) if where else None
        if not any(WORDS in index.columns for index in table.list_indices()):
            self.refresh_text_index()
        query = table.search(MatchQuery(text, WORDS), query_type="fts").select(["id", "_score"]).limit(n)
        if condition:
            query = query.where(condition, prefilter=True)
        with self._trouble("items"), filters.explained(where):
            found = query.to_arrow()
        pairs = zip(found["id"].to_pylist(), found["_score"].to_pylist(), strict=True)
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))

    def _filtered(self, columns: list[str], condition: str | None, where: str | None) -> pa.Table:
        table = self._table("items")
        if table is None:
            return pa.schema([_stored("items").field(name) for name in columns]).empty_table()
        query = table.search()
        if condition:
            query = query.where(condition)
        with self._trouble("items"), filters.explained(where):
            return query.select(columns).to_arrow()

    def _all(self, kind: str) -> pa.Table:
        schema = records.SCHEMAS[kind]
        rows = self._scan(kind, schema.names)
        return rows.cast(schema).sort_by([(name, "ascending") for name in records.KEYS[kind]])

    def _unknown(self, id: str) -> UnknownItem:
        ids = self.ids().to_pylist() if self.count("items") <= 200_000 else []
        stem = id.rsplit("/", 1)[-1].lower()
        near = difflib.get_close_matches(id, ids, 3, 0.5) or [known for known in ids if stem and stem in known.lower()][:3]
        return UnknownItem(f"no item `{id[:200]}`", fix=f"nearest: {', '.join(near)}" if near else "")


class Writer:
    """Batches of one source into one table, with what has to be known across them: the keys seen so far."""

    def __init__(self, catalogue: Catalogue, kind: str, source: str, base: Path | None) -> None:
        self.catalogue, self.kind, self.source, self.base = catalogue, kind, source, base
        self.counts = Counts()
        self.noted: set[str] = set()  # keys of the refusals
        self._seen: dict[str, tuple[int, bytes]] = {}

    def write(self, batch: Batch) -> Counts:
        """One batch, in at most two commits: the rows, then what was refused."""
        rows = records.normalise(self.kind, batch, where=self.source, base=self.base, root=self.catalogue.root)
        if self.kind != "items" and len(rows.table):
            rows = records.refer(self.kind, rows, self.catalogue.ids())
        rows = self._last_of_each(rows)
        counts = self.catalogue.merge(self.kind, rows.table) + Counts(rejected=len(rows.refused))
        self.catalogue.reject(self.kind, self.source, rows.refused)
        self.noted.update(records.rejection_key(self.kind, self.source, r) for r in rows.refused)
        self.counts += counts
        return counts

    def _last_of_each(self, rows: Rows) -> Rows:
        """Where a key repeats in a source its last row counts; an earlier one that differs is refused, so that it is not lost unseen."""
        keys = records.key_of(self.kind, rows.table).to_pylist()
        texts = records.digests(self.kind, rows.table).to_pylist()
        last, more = {}, []
        for row, (key, text, place) in enumerate(zip(keys, texts, rows.places, strict=True)):
            old, last[key] = self._seen.get(key), row
            if old is not None and old[1] != text:
                more.append(Rejection(old[0], key.split("\x1f")[0], f"row {place} has the same key and replaces this one"))
            if len(self._seen) < SEEN_MOST or old is not None:
                self._seen[key] = (place, text)
        return rows.keep([last[key] == row for row, key in enumerate(keys)], more) if more or len(last) < len(keys) else rows


def _stored(kind: str) -> pa.Schema:
    """A kind's schema as Lance keeps it: attributes as JSON that filters can look into, and the hidden columns."""
    schema = records.SCHEMAS[kind]
    if kind == "items":
        schema = schema.set(schema.get_field_index("attributes"), pa.field("attributes", pa.json_(pa.string()))).append(pa.field(WORDS, pa.string()))
    return schema.append(pa.field(DIGEST, pa.binary(16)))


def _parts(table: pa.Table | pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Slices of at most BATCH_ROWS rows and about BATCH_BYTES bytes."""
    whole = [table] if isinstance(table, pa.Table) else (pa.Table.from_batches([batch]) for batch in table)
    for part in whole:
        rows = max(1, min(BATCH_ROWS, int(len(part) * BATCH_BYTES / max(part.nbytes, 1)))) if len(part) else 1
        for start in range(0, max(len(part), 1), rows):
            yield part.slice(start, rows)


def _words(rows: pa.Table) -> pa.Array:
    """What full text reads of an item: title, description, keywords."""
    out = []
    columns = (rows[name].to_pylist() for name in ("title", "description", "attributes"))
    for title, description, attributes in zip(*columns, strict=True):
        found = json.loads(attributes) if any(f'"{name}"' in attributes for name in TEXT_ATTRIBUTES) else {}
        values = [found.get(name) for name in TEXT_ATTRIBUTES]
        flat = [" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values if value]
        out.append("\n".join(part for part in (title, description, *flat) if part))
    return pa.array(out, pa.string())


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _line(text: str) -> str:
    return text.split("\n", 1)[0].split(", /", 1)[0][:300]
