"""The safetensors files of a checkpoint, by the names of the tensors in them.

One file or several with an index. A file is opened when one of its tensors is asked for, so what nobody asks for is
never read and need not be there. Pickled weights are refused. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinhole.errors import UsageError
from pinhole.workspace import read_json

if TYPE_CHECKING:
    from torch import Tensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Shards:
    """Raises :class:`UsageError` where there are no safetensors, or a file that is needed is missing or broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._file = _index(folder) if (folder / INDEX).exists() else dict.fromkeys(self._header(SINGLE), SINGLE)

    @property
    def names(self) -> list[str]:
        return list(self._file)

    def files(self, names: Iterable[str]) -> list[str]:
        """The files that hold these tensors, sorted."""
        return sorted({self._file[name] for name in names})

    def shape(self, name: str) -> tuple[int, ...] | None:
        """From the file's header; None where the index promises more than its file holds."""
        file = self._file[name]
        return tuple(self._opened(file).get_slice(name).get_shape()) if name in self._header(file) else None

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._opened(self._file[name]).get_tensor(name)
        return tensor

    def _header(self, file: str) -> set[str]:
        return set(self._opened(file).keys())

    def _opened(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._open:
            path = self.folder / file
            if not path.is_file():
                raise _absent(path)
            try:
                self._open[file] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise UsageError(f"cannot read the weights: {error}", where=str(path), fix="download the checkpoint again") from error
        return self._open[file]


def _absent(path: Path) -> UsageError:
    pickled = sorted(found.name for ending in ("*.bin", "*.pt", "*.pth") for found in path.parent.glob(ending))
    if pickled and path.name == SINGLE:
        fix = "load it once where you trust it and `save_pretrained` it again"
        return UsageError(f"the weights are pickled ({pickled[0]}) and could run code: they are not read", where=str(path.parent), fix=fix)
    return UsageError(f"no {path.name}", where=str(path.parent), fix="name a folder saved with save_pretrained, or download the checkpoint again")


def _index(folder: Path) -> dict[str, str]:
    try:
        files: dict[str, str] = dict(read_json(folder / INDEX)["weight_map"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("the index of the weights has no weight_map", where=str(folder / INDEX), fix="download the checkpoint again") from error
    outside = [file for file in files.values() if Path(file).name != file or not file.endswith(".safetensors")]
    if outside:
        raise UsageError(f"the index names `{outside[0]}`, which is no safetensors file beside it", where=str(folder / INDEX), fix="do not use it")
    return files
