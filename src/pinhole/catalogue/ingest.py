"""From a source to the catalogue: JSONL, CSV, Parquet, a folder of images, a Hugging Face dataset.

A source is opened by its kind and gives batches of named columns; each batch is one commit, so that
an ingest killed at any instant is finished by running it again. Rows that cannot be kept are noted in
``rejected`` with their place in the source. Knows nothing of how rows are typed (``records``) or
written (``store``); fetches nothing from the network except a dataset that is asked for by name.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pinhole.catalogue import records, titles
from pinhole.catalogue.records import Batch, Counts, Rejection
from pinhole.catalogue.store import BATCH_BYTES, BATCH_ROWS, Catalogue, Writer
from pinhole.catalogue.values import dumps
from pinhole.errors import IngestError, MissingDependency, UsageError

Progress = Callable[[int, int], None]
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
CELL = 64_000_000  # characters of one CSV cell


@dataclass
class Source:
    """An opened source: the name that rejected rows carry, the folder its paths start from, rows in all (0 = unknown), batches."""

    name: str
    base: Path | None
    total: int
    batches: Iterator[Batch]
    boards: Callable[[], pa.Table] | None = None  # what a folder says besides


def ingest(
    catalogue: Catalogue,
    kind: str,
    source: str | Path,
    mapping: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    *,
    rows: int = BATCH_ROWS,
) -> Counts:
    """Read ``source`` into the table ``kind``; a folder of images fills ``boards`` too (not counted).

    ``mapping`` renames columns, ours to theirs: ``{"title": "product_title"}``. ``rows`` is the size of
    a batch. Raises :class:`IngestError` where the source cannot be read at all or lacks a column,
    ``UnknownName`` for an unknown kind, :class:`MissingDependency` for ``hf:`` without ``datasets``.
    """
    opened = _open(records.check_kind(kind), str(source), rows)
    writer, done = Writer(catalogue, kind, opened.name, opened.base), 0
    for number, batch in enumerate(opened.batches):
        batch.columns = _renamed(kind, batch, mapping or {}, opened.name, first=number == 0)
        writer.write(batch)
        done += len(batch.rows) + len(batch.broken)
        if progress is not None:
            progress(done, max(opened.total, done))
    catalogue.settle(kind, opened.name, writer.noted)
    if opened.boards is not None:
        catalogue.upsert("boards", opened.boards(), source=opened.name)
    catalogue.compact(kind)
    if kind == "items":
        catalogue.refresh_text_index()
    return writer.counts


def keys(kind: str, source: str | Path, mapping: Mapping[str, str] | None = None) -> set[str]:
    """The ids that a source names now. Raises what :func:`ingest` raises."""
    opened, theirs = _open(records.check_kind(kind), str(source), BATCH_ROWS), (mapping or {}).get("id", "id")
    return {str(id).strip() for batch in opened.batches for id in batch.columns.get(theirs, ()) if id is not None}


def _open(kind: str, source: str, rows: int) -> Source:
    if source.startswith("hf:"):
        return _dataset(source, rows)
    path = Path(os.path.abspath(source))
    if "://" in source:
        raise IngestError("a source is a file, a folder or hf:NAME", where=source, fix="download it first")
    if path.is_dir():
        if kind != "items":
            raise IngestError(f"a folder of images holds no {kind}", where=source, fix="use `pinhole ingest items FOLDER`: its folders become boards")
        return _folder(path, rows)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise IngestError("cannot tell what this file is", where=source, fix=f"name a folder, hf:NAME, or a file that ends in {', '.join(_READERS)}")
    if not path.is_file():
        raise IngestError("no such file or folder", where=source, fix="check the path")
    total = _total(path)
    return Source(str(path), path.parent, total, _guarded(reader(path, rows), path))


def _guarded(batches: Iterator[Batch], path: Path) -> Iterator[Batch]:
    """A file that stops being readable, as one clear error; batches before it stay."""
    try:
        yield from batches
    except (pa.ArrowException, OSError, UnicodeError, csv.Error, EOFError) as error:
        if isinstance(error, OSError) and getattr(error, "errno", None) == 28:
            raise
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise IngestError(f"the file cannot be read: {what}", where=str(path), fix="it may be half written or damaged; write it again") from None


def _total(path: Path) -> int:
    """Rows for the progress bar: lines of a text file, else what Parquet says."""
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return int(pq.read_metadata(path).num_rows)
        with open(path, "rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except (OSError, pa.ArrowException):
        return 0


def _renamed(kind: str, batch: Batch, mapping: Mapping[str, str], where: str, first: bool) -> dict[str, Any]:
    """The columns under our names. A column that is pushed out of its name stays as ``source_NAME``."""
    columns = dict(batch.columns)
    for ours, theirs in mapping.items():
        if ours not in records.SCHEMAS[kind].names and kind not in records.OVERFLOW:
            raise UsageError(f"{kind} have no column `{ours}`", where="--map", fix=f"columns: {', '.join(records.SCHEMAS[kind].names)}")
        if first and theirs not in batch.columns:
            raise IngestError(f"no column `{theirs}` to map to `{ours}`", where=where, fix=f"columns there: {', '.join(batch.columns) or 'none'}")
    taken = set(mapping.values())
    for theirs in taken:
        columns.pop(theirs, None)
    for ours in mapping:
        if ours in columns:
            columns[f"source_{ours}"] = columns.pop(ours)
    for ours, theirs in mapping.items():
        columns[ours] = batch.columns.get(theirs, [None] * len(batch.rows))
    if not first:  # a column that only some batches of a JSONL file have
        for name in records.NEEDED[kind]:
            columns.setdefault(name, [None] * len(batch.rows))
    return columns


# -- files ------------------------------------------------------------------------------------------


def _lines(path: Path, rows: int) -> Iterator[Batch]:
    """JSONL: an object a line; a line that is none is refused, the others stay."""
    with open(path, "rb") as file:
        numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        while chunk := _chunk(numbered, rows):
            objects, places, broken = [], [], []
            for number, line in chunk:
                try:
                    value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                    if not isinstance(value, dict):
                        raise ValueError("an object expected")
                    objects.append(value)
                    places.append(number)
                except (ValueError, RecursionError) as error:
                    broken.append(Rejection(number, "", f"not a JSON object: {error}", line[: records.SHORT].decode("utf-8", "replace")))
            yield Batch(_columns(objects), places, broken)


def _chunk(numbered: Iterator[tuple[int, bytes]], rows: int) -> list[tuple[int, bytes]]:
    """The next lines, fewer than ``rows`` where they are large."""
    out, size = [], 0
    for number, line in itertools.islice(numbered, rows):
        out.append((number, line))
        size += len(line)
        if size > BATCH_BYTES:
            break
    return out


def _array(path: Path, rows: int) -> Iterator[Batch]:
    """A ``.json`` file: one list of objects, or JSONL under another name."""
    with open(path, "rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head.startswith(b"["):
        yield from _lines(path, rows)
        return
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise IngestError(f"not valid JSON: {error}", where=str(path), fix="it may be half written; write it again, or use JSONL") from None
    for start in range(0, len(values), rows):
        part = list(enumerate(values[start : start + rows], start + 1))
        good = [(place, value) for place, value in part if isinstance(value, dict)]
        broken = [Rejection(place, "", "not a JSON object", str(value)[: records.SHORT]) for place, value in part if not isinstance(value, dict)]
        yield Batch(_columns([value for _, value in good]), [place for place, _ in good], broken)


def _columns(objects: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for value in objects for name in value)
    return {name: [value.get(name) for value in objects] for name in names}


def _csv(path: Path, rows: int) -> Iterator[Batch]:
    """CSV with a header; ``;`` and tab part cells too where the header says so. A row of another width is refused."""
    csv.field_size_limit(CELL)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = file.readline()
        if not header.strip():
            raise IngestError("no header line", where=str(path), fix="the first line names the columns")
        comma = max(",;\t", key=header.count)
        file.seek(0)
        reader = csv.reader((line.replace("\x00", "\ufffd") for line in file), delimiter=comma, strict=True)
        names = [name.strip() for name in next(reader)]
        if len(set(names)) < len(names) or "" in names:
            raise IngestError("column names are empty or repeat", where=str(path), fix=f"the header is: {', '.join(names)[:200]}")
        while True:
            cells, places, broken = _csv_rows(reader, len(names), rows)
            if not cells and not broken:
                return
            turned: Iterable[tuple[str, ...]] = zip(*cells, strict=True) if cells else [()] * len(names)
            yield Batch({name: [cell or None for cell in column] for name, column in zip(names, turned, strict=True)}, places, broken)


def _csv_rows(reader: Any, width: int, rows: int) -> tuple[list[list[str]], list[int], list[Rejection]]:
    cells: list[list[str]] = []
    places: list[int] = []
    broken: list[Rejection] = []
    while len(cells) + len(broken) < rows:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            broken.append(Rejection(line, "", f"not CSV: {error}"))
            continue
        if len(row) == width:
            cells.append(row)
            places.append(line)
        elif row:
            text = dumps(row)[: records.SHORT].encode("utf-8", "replace").decode()
            broken.append(Rejection(line, "", f"{len(row)} cells, the header has {width}", text))
    return cells, places, broken


def _parquet(path: Path, rows: int) -> Iterator[Batch]:
    import pyarrow.parquet as pq

    first = 1
    with pq.ParquetFile(path) as file:
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        for batch in file.iter_batches(batch_size=_fitting(rows, size, file.metadata.num_rows)):
            batch.validate(full=True)  # text that is no UTF-8 would fail later, with less to say
            yield Batch.of(_flat(pa.Table.from_batches([batch])), first)
            first += len(batch)


_READERS: dict[str, Callable[[Path, int], Iterator[Batch]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _array,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}


def _fitting(rows: int, size: int, counted: int) -> int:
    """Rows of a batch, fewer where ``counted`` rows of ``size`` bytes say that they are large."""
    return max(1, min(rows, BATCH_BYTES * counted // max(size, 1))) if counted else rows


def _flat(table: pa.Table) -> pa.Table:
    """Images as Hugging Face writes them ({bytes, path}) as two columns, ``image`` and ``image_bytes``; dictionaries as values."""
    columns: dict[str, Any] = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if pa.types.is_struct(field.type) and {f.name for f in field.type} == {"bytes", "path"}:
            columns["image_bytes" if field.name == "image" else field.name] = array.field("bytes")
        else:
            columns[field.name] = array.cast(field.type.value_type) if pa.types.is_dictionary(field.type) else array
    return pa.table(columns)


# -- folders and datasets ---------------------------------------------------------------------------


def _folder(root: Path, rows: int) -> Source:
    """Images by path: the id is the path, the title the file's name where it says something, folders become boards."""
    files = image_files(root)
    if not files:
        raise IngestError("no images in this folder", where=str(root), fix=f"images end in {', '.join(sorted(IMAGES))}")

    def batches() -> Iterator[Batch]:
        for start in range(0, len(files), rows):
            part = files[start : start + rows]
            attributes = [{"folder": p.parent.as_posix(), "category": p.parts[0]} if len(p.parts) > 1 else {} for p in part]
            columns = {"id": [p.as_posix() for p in part], "image": [str(p) for p in part], "title": [titles.of_file(p.stem) for p in part]}
            yield Batch({**columns, "attributes": attributes}, range(start + 1, start + 1 + len(part)))

    def boards() -> pa.Table:
        folders: dict[str, list[str]] = {}
        for path in files:
            if len(path.parts) > 1:
                folders.setdefault(path.parent.as_posix(), []).append(path.as_posix())
        schema = pa.schema([records.BOARDS.field(name) for name in ("id", "title", "owner", "items")])
        return pa.Table.from_pylist(titles.folder_boards(folders), schema=schema)

    return Source(str(root), root, len(files), batches(), boards)


def image_files(root: Path) -> list[Path]:
    """Paths of all images below a folder, relative to it, in order."""
    return sorted(
        (
            Path(folder, name).relative_to(root)
            for folder, folders, names in os.walk(root, onerror=_raise)
            for name in names
            if Path(name).suffix.lower() in IMAGES and not _hidden(Path(folder, name).relative_to(root))
        ),
        key=lambda path: path.as_posix(),
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _raise(error: OSError) -> None:
    raise IngestError(f"a folder cannot be read: {error.strerror}", where=str(error.filename), fix="check its permissions") from None


def _dataset(source: str, rows: int) -> Source:
    """``hf:NAME`` or ``hf:NAME:SPLIT`` (default: train, else the first); rows without an ``id`` get SPLIT/NUMBER."""
    try:
        import datasets
    except ImportError:
        raise MissingDependency("`hf:` sources need the package `datasets`", where=source, fix="pip install 'pinhole-vlm[hf]'") from None
    name, _, wanted = source.removeprefix("hf:").partition(":")
    try:
        found = datasets.load_from_disk(name) if Path(name, "dataset_info.json").exists() or Path(name, "dataset_dict.json").exists() else None
        found = datasets.load_dataset(name) if found is None else found
    except Exception as error:  # the library raises many kinds, from many layers below
        what = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise IngestError(f"the dataset cannot be had: {what}", where=source, fix="check its name and the network") from None
    if isinstance(found, dict):
        split = wanted or ("train" if "train" in found else next(iter(found)))
        if split not in found:
            raise IngestError(f"no split `{split}`", where=source, fix=f"splits: {', '.join(found)}")
        data = found[split]
    else:
        split, data = wanted or "train", found

    def batches() -> Iterator[Batch]:
        first = 1
        arrow = data.with_format("arrow")
        probe = arrow[:20] if len(data) else pa.table({})
        for table in arrow.iter(batch_size=_fitting(rows, probe.nbytes, len(probe))):
            table = _flat(table)
            if "id" not in table.column_names:
                table = table.append_column("id", pa.array([f"{split}/{first + i}" for i in range(len(table))]))
            yield Batch.of(table, first)
            first += len(table)

    return Source(source, Path(name) if Path(name).is_dir() else None, len(data), batches())
