"""Real sample catalogues, had through the machine's own package client and kept in the cache.

A sample names its packages and the file that reads them. ``fetch_sample`` downloads and unpacks into a
folder that appears whole, by one rename; an interrupted run goes on with the packages it has. What
the client says about signatures and checksums is trusted. Nothing inside a package is run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pinhole.catalogue import clipart, emoji, stamps
from pinhole.catalogue.records import KINDS, Counts
from pinhole.catalogue.store import Catalogue
from pinhole.errors import DownloadError, MissingDependency, UnknownName
from pinhole.fetch import locked
from pinhole.workspace import cache_dir, disk_errors

Progress = Callable[[int, int], None]
Tables = dict[str, pa.Table]
PATIENCE = 1800  # seconds that a package client may take


@dataclass(frozen=True)
class Sample:
    """One sample: which client has which packages, and who reads the unpacked folder."""

    client: str
    packages: tuple[str, ...]
    licence: str
    read: Callable[[Path, Progress | None], Tables]
    drop: tuple[str, ...] = ()  # files that are of no use here, by ending


SAMPLES = {
    "openclipart": Sample("apt-get", ("openclipart-svg", "openclipart-png"), "public domain", clipart.read),
    "tuxpaint": Sample("apt-get", ("tuxpaint-stamps-default",), "GPL-2", stamps.read, drop=(".ogg", ".wav", ".dat")),
    "openmoji": Sample("npm", ("openmoji@17.0.0",), "CC BY-SA 4.0", emoji.read, drop=(".ttx", ".ai")),
}


def load_sample(catalogue: Catalogue, name: str, cache: Path | None = None, progress: Progress | None = None) -> dict[str, Counts]:
    """Fetch a sample where it is not in the cache, and upsert its tables: counts by kind."""
    folder = fetch_sample(name, cache)
    with disk_errors(folder):
        tables = SAMPLES[name].read(folder, progress)
    counts = {kind: catalogue.upsert(kind, tables[kind], source=f"sample:{name}") for kind in KINDS if kind in tables}
    catalogue.refresh_text_index()
    return counts


def fetch_sample(name: str, cache: Path | None = None) -> Path:
    """The folder of a sample's unpacked packages, downloaded at the first call.

    Raises ``UnknownName``, :class:`MissingDependency` where the machine has no such client,
    :class:`DownloadError` where the client cannot get a package.
    """
    sample = SAMPLES.get(name)
    if sample is None:
        raise UnknownName(f"no sample `{name}`", fix=f"samples: {', '.join(SAMPLES)}")
    folder = (cache or cache_dir()) / "samples" / name
    if folder.is_dir():
        return folder
    get, unpack = _CLIENTS[sample.client]
    part = folder.with_name(f"{name}.part")
    with disk_errors(folder):
        part.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{name}.lock")):
            if not folder.is_dir():
                packages = get(sample.packages, part)
                shutil.rmtree(part / "files", ignore_errors=True)
                (part / "files").mkdir()
                for package in packages:
                    unpack(package, part / "files")
                for path in (part / "files").rglob("*"):
                    if path.suffix in sample.drop:
                        path.unlink()
                os.replace(part / "files", folder)
                shutil.rmtree(part)
    return folder


def _apt(packages: Sequence[str], folder: Path) -> list[Path]:
    _need("apt-get", "dpkg-deb")
    fix = "run `apt-get update` as root if apt's lists are missing or old, then the same command again"
    _run(["apt-get", "download", "-q", *packages], folder, fix)
    return sorted(folder.glob("*.deb"))


def _deb(package: Path, folder: Path) -> None:
    _run(["dpkg-deb", "-x", str(package.absolute()), str(folder.absolute())], folder, f"delete {package} and run the command again")


def _npm(packages: Sequence[str], folder: Path) -> list[Path]:
    _need("npm")
    _run(["npm", "pack", "--silent", "--ignore-scripts", *packages], folder, "check that npm reaches its registry, then run the same command again")
    return sorted(folder.glob("*.tgz"))


def _tgz(package: Path, folder: Path) -> None:
    import tarfile

    try:
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")  # no path outside the folder, no links out, no devices
    except (tarfile.TarError, EOFError) as error:
        raise DownloadError(f"the package cannot be unpacked: {error}", where=str(package), fix="delete it and run the command again") from None


_CLIENTS = {"apt-get": (_apt, _deb), "npm": (_npm, _tgz)}


def _need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            fix = f"install {program}, or ingest a Hugging Face dataset instead: `pinhole ingest items hf:NAME`"
            raise MissingDependency(f"this sample comes through `{program}`, which is not on this machine", fix=fix)


def _run(command: list[str], folder: Path, fix: str) -> None:
    shown = " ".join(command[:2])
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise DownloadError(f"`{shown}` took more than {PATIENCE} s", fix="run the same command again: it resumes") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith(("E:", "npm error", "dpkg-deb: error"))] or said[-1:]
        raise DownloadError(f"`{shown}` failed: {errors[0][:200] if errors else f'exit {done.returncode}'}", where=str(folder), fix=fix)
