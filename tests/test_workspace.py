"""Workspaces: atomic files, one writer, artefacts that appear whole."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from pinhole.errors import ConfigError, Corrupt, DiskFull, Locked, MissingArtefact, PinholeError, WorkspaceError
from pinhole.workspace import Workspace, cache_dir, digest, disk_errors, write_atomic


def test_create_open_and_create_again(tmp_path: Path) -> None:
    made = Workspace.create(tmp_path / "a" / "shop")
    assert Workspace.open(made.root).config == made.config
    with pytest.raises(WorkspaceError, match="already a workspace"):
        Workspace.create(made.root)


@pytest.mark.parametrize(("place", "words"), [("file", "not a folder"), ("s3://bucket/shop", "not built yet")])
def test_places_that_cannot_be_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises(WorkspaceError, match=words):
        Workspace.create(place)


def test_not_a_workspace_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="not a workspace.*pinhole init"):
        Workspace.open(tmp_path)


def test_newer_layout_is_refused(workspace: Any) -> None:
    (workspace.root / "workspace.json").write_text('{"layout": 99}')
    with pytest.raises(WorkspaceError, match=r"newer Pinhole \(layout 99.*upgrade"):
        Workspace.open(workspace.root)


@pytest.mark.parametrize("text", ["{", "[]", '{"layout": "two"}', "{}"])
def test_damaged_layout_file(workspace: Any, text: str) -> None:
    (workspace.root / "workspace.json").write_text(text)
    with pytest.raises(Corrupt, match=r"workspace\.json"):
        Workspace.open(workspace.root)


def test_change_writes_only_what_is_right(workspace: Any) -> None:
    assert workspace.change({"align.steps": 3}).config.align.steps == 3
    with pytest.raises(ConfigError, match=r"align\.steps"):
        workspace.change({"align.steps": "three"})
    assert Workspace.open(workspace.root).config.align.steps == 3


def test_an_artefact_appears_whole(workspace: Any) -> None:
    assert workspace.latest("embed") is None
    with pytest.raises(MissingArtefact, match="pinhole build embed"):
        workspace.need("embed")
    part = workspace.start("embed", "k1")
    (part / "data").write_text("1")
    assert workspace.latest("embed") is None and workspace.find("embed", "k1") is None
    first = workspace.finish("embed", "k1", {"figures": {"n": 1}})
    assert workspace.need("embed") == first and first.manifest["figures"] == {"n": 1}
    workspace.start("embed", "k2")
    assert workspace.need("embed") == first
    workspace.finish("embed", "k2", {})
    assert workspace.need("embed").key == "k2"
    workspace.use("embed", "k1")
    assert workspace.need("embed") == first


def test_one_writer_and_its_name(workspace: Any) -> None:
    with workspace.lock("pinhole build"), pytest.raises(Locked, match=r"pinhole build.*process \d+"), workspace.lock("pinhole ingest"):
        pass
    with workspace.lock("pinhole ingest"):
        pass


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull, match="free some"), disk_errors(tmp_path):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_digest_is_stable() -> None:
    assert digest("a", {"y": 1, "x": [2]}) == digest("a", {"x": [2], "y": 1}) != digest("a", {"x": [2], "y": 2})
    assert len(digest()) == 16


def test_errors_survive_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(Locked("what", where="where", fix="fix")))
    assert isinstance(error, Locked) and isinstance(error, PinholeError)
    assert str(error) == "what (where). fix" and error.status == 409


def test_cache_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "c" and cache_dir().is_dir()
    monkeypatch.delenv("PINHOLE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_dir() == tmp_path / "x" / "pinhole"


def test_manifest_that_is_no_json(workspace: Any) -> None:
    workspace.start("embed", "k")
    artefact = workspace.finish("embed", "k", {})
    assert json.loads((artefact.path / "manifest.json").read_text())["key"] == "k"
    (artefact.path / "manifest.json").write_text("half")
    with pytest.raises(Corrupt, match="pinhole build"):
        _ = artefact.manifest
