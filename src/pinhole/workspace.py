"""A workspace: one folder with ``pinhole.toml``, the tables, and immutable artefacts.

    shop/
      pinhole.toml
      workspace.json            the layout's version
      tables/                   the catalogue's Lance tables
      artefacts/STAGE/KEY/      one finished artefact; never written again
      artefacts/STAGE/KEY.part/ one being made; a rerun resumes from what is there
      artefacts/STAGE/LATEST    the key that readers use, replaced atomically

An artefact's key is a hash of its inputs, its settings and its stage's code version. It appears by
one rename, so a stage killed at any instant leaves the old artefact or the new one. Knows nothing
of what stages do. Does not protect against another program that edits these files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pinhole import config as configuration
from pinhole.config import Config
from pinhole.errors import Corrupt, DiskFull, Locked, MissingArtefact, WorkspaceError

LAYOUT = 1


def digest(*parts: Any) -> str:
    """A short stable hash (16 hex digits) of JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomic(path: Path, data: bytes | str | Callable[[IO[bytes]], None]) -> None:
    """Write a whole file or nothing: a temporary neighbour, fsync, rename. ``data`` may be a function that writes it into an open file."""
    data = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_TEMPORARY = re.compile(r"^\..+\.\d+$")  # what `write_atomic` leaves when it is killed before its rename


def sweep(paths: Iterable[Path]) -> None:
    """Remove those of ``paths`` that a killed :func:`write_atomic` left behind. For a writer that is alone there."""
    for path in paths:
        if _TEMPORARY.match(path.name) and path.is_file():
            path.unlink()


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Raises :class:`Corrupt` where the file is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"not valid JSON: {error}", where=str(path), fix="delete it and run `pinhole build`") from None


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn "no space left" into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("no space left on the disk", where=str(where), fix="free some and run the same command again: it resumes") from None
        raise


@dataclass(frozen=True)
class Artefact:
    """One finished artefact: a folder, and the manifest written into it."""

    stage: str
    key: str
    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.path / "manifest.json")


class Workspace:
    """Paths, the writer's lock, and artefacts that appear whole."""

    def __init__(self, root: Path, config: Config) -> None:
        self.root, self.config = root, config

    # -- opening --------------------------------------------------------------------------------

    @classmethod
    def create(cls, root: Path | str, config: Config | None = None) -> Workspace:
        """Make the folder and write its ``pinhole.toml``. Raises where one is there already."""
        if re.match(r"\w+:/", str(root)):  # a path has made one slash of two
            raise WorkspaceError("object-store workspaces are not built yet", where=str(root), fix="name a local folder")
        root = Path(root)
        if (root / "pinhole.toml").exists():
            raise WorkspaceError("already a workspace", where=str(root), fix="use it with `-w`, or name another folder")
        if root.exists() and not root.is_dir():
            raise WorkspaceError("not a folder", where=str(root), fix="name another place")
        with disk_errors(root):
            (root / "tables").mkdir(parents=True, exist_ok=True)
            (root / "artefacts").mkdir(exist_ok=True)
            write_json(root / "workspace.json", {"layout": LAYOUT})
            write_atomic(root / "pinhole.toml", configuration.commented(config))
        return cls.open(root)

    @classmethod
    def open(cls, root: Path | str) -> Workspace:
        root = Path(root)
        if not (root / "pinhole.toml").exists():
            raise WorkspaceError(
                "not a workspace", where=str(root.absolute()), fix="run `pinhole init DIR`, or name one with -w DIR or PINHOLE_WORKSPACE"
            )
        file = root / "workspace.json"
        described = read_json(file) if file.exists() else {"layout": LAYOUT}
        layout = described.get("layout") if isinstance(described, dict) else None
        if not isinstance(layout, int):
            raise Corrupt("does not say which layout this workspace has", where=str(file), fix=f'write {{"layout": {LAYOUT}}} into it')
        if layout > LAYOUT:
            raise WorkspaceError(
                f"written by a newer Pinhole (layout {layout}, this one reads up to {LAYOUT})", where=str(root), fix="upgrade pinhole-vlm"
            )
        return cls(root, configuration.load(root / "pinhole.toml"))

    def change(self, settings: dict[str, Any]) -> Workspace:
        """This workspace with ``{"graft.base": "hf:NAME"}`` written into its ``pinhole.toml``; a wrong value writes nothing."""
        path = self.root / "pinhole.toml"
        text = configuration.changed(path.read_text(encoding="utf-8"), settings, where=str(path))
        with disk_errors(self.root):
            write_atomic(path, text)
        return Workspace.open(self.root)

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    # -- one writer at a time -------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, doing: str) -> Iterator[None]:
        """Hold the writer's lock; the kernel lets go of it when the process dies, however it dies."""
        path = self.root / ".lock"
        with open(path, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise Locked(f"another writer is at work: {holder}", where=str(self.root), fix="wait for it, or stop it") from None
            file.seek(0)
            file.truncate()
            file.write(f"`{doing}`, process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            file.flush()
            try:
                yield
            finally:
                file.seek(0)
                file.truncate()
                file.flush()

    # -- artefacts ------------------------------------------------------------------------------

    def folder(self, stage: str) -> Path:
        return self.root / "artefacts" / stage

    def find(self, stage: str, key: str) -> Artefact | None:
        path = self.folder(stage) / key
        return Artefact(stage, key, path) if (path / "manifest.json").exists() else None

    def latest(self, stage: str) -> Artefact | None:
        """The artefact that readers use now, or None."""
        pointer = self.folder(stage) / "LATEST"
        return self.find(stage, pointer.read_text().strip()) if pointer.exists() else None

    def need(self, stage: str) -> Artefact:
        found = self.latest(stage)
        if found is None:
            raise MissingArtefact(f"`{stage}` has not been built", where=str(self.root), fix=f"run `pinhole build {stage}`")
        return found

    def start(self, stage: str, key: str) -> Path:
        """The folder to make an artefact in; what an interrupted run left there is still there."""
        path = self.folder(stage) / f"{key}.part"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, stage: str, key: str, manifest: dict[str, Any]) -> Artefact:
        """Seal the folder of :meth:`start` and make it the latest. Both steps are one rename."""
        part, path = self.folder(stage) / f"{key}.part", self.folder(stage) / key
        with disk_errors(self.root):
            write_json(part / "manifest.json", {**manifest, "stage": stage, "key": key})
            if path.exists():  # an unsealed leftover of an older layout
                shutil.rmtree(path)
            os.replace(part, path)
            self.use(stage, key)
        return Artefact(stage, key, path)

    def use(self, stage: str, key: str) -> None:
        """Make a finished artefact the latest."""
        write_atomic(self.folder(stage) / "LATEST", key + "\n")


def cache_dir() -> Path:
    """Where downloads are kept: ``PINHOLE_CACHE``, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pinhole"
    path = Path(os.environ.get("PINHOLE_CACHE") or default)
    path.mkdir(parents=True, exist_ok=True)
    return path
