"""What the encoders saw: one row an item, in arrays that are mapped, not read, into memory.

    features.json     encoders with their identities, counts; written last, so its presence means complete
    rows.parquet      id, hash and stamp of the picture, hashes of the texts
    image.npy         (n, image dim) float32, raw pooled features; zeros where no picture could be read
    title.npy         (n, text dim) float32, length 1; zeros where there is no title
    text.npy          the same of "title. description"; absent where no item has a description
    cells.npy         (n, grid · grid, cell dim) int8, patches pooled to a grid; absent with [vision] grid = 0
    scale.npy         (n, grid · grid) float32, what each cell is multiplied with
    rejected.json     [id, reason] of every picture that could not be read

Knows nothing of how the rows were made (``precompute``) or of the tables they came from.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.errors import Corrupt, MissingArtefact, SpaceMismatch, UnknownItem
from pinhole.vision.encoders.tuned import PREFIX, resolved
from pinhole.vision.grid import restore
from pinhole.workspace import digest, read_json

LAYOUT = 1


@dataclass(frozen=True)
class EncoderName:
    """Which encoder made the vectors."""

    spec: str
    identity: str
    dim: int


def taken(array: np.ndarray, rows: np.ndarray, at_once: int = 512) -> np.ndarray:
    """A copy of some rows. What was read of a mapped file leaves this process's memory again, so that a pass over it does not hold it whole."""
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)
    mapped = getattr(array, "_mmap", None)
    for begin in range(0, len(rows), at_once):
        out[begin : begin + at_once] = array[rows[begin : begin + at_once]]
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
    return out


class Features:
    """The artefact of ``embed``, read only. Rows are in the order of ``ids``."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path, self.meta = path, meta
        self.image_encoder = EncoderName(**meta["image_encoder"])
        self.text_encoder = EncoderName(**meta["text_encoder"])
        self.identity = digest(asdict(self.image_encoder), asdict(self.text_encoder))

    @classmethod
    def load(cls, folder: Path | str) -> Features:
        """Raises :class:`MissingArtefact` where the folder is no finished artefact, :class:`Corrupt` where a file is wrong."""
        folder = Path(folder)
        if not (folder / "features.json").exists():
            raise MissingArtefact("no features", where=str(folder), fix="run `pinhole build embed`")
        meta = read_json(folder / "features.json")
        if meta.get("layout") != LAYOUT:
            raise Corrupt(f"features of layout {meta.get('layout')}, not {LAYOUT}", where=str(folder), fix="run `pinhole build embed`")
        return cls(folder, meta)

    def __len__(self) -> int:
        return int(self.meta["items"])

    @property
    def image_spec(self) -> str:
        """What to give to ``image_encoder``: a tuned encoder's folder is kept relative to this one, so that a workspace may move."""
        return resolved(self.image_encoder.spec, self.path)

    @property
    def tuned(self) -> bool:
        """The image encoder itself has learned from the training part of the workspace's split."""
        return self.image_encoder.spec.startswith(PREFIX)

    @cached_property
    def rows(self) -> Any:
        """The ``pyarrow.Table`` of rows.parquet."""
        import pyarrow.parquet as pq

        return pq.read_table(self.path / "rows.parquet", memory_map=True)

    @cached_property
    def ids(self) -> list[str]:
        ids: list[str] = self.rows["id"].to_pylist()
        return ids

    @cached_property
    def _row(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids)}

    def row(self, id: str) -> int:
        """Raises :class:`UnknownItem` for an id that was not there when this was built."""
        try:
            return self._row[id]
        except KeyError:
            raise UnknownItem(f"no item `{id}` in the features", where=str(self.path), fix="run `pinhole build`") from None

    def _array(self, name: str, *dims: int) -> np.ndarray:
        try:
            array: np.ndarray = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise Corrupt(f"cannot be read: {error}", where=str(self.path / name), fix="delete the folder and run `pinhole build embed`") from None
        if array.shape != (len(self), *dims):
            raise Corrupt(
                f"shape {array.shape}, not {(len(self), *dims)}", where=str(self.path / name), fix="delete the folder and run `pinhole build embed`"
            )
        return array

    @cached_property
    def image(self) -> np.ndarray:
        """(n, image dim) float32, not normalised; zeros where ``has_image`` is False."""
        return self._array("image.npy", self.image_encoder.dim)

    @property
    def grid(self) -> int:
        """Cells along each side of a picture's grid; 0 where none were kept."""
        return int(self.meta.get("cells", {}).get("edge", 0))

    @property
    def cell_dim(self) -> int:
        """Width of a cell; 0 where none were kept."""
        return int(self.meta.get("cells", {}).get("dim", 0))

    @cached_property
    def quantised(self) -> tuple[np.ndarray, np.ndarray]:
        """(n, grid · grid, cell dim) int8, (n, grid · grid) float32."""
        return self._array("cells.npy", self.grid**2, self.cell_dim), self._array("scale.npy", self.grid**2)

    def cells(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(rows, grid · grid, cell dim) float32, not normalised."""
        cells, scale = self.quantised
        return restore(cells[rows], scale[rows])

    @cached_property
    def has_image(self) -> np.ndarray:
        """(n,) bool."""
        return np.asarray(self.rows["has_image"].combine_chunks().to_numpy(zero_copy_only=False))

    @cached_property
    def text(self) -> np.ndarray:
        """(n, text dim) float32 of the titles, each of length 1; zeros where ``has_text`` is False."""
        return self._array("title.npy", self.text_encoder.dim)

    @cached_property
    def has_text(self) -> np.ndarray:
        """(n,) bool: the item has a title."""
        return np.asarray(self.rows["title"].combine_chunks().is_valid().to_numpy(zero_copy_only=False))

    @cached_property
    def full_text(self) -> np.ndarray:
        """(n, text dim) float32 of "title. description"; the titles' own where nothing has a description."""
        return self._array("text.npy", self.text_encoder.dim) if (self.path / "text.npy").exists() else self.text

    @cached_property
    def has_full_text(self) -> np.ndarray:
        """(n,) bool: the item has a title or a description."""
        return np.asarray(self.rows["text"].combine_chunks().is_valid().to_numpy(zero_copy_only=False))

    @cached_property
    def rejected(self) -> list[tuple[str, str]]:
        """(id, reason) of every picture that could not be read."""
        return [(id, reason) for id, reason in read_json(self.path / "rejected.json")]

    def check(self, *, image: str = "", text: str = "") -> None:
        """Raises :class:`SpaceMismatch` where an encoder identity is not the one that made these vectors."""
        for kind, mine, other in (("image", self.image_encoder, image), ("text", self.text_encoder, text)):
            if other and other != mine.identity:
                raise SpaceMismatch(
                    f"{kind} vectors of encoder {other} met features of {mine.identity} ({mine.spec})",
                    where=str(self.path),
                    fix="run `pinhole build`",
                )
