"""Base models on the Hugging Face hub: only the files that are read are fetched.

First what is small (configuration, tokenizer, chat template, index), then the weight files that these say are needed: of
a vision-language model those that hold language tensors. A base stays at the revision that it was first fetched at.
Does not fetch pickled weights or code. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pinhole.errors import DownloadError
from pinhole.workspace import cache_dir, read_json, write_json

SMALL = ("*.json", "*.jinja", "*.txt", "*.model")


def fetch(name: str, weights: Callable[[Path], Sequence[str]]) -> Path:
    """A folder with the small files of ``name`` and those that ``weights(folder)`` asks for. Raises :class:`DownloadError`."""
    pin = cache_dir() / "bases" / f"hub-{name.replace('/', '--')}.json"
    revision = read_json(pin)["revision"] if pin.exists() else None
    folder = _snapshot(name, revision, SMALL, here=revision is not None)
    if not (folder / "config.json").exists():
        raise DownloadError(f"`{name}` has no config.json", where="model hub", fix="name a model that transformers reads")
    files = weights(folder)
    folder = _snapshot(name, folder.name, files, here=all((folder / file).exists() for file in files))
    if revision is None:
        pin.parent.mkdir(parents=True, exist_ok=True)
        write_json(pin, {"name": name, "revision": folder.name})
    return folder


def _snapshot(name: str, revision: str | None, files: Sequence[str], *, here: bool) -> Path:
    """The hub's own cache; the network is asked only where the files are not ``here``, or turn out not to be."""
    from huggingface_hub import snapshot_download

    if here:
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(files), local_files_only=True))
        except Exception:  # somebody cleared the cache
            pass
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files), ignore_patterns=["*/*"]))
    except Exception as error:  # the hub client raises a dozen kinds, most of them for "cannot be reached"
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        fix = "check the name and the network, or name a local folder"
        raise DownloadError(f"could not download `{name}`: {reason}", where="model hub", fix=fix) from None
