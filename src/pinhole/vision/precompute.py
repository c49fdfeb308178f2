"""Seeing once: every picture and title through its encoder, each distinct one a single time.

The plan is a pure function of the catalogue and of what ``previous`` holds: pictures are keyed by their
sha256, texts by theirs; what ``previous`` has from the same encoder identity is copied; the rest is cut
into shards, in the order of ids. A shard is one file that appears by one rename, so a run killed at any
instant and run again does the missing shards only, and ends with the same bytes. A file whose size and
time of change are those noted in ``previous`` is not even read, as git's index does it; one changed
within two seconds before that note is. Knows nothing of how vectors are used. Does not fetch URLs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import math
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from pinhole.errors import BadImage, Corrupt, PinholeError
from pinhole.processes import cores
from pinhole.vision.cluster import ClusterPool
from pinhole.vision.encoders import ImageEncoder, TextEncoder, image_encoder, text_encoder
from pinhole.vision.encoders.tuned import relative
from pinhole.vision.features import LAYOUT, EncoderName, Features
from pinhole.vision.images import MAX_BYTES, MAX_PIXELS
from pinhole.vision.pool import Pool
from pinhole.workspace import digest, disk_errors, write_json

TEXT_CHARACTERS = 1000  # of a text, at most: more than any text encoder here reads
TEXT_SHARD = 256
RUN_BYTES = 1 << 24  # of vectors that are copied at once
Progress = Callable[[int, int], None]


class Source(Protocol):
    """What is needed of :class:`pinhole.catalogue.store.Catalogue`."""

    path: Path
    root: Path

    def items(self, columns: Sequence[str] | None = None, where: str | None = None, ids: Sequence[str] | None = None) -> Any: ...
    def image(self, id: str) -> bytes: ...
    def reject(self, kind: str, source: str, refused: Sequence[Any]) -> None: ...
    def settle(self, kind: str, source: str, keys: set[str]) -> None: ...


@dataclass
class EmbedStats:
    """What a run did. Counts are of items, except ``forwarded`` and ``texts_forwarded``: of distinct pictures and texts."""

    items: int = 0
    images: int = 0
    forwarded: int = 0
    reused: int = 0
    repeated: int = 0
    rejected: int = 0
    texts: int = 0
    texts_forwarded: int = 0
    seconds: float = 0.0

    @property
    def images_per_s(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    def figures(self) -> dict[str, float]:
        """Flat, for a manifest."""
        return {**asdict(self), "images_per_s": round(self.images_per_s, 2)}


def precompute(
    catalogue: Source,
    image: str | ImageEncoder,
    text: str | TextEncoder,
    out: Path,
    previous: Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    max_pixels: int = MAX_PIXELS,
    grid: int = 0,
    pool: Callable[[int, dict[str, Any]], Pool | ClusterPool] | None = None,
) -> EmbedStats:
    """Write the features of all items into ``out``; see :class:`~pinhole.vision.features.Features`.

    ``grid`` cells along each side of a picture are kept beside its vector. ``out`` may hold what an
    interrupted run left; ``previous`` a finished artefact to copy from. ``workers`` 0 is one process a core; ``pool``
    makes what runs them from their number and setup (default: processes of this machine). A picture that cannot be read
    is noted, never an error. Raises :class:`PinholeError` where a worker dies, :class:`~pinhole.errors.DiskFull`, and
    :class:`~pinhole.errors.ConfigError` where the encoder has no such grid.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    image = image_encoder(image) if isinstance(image, str) else image
    text = text_encoder(text) if isinstance(text, str) else text
    names = EncoderName(relative(image.spec, out), image.identity, image.dim), EncoderName(text.spec, text.identity, text.dim)
    cells = (grid, image.grid(grid).dim) if grid else (0, 0)
    plan = _Plan(catalogue, out, names, cells, _past(out, previous), progress or (lambda done, total: None))
    setup = {
        "shards": os.path.abspath(plan.shards),
        "image": image.spec,
        "text": text.spec,
        "tables": os.path.abspath(catalogue.path),
        "max_pixels": max_pixels,
        "grid": grid,
        "identities": {"image": image.identity, "text": text.identity},
    }
    with disk_errors(out):
        with pool(workers, setup) if pool else Pool(workers or cores(), setup) as workers_there:
            workers_there.run(plan.jobs(), plan.advance)
        stats = _assemble(plan, max_pixels)
    _note_rejected(catalogue, plan)
    stats.seconds = round(time.perf_counter() - started, 3)
    return stats


def _past(out: Path, previous: Path | None) -> list[Features]:
    """Finished artefacts to copy from; one that cannot be read is passed over."""
    found = []
    for folder in (out, previous):
        if folder is not None and (folder / "features.json").exists():
            try:
                features = Features.load(folder)
                _ = features.rows, features.quantised if features.grid else None
                found.append(features)
            except PinholeError:
                continue
    return found


@dataclass
class _Known:
    """Where what is known of one kind can be copied from: key -> (which source, row); a source has its arrays by name."""

    sources: list[Path | dict[str, np.ndarray]] = field(default_factory=list)
    place: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, keys: Sequence[str | None], source: Path | dict[str, np.ndarray]) -> None:
        """``source`` is the arrays themselves (mapped files), or a shard, which is read when it is written from: memory holds one at a time."""
        for row, key in enumerate(keys):
            if key is not None:
                self.place.setdefault(key, (len(self.sources), row))
        self.sources.append(source)

    def array(self, source: int, name: str) -> np.ndarray:
        found = self.sources[source]
        if isinstance(found, dict):
            return found[name]
        with np.load(found, allow_pickle=False) as shard:
            array: np.ndarray = shard[name]
            return array


class _Plan:
    """Which vectors are needed, which can be copied, and jobs for the others, made as they are asked for."""

    def __init__(
        self, catalogue: Source, out: Path, names: tuple[EncoderName, EncoderName], cells: tuple[int, int], past: list[Features], progress: Progress
    ) -> None:
        self.catalogue, self.out, self.names, self.progress = catalogue, out, names, progress
        self.grid, self.cell_dim = cells
        self.shards = out / "shards"
        self.shards.mkdir(exist_ok=True)
        self.planned_at = time.time_ns()
        table = catalogue.items(["id", "image", "title", "description"])
        self.ids: list[str] = table["id"].to_pylist()
        self.paths: list[str | None] = table["image"].to_pylist()
        pairs = list(zip(table["title"].to_pylist(), table["description"].to_pylist(), strict=True))
        self.titles = [_trimmed(title) for title, _ in pairs]
        self.texts = [_trimmed(". ".join(part.strip() for part in pair if part and part.strip())) for pair in pairs]
        self.keys: list[str | None] = [None] * len(self.ids)  # sha256 of the picture, once read
        self.stamps: list[str | None] = [None] * len(self.ids)
        self.reasons: dict[str, str] = {}  # id -> why its picture cannot be used
        self.named: list[str] = []  # shards of this plan
        self.done, self.total = 0, len(self.ids)
        self.distinct = sorted({text for text in self.titles + self.texts if text is not None}, key=lambda text: (len(text), text))
        self.total += len(self.distinct)
        self.known = {"image": _Known(), "text": _Known()}
        self.index: dict[str, tuple[str, str, str]] = {}  # id -> path, stamp, key
        for features in past:
            self._remember(features)

    def _remember(self, features: Features) -> None:
        columns = {name: features.rows[name].to_pylist() for name in features.rows.column_names}
        if features.image_encoder.identity == self.names[0].identity and self.grid in (0, features.grid):
            seen = [key if has else None for key, has in zip(columns["image"], columns["has_image"], strict=True)]
            cells = dict(zip(("cells", "scale"), features.quantised, strict=True)) if self.grid else {}
            self.known["image"].add(seen, {"vectors": features.image, **cells})
        if features.text_encoder.identity == self.names[1].identity:
            self.known["text"].add(columns["title"], {"vectors": features.text})
            self.known["text"].add(columns["text"], {"vectors": features.full_text})
        safe = features.meta["planned_at"] - 2_000_000_000
        for id, path, stamp, key in zip(columns["id"], columns["path"], columns["stamp"], columns["image"], strict=True):
            if path and stamp and key and int(stamp.partition("-")[2]) < safe:
                self.index.setdefault(id, (path, stamp, key))

    def advance(self, n: int) -> None:
        self.done += n
        self.progress(self.done, self.total)

    # -- jobs -----------------------------------------------------------------------------------

    def jobs(self) -> Iterator[dict[str, Any]]:
        """Shards that no file holds yet: pictures in the order of ids, then texts in the order of length."""
        size = min(max(len(self.ids) // 128, 32), 1024)
        planned: set[str] = set()
        keys: list[str] = []
        items: list[tuple[str, str | None]] = []
        for row, key in self._pictures():
            self.keys[row] = key
            if key in planned or key in self.known["image"].place:
                self.advance(1)
                continue
            planned.add(key)
            keys.append(key)
            path = self.paths[row]
            items.append((self.ids[row], str(self.catalogue.root / path) if path else None))
            if len(keys) == size:
                yield from self._shard("image", keys, items)
                keys, items = [], []
        yield from self._shard("image", keys, items)
        import pyarrow.parquet  # noqa: F401 - needed at the end, and the workers are busy now

        texts = [text for text in self.distinct if _text_key(text) not in self.known["text"].place]
        self.advance(len(self.distinct) - len(texts))
        for start in range(0, len(texts), TEXT_SHARD):
            part = texts[start : start + TEXT_SHARD]
            yield from self._shard("text", [_text_key(text) for text in part], part)

    def _shard(self, kind: str, keys: list[str], items: Sequence[Any]) -> Iterator[dict[str, Any]]:
        if not keys:
            return
        identity = self.names[0 if kind == "image" else 1].identity
        name = f"{kind}-{digest(identity, keys, self.grid if kind == 'image' else 0)}.npz"
        self.named.append(name)
        if (self.shards / name).exists():
            self.advance(len(keys))
        else:
            yield {"name": name, "kind": kind, "keys": keys, "items": items}

    def _pictures(self) -> Iterator[tuple[int, str]]:
        """(row, sha256 of its picture) of every item that has one; why not, of the others, goes to ``reasons``."""
        stored = set(self.catalogue.items(["id"], where="image_bytes IS NOT NULL")["id"].to_pylist()) if None in self.paths else set()
        waiting: list[int] = []
        for row, (id, path) in enumerate(zip(self.ids, self.paths, strict=True)):
            if path:
                key = self._hash_file(row, id, path)
                if key is not None:
                    yield row, key
            elif id in stored:
                waiting.append(row)
            else:
                self.advance(1)
            if len(waiting) == 64:
                yield from self._hash_blobs(waiting)
                waiting = []
        yield from self._hash_blobs(waiting)

    def _hash_file(self, row: int, id: str, path: str) -> str | None:
        try:
            file = self.catalogue.root / path
            found = os.stat(file)
            stamp = f"{found.st_size}-{found.st_mtime_ns}"
            self.stamps[row] = stamp
            known = self.index.get(id)
            if known is not None and known[:2] == (path, stamp):
                return known[2]
            if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_BYTES:
                return hashlib.sha256(file.read_bytes()).hexdigest()
            large = found.st_size > MAX_BYTES
            reason = (
                f"an image file of {found.st_size:,} bytes, more than {MAX_BYTES:,}" if large else "the image is a folder or a device, not a file"
            )
        except (OSError, ValueError):
            reason = self._why(id)
        self.reasons[id] = reason
        self.advance(1)
        return None

    def _why(self, id: str) -> str:
        """The catalogue's own words for a picture that it cannot give."""
        try:
            self.catalogue.image(id)
        except BadImage as error:
            return str(error)
        return "the image could not be read"

    def _hash_blobs(self, rows: list[int]) -> Iterator[tuple[int, str]]:
        table = self.catalogue.items(["id", "image_bytes"], ids=[self.ids[row] for row in rows]) if rows else None
        for row, blob in zip(rows, table["image_bytes"] if table is not None else [], strict=True):
            yield row, hashlib.sha256(blob.as_buffer()).hexdigest()


def _trimmed(text: str | None) -> str | None:
    """One line of at most TEXT_CHARACTERS, or None where there is nothing to read."""
    return " ".join((text or "").split())[:TEXT_CHARACTERS].strip() or None


def _text_key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# -- the artefact -------------------------------------------------------------------------------


def _assemble(plan: _Plan, max_pixels: int) -> EmbedStats:
    """Shards and copies into arrays in the order of ids; ``features.json`` last, then the shards go."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    titles = [_text_key(text) if text is not None else None for text in plan.titles]
    texts = [_text_key(text) if text is not None else None for text in plan.texts]
    reused = sum(key in plan.known["image"].place for key in plan.keys if key is not None)
    bad, forwarded = _read_shards(plan)
    has_image = np.array([key is not None and key not in bad for key in plan.keys], bool)
    plan.reasons.update({id: bad[key] for id, key in zip(plan.ids, plan.keys, strict=True) if key in bad})

    arrays = _arrays(plan, [key if has else None for key, has in zip(plan.keys, has_image, strict=True)], titles, texts)
    for name, array in arrays.items():
        _write_array(plan.out / f".{name}", plan.known[array.kind], array)
    columns = {"id": plan.ids, "path": plan.paths, "stamp": plan.stamps, "image": plan.keys, "title": titles, "text": texts}
    rows = pa.table({**{name: pa.array(values, pa.string()) for name, values in columns.items()}, "has_image": pa.array(has_image)})
    pq.write_table(rows, plan.out / ".rows.parquet")

    (plan.out / "features.json").unlink(missing_ok=True)  # from here on the folder is unfinished
    for name in ("text.npy", "cells.npy", "scale.npy"):
        if name not in arrays:
            (plan.out / name).unlink(missing_ok=True)
    for name in ("rows.parquet", *arrays):
        os.replace(plan.out / f".{name}", plan.out / name)
    write_json(plan.out / "rejected.json", sorted(plan.reasons.items()))
    stats = EmbedStats(len(plan.ids), int(has_image.sum()), forwarded["image"], reused, 0, len(plan.reasons))
    stats.repeated = max(0, stats.images - reused - forwarded["image"])
    stats.texts, stats.texts_forwarded = sum(text is not None for text in texts), forwarded["text"]
    meta: dict[str, Any] = {"layout": LAYOUT, "items": len(plan.ids), "planned_at": plan.planned_at, "max_pixels": max_pixels}
    meta |= {"image_encoder": asdict(plan.names[0]), "text_encoder": asdict(plan.names[1])}
    if plan.grid:
        meta["cells"] = {"edge": plan.grid, "dim": plan.cell_dim}
    write_json(plan.out / "features.json", meta)
    shutil.rmtree(plan.shards, ignore_errors=True)
    return stats


def _read_shards(plan: _Plan) -> tuple[dict[str, str], dict[str, int]]:
    """Make the shards' places known; return what could not be read (key -> reason), and how many were forwarded."""
    bad: dict[str, str] = {}
    forwarded = {"image": 0, "text": 0}
    for name in plan.named:
        path = plan.shards / name
        try:
            with np.load(path, allow_pickle=False) as shard:
                keys, reasons = shard["keys"].tolist(), shard["reasons"].tolist()
                for array in shard.files:  # a damaged one is found here, by its checksums, before anything is written
                    _ = shard[array]
        except Exception as error:  # a damaged zip raises a handful of kinds
            path.unlink(missing_ok=True)
            raise Corrupt(f"a shard cannot be read: {error}", where=str(path), fix="run the same command again: it is made anew") from None
        kind = name.partition("-")[0]
        bad |= {key: reason for key, reason in zip(keys, reasons, strict=True) if reason}
        good = [None if reason else key for key, reason in zip(keys, reasons, strict=True)]
        plan.known[kind].add(good, path)
        forwarded[kind] += sum(key is not None for key in good)
    return bad, forwarded


@dataclass(frozen=True)
class _Array:
    """A file of the artefact: for each row a key of one kind of thing, and which of its arrays is written."""

    kind: str
    name: str
    keys: Sequence[str | None]
    shape: tuple[int, ...]  # of a row
    dtype: str = "<f4"


def _arrays(plan: _Plan, images: Sequence[str | None], titles: Sequence[str | None], texts: Sequence[str | None]) -> dict[str, _Array]:
    """What the artefact holds, by the names of its files."""
    seen, read = (plan.names[0].dim,), (plan.names[1].dim,)
    arrays = {"image.npy": _Array("image", "vectors", images, seen), "title.npy": _Array("text", "vectors", titles, read)}
    if texts != titles:
        arrays["text.npy"] = _Array("text", "vectors", texts, read)
    if plan.grid:
        arrays["cells.npy"] = _Array("image", "cells", images, (plan.grid**2, plan.cell_dim), "|i1")
        arrays["scale.npy"] = _Array("image", "scale", images, (plan.grid**2,))
    return arrays


def _write_array(path: Path, known: _Known, wanted: _Array) -> None:
    """In npy form, zeros where there is no key. Space is claimed first: a full disk is an error, no signal. Neighbours that were
    neighbours before are copied as they lie: where one picture in a hundred is new, this is most of the work."""
    groups: dict[int, tuple[list[int], list[int]]] = {}
    for row, key in enumerate(wanted.keys):
        if key is not None:
            source, place = known.place[key]
            groups.setdefault(source, ([], []))
            groups[source][0].append(row)
            groups[source][1].append(place)
    shape, dtype = (len(wanted.keys), *wanted.shape), np.dtype(wanted.dtype)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": wanted.dtype, "fortran_order": False, "shape": shape})
        start, each = file.tell(), math.prod(wanted.shape) * dtype.itemsize
        file.flush()
        if wanted.keys:
            os.posix_fallocate(file.fileno(), 0, start + math.prod(shape) * dtype.itemsize)
        for source, (rows, places) in groups.items():
            array: Any = known.array(source, wanted.name)
            runs = _runs(np.array(rows), np.array(places), max(1, RUN_BYTES // each))
            with open(array.filename, "rb") if _whole_file(array, dtype) else contextlib.nullcontext() as kept:
                for row, place, count in runs:
                    copied = _copy(kept, array.offset + place * each, file, start + row * each, count * each) if kept else 0
                    if copied < count * each:
                        _write_at(file.fileno(), np.ascontiguousarray(array[place : place + count], dtype), start + row * each)
        os.fsync(file.fileno())


def _runs(rows: np.ndarray, places: np.ndarray, most: int) -> Iterator[tuple[int, int, int]]:
    """(first row, first place, how many) of pieces in which both go up by one."""
    edges = np.flatnonzero((np.diff(rows) != 1) | (np.diff(places) != 1)) + 1
    for begin, end in itertools.pairwise([0, *edges.tolist(), len(rows)]):
        for at in range(begin, end, most):
            yield int(rows[at]), int(places[at]), min(most, end - at)


def _whole_file(array: np.ndarray, dtype: np.dtype[Any]) -> bool:
    """The array is a file as it lies, so that the kernel can copy from it without a look at a byte."""
    return isinstance(array, np.memmap) and array.filename is not None and array.dtype == dtype and bool(array.flags.c_contiguous)


def _copy(old: IO[bytes], at: int, new: IO[bytes], offset: int, size: int) -> int:
    """Bytes copied inside the kernel; fewer than ``size`` where it cannot."""
    done = 0
    try:
        while done < size and (count := os.copy_file_range(old.fileno(), new.fileno(), size - done, at + done, offset + done)):
            done += count
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
    return done


def _write_at(file: int, array: np.ndarray, offset: int) -> None:
    left = array.reshape(-1).view(np.uint8).data
    while len(left):
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def _note_rejected(catalogue: Source, plan: _Plan) -> None:
    """Rows in the catalogue's ``rejected`` table, so that an owner finds all refusals in one place; those of earlier runs go."""
    from pinhole.catalogue.records import Rejection, rejection_key

    rows = [Rejection(None, id, reason) for id, reason in sorted(plan.reasons.items())]
    catalogue.reject("items", "embed", rows)
    catalogue.settle("items", "embed", {rejection_key("items", "embed", row) for row in rows})
