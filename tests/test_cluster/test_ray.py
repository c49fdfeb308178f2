"""On a real cluster of two nodes, one of them killed midway: what is written is what this machine writes alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pinhole import cluster
from pinhole.errors import BadImage, EngineDown, PinholeError, SpaceMismatch
from pinhole.vision import cluster as encoding
from pinhole.vision.cluster import ClusterPool
from pinhole.vision.precompute import precompute
from test_vision.conftest import make_catalogue, tiny_encoders  # noqa: F401 - fixtures
from toy_cluster import counting, slow_encoding

FILES = ("image.npy", "title.npy", "text.npy", "rejected.json", "rows.parquet")
Catalogues = Callable[..., Any]
# ruff: noqa: F811 - the fixtures' names are their tests' arguments


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_a_killed_node_costs_nothing(
    nodes: Any, tiny_encoders: tuple[str, str], make_catalogue: Catalogues, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = make_catalogue(250, blobs=True)
    alone = precompute(catalogue, *tiny_encoders, tmp_path / "alone", workers=2)
    refused = catalogue.rejected().to_pylist()
    second = nodes.add_node(num_cpus=1, object_store_memory=100_000_000)
    monkeypatch.setattr(encoding, "encoding", slow_encoding)
    raylet, killed = second.all_processes["raylet"][0].process.pid, threading.Event()

    def kill() -> None:
        while not list((tmp_path / "out").glob(f"at-{raylet}-*")):
            time.sleep(0.02)
        nodes.remove_node(second, allow_graceful=False)  # SIGKILL
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    stats = precompute(catalogue, *tiny_encoders, tmp_path / "out", pool=partial(ClusterPool, f"ray:{nodes.address}"))
    assert killed.is_set(), "the second node was never at work: the test shows nothing"
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert (stats.forwarded, stats.texts_forwarded, stats.rejected) == (alone.forwarded, alone.texts_forwarded, alone.rejected)
    assert catalogue.rejected().to_pylist() == refused
    assert not list((tmp_path / "out").rglob(".seen-*"))


def answers(nodes: Any, folder: Path, n: int = 12, **setup: Any) -> list[Any]:
    jobs = [{"n": k} for k in range(n)]
    return list(cluster.each(f"ray:{nodes.address}", counting, {"add": 100, "refuse": -1, **setup}, jobs, folder))


def test_a_worker_keeps_what_it_has_made(nodes: Any, tmp_path: Path) -> None:
    found = answers(nodes, tmp_path)
    assert sorted(one["sum"] for one in found) == list(range(100, 112))
    assert len({one["process"] for one in found}) == 1 and max(one["asked"] for one in found) == 12
    assert not list(tmp_path.iterdir())


def test_what_a_worker_raises_is_raised_here_with_its_node(nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"no such number \(3, node .*take another"):
        answers(nodes, tmp_path, refuse=3)


def test_other_versions_other_encoders_and_unseen_folders_are_refused(
    nodes: Any, tiny_encoders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_marked", lambda folder: folder / "on-another-disk")
    with pytest.raises(PinholeError, match="a node does not see the workspace.*every node mounts"):
        answers(nodes, tmp_path, 1)
    monkeypatch.undo()
    monkeypatch.setattr(cluster, "_versions", lambda: "pinhole 99.0 on Python 3.11.0")
    with pytest.raises(PinholeError, match=r"a node runs pinhole \d.*this machine pinhole 99.0.*install the same"):
        answers(nodes, tmp_path, 1)
    monkeypatch.undo()
    setup = {"shards": str(tmp_path), "image": tiny_encoders[0], "text": tiny_encoders[1], "identities": {"text": "another"}}
    with pytest.raises(SpaceMismatch, match="on a node met another here"):
        encoding.encoding(setup)({"name": "x.npz", "kind": "text", "keys": ["a"], "items": ["a"]})


def test_nobody_at_the_address(tmp_path: Path) -> None:
    with pytest.raises(EngineDown, match=r"no cluster can be reached: .*127.0.0.1:9.*ray status"):
        list(cluster.each("ray:127.0.0.1:9", counting, {}, [{"n": 1}], tmp_path))
