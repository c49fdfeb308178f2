"""Kept = fresh, resumed = undisturbed, repeated = once; what cannot be read is noted, who dies is named."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pinhole.errors import BadImage, DiskFull, PinholeError, UnknownItem
from pinhole.vision import precompute as module
from pinhole.vision.encoders import image_encoder, text_encoder
from pinhole.vision.features import Features
from pinhole.vision.pool import Pool
from pinhole.vision.precompute import precompute
from test_vision.conftest import picture

Specs = tuple[str, str]
FILES = ("image.npy", "title.npy", "text.npy", "rejected.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_rows_are_what_the_encoders_say(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    catalogue, seen = make_catalogue(60, blobs=True), []
    stats = precompute(catalogue, *tiny_encoders, tmp_path / "out", workers=2, progress=lambda done, total: seen.append((done, total)))
    features = Features.load(tmp_path / "out")
    see, read = image_encoder(tiny_encoders[0]), text_encoder(tiny_encoders[1])
    assert features.ids == catalogue.items(["id"])["id"].to_pylist()
    assert (features.image_encoder.identity, features.text_encoder.identity) == (see.identity, read.identity)
    for row, id in enumerate(features.ids):
        item = catalogue.item(id)
        assert features.row(id) == row
        try:
            right = see.encode_bytes([catalogue.image(id)])[0]
            assert features.has_image[row]
            assert np.allclose(features.image[row], right, atol=1e-4)
        except BadImage:
            assert not features.has_image[row]
            assert not features.image[row].any()
        assert features.has_text[row] == bool(item["title"])
        if item["title"]:
            assert np.allclose(features.text[row], read.encode([item["title"]])[0], atol=1e-4)
        full = ". ".join(part for part in (item["title"], item["description"]) if part)
        assert features.has_full_text[row] == bool(full)
        if full:
            assert np.allclose(features.full_text[row], read.encode([full])[0], atol=1e-4)
    assert (stats.items, stats.images, stats.forwarded, stats.repeated, stats.reused, stats.rejected) == (63, 60, 59, 1, 0, 2)
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert not (tmp_path / "out" / "shards").exists()
    with pytest.raises(UnknownItem):
        features.row("nobody")


def test_refusals_are_noted_once_and_forgotten(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    catalogue = make_catalogue(5)
    precompute(catalogue, *tiny_encoders, tmp_path / "one", workers=1)
    assert [id for id, _ in Features.load(tmp_path / "one").rejected] == ["x-broken", "x-gone"]
    reasons = {row["id"]: row["reason"] for row in catalogue.rejected().to_pylist()}
    assert "broken" in reasons["x-broken"]
    assert "No such file" in reasons["x-gone"]
    for name in ("broken", "gone"):
        (catalogue.root / "files" / f"{name}.png").write_bytes(picture(77))
    precompute(catalogue, *tiny_encoders, tmp_path / "two", tmp_path / "one", workers=1)
    assert not Features.load(tmp_path / "two").rejected
    assert not catalogue.rejected().num_rows


def test_what_is_no_file_does_not_hang(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    catalogue = make_catalogue(4)
    os.mkfifo(catalogue.root / "files" / "gone.png")
    precompute(catalogue, *tiny_encoders, tmp_path / "out", workers=1)
    assert "not a file" in dict(Features.load(tmp_path / "out").rejected)["x-gone"]


def test_previous_is_copied_and_only_changes_cost(
    tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = make_catalogue(40)
    precompute(catalogue, *tiny_encoders, tmp_path / "one", workers=2)
    old = time.time() - 60
    for file in (catalogue.root / "files").iterdir():
        os.utime(file, (old, old))
    precompute(catalogue, *tiny_encoders, tmp_path / "two", tmp_path / "one", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

    read: list[str] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (read.append(self.name), real(self))[1])
    changed = catalogue.root / "files" / "7.png"
    changed.write_bytes(picture(1007))
    catalogue.upsert("items", pa.table({"id": ["new"], "title": ["winter car"], "image": ["files/7.png"]}), base=catalogue.root)
    stats = precompute(catalogue, *tiny_encoders, tmp_path / "three", tmp_path / "two", workers=2)
    assert (stats.forwarded, stats.texts_forwarded) == (1, 1)
    assert set(read) <= {"7.png", "gone.png"}
    features, before = Features.load(tmp_path / "three"), Features.load(tmp_path / "two")
    assert np.array_equal(features.image[features.row("item0008")], before.image[before.row("item0008")])
    assert not np.array_equal(features.image[features.row("item0007")], before.image[before.row("item0007")])
    assert np.array_equal(features.image[features.row("item0007")], features.image[features.row("new")])
    fresh = precompute(catalogue, *tiny_encoders, tmp_path / "fresh", workers=2)
    assert fresh.reused == 0
    assert np.allclose(Features.load(tmp_path / "fresh").image, features.image, atol=1e-5)


def test_a_just_written_file_is_read_again(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    """Same size, same time of change: the stamp alone would keep a stale vector."""
    catalogue = make_catalogue(5)
    file = catalogue.root / "files" / "2.png"
    size = max(len(picture(2)), len(picture(902)))
    file.write_bytes(picture(2).ljust(size, b"\0"))
    stat = file.stat()
    precompute(catalogue, *tiny_encoders, tmp_path / "one", workers=1)
    file.write_bytes(picture(902).ljust(size, b"\0"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert precompute(catalogue, *tiny_encoders, tmp_path / "two", tmp_path / "one", workers=1).forwarded == 1


def test_another_encoder_reuses_nothing(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    from test_vision import tiny

    catalogue = make_catalogue(10)
    precompute(catalogue, *tiny_encoders, tmp_path / "one", workers=1)
    tiny.dinov3(tmp_path / "dino")
    stats = precompute(catalogue, f"hf:{tmp_path / 'dino'}", tiny_encoders[1], tmp_path / "two", tmp_path / "one", workers=1)
    assert (stats.reused, stats.forwarded, stats.texts_forwarded) == (0, 9, 0)


def test_nothing_to_see(tiny_encoders: Specs, tmp_path: Path) -> None:
    from pinhole.catalogue.store import Catalogue

    (tmp_path / "tables").mkdir()
    assert precompute(Catalogue(tmp_path / "tables"), *tiny_encoders, tmp_path / "out").items == 0
    assert Features.load(tmp_path / "out").image.shape[0] == 0


CHILD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background with Ctrl-C ignored
import sys
from pathlib import Path
from pinhole.catalogue.store import Catalogue
from pinhole.vision.precompute import precompute
tables, see, read, out = sys.argv[1:]
catalogue = Catalogue(tables)
print("go", flush=True)
precompute(catalogue, see, read, Path(out), workers=2)
"""


def child(catalogue: Any, specs: Specs, out: Path, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, str(catalogue.path), *specs, str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert process.stdout is not None
    assert process.stdout.readline() == b"go\n"
    return process


def workers_of(process: subprocess.Popen[bytes]) -> list[Any]:
    import psutil

    return psutil.Process(process.pid).children()


def shards(out: Path, n: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until n shards are there, or the process has ended."""
    while process.poll() is None and len(list((out / "shards").glob("*.npz")) if (out / "shards").exists() else []) < n:
        time.sleep(0.002)


def test_killed_at_any_instant_and_run_again(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    catalogue, undisturbed, out = make_catalogue(300), tmp_path / "undisturbed", tmp_path / "out"
    started = time.time()
    assert child(catalogue, tiny_encoders, undisturbed).wait() == 0
    took, draw, killed = time.time() - started, random.Random(0), 0
    while killed < 5:
        process = child(catalogue, tiny_encoders, out)
        if killed % 2:
            time.sleep(draw.uniform(0, took))
        else:
            shards(out, killed + 1, process)
            time.sleep(draw.uniform(0, 0.05))
        if process.poll() is None:
            killed += 1
            process.kill()
        else:
            assert contents(out) == contents(undisturbed)
            shutil.rmtree(out)
        process.communicate()
    stats = precompute(catalogue, *tiny_encoders, out, workers=2)
    assert stats.images == 300
    assert contents(out) == contents(undisturbed)


def test_ctrl_c_stops_the_workers(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    process = child(make_catalogue(300), tiny_encoders, tmp_path / "out", start_new_session=True)
    shards(tmp_path / "out", 1, process)
    workers = workers_of(process)
    assert workers
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody gets it
    _, err = process.communicate(timeout=90)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in err.splitlines()[-1]
    assert not any(worker.is_running() for worker in workers)


def test_workers_do_not_outlive_a_killed_parent(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    process = child(make_catalogue(300), tiny_encoders, tmp_path / "out")
    shards(tmp_path / "out", 1, process)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    until = time.time() + 90
    while any(worker.is_running() for worker in workers) and time.time() < until:
        time.sleep(0.05)
    assert not any(worker.is_running() for worker in workers)


def test_a_worker_that_dies_is_named(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    catalogue, killed = make_catalogue(300), []
    original = Pool._start

    def watch(pool: Pool) -> Any:
        process = original(pool)
        threading.Timer(0.0, lambda: (process.process.kill(), killed.append(process.process.pid))).start()
        return process

    patch = pytest.MonkeyPatch()
    patch.setattr(Pool, "_start", watch)
    with pytest.raises(PinholeError, match=r"worker \d \(process \d+\) died: killed by SIGKILL") as error:
        precompute(catalogue, *tiny_encoders, tmp_path / "out", workers=1)
    patch.undo()
    assert str(killed[0]) in str(error.value)
    assert "resumes" in error.value.fix
    assert precompute(catalogue, *tiny_encoders, tmp_path / "out", workers=1).images == 300


def test_a_worker_that_crashes_shows_its_last_words(make_catalogue: Callable[..., Any], tiny_encoders: Specs, tmp_path: Path) -> None:
    setup = {"shards": str(tmp_path), "image": tiny_encoders[0], "text": tiny_encoders[1]}
    with pytest.raises(PinholeError, match="left with code 1 while at odd .*KeyError"), Pool(1, setup) as pool:
        pool.run(iter([{"name": "odd", "kind": "text", "keys": ["0"]}]), lambda n: None)


def test_a_full_disk(tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    catalogue = make_catalogue(5)
    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(DiskFull, match="resumes"):
        precompute(catalogue, *tiny_encoders, tmp_path / "out", workers=1)
    monkeypatch.undo()
    assert precompute(catalogue, *tiny_encoders, tmp_path / "out", workers=1).images == 5


def test_a_damaged_shard_is_made_anew(
    tiny_encoders: Specs, make_catalogue: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, out = make_catalogue(5), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            precompute(catalogue, *tiny_encoders, out, workers=1)
    shard = next((out / "shards").glob("image-*.npz"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(PinholeError, match="made anew"):
        precompute(catalogue, *tiny_encoders, out, workers=1)
    assert precompute(catalogue, *tiny_encoders, out, workers=1).images == 5


def test_the_default_pair_end_to_end(make_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    stats = precompute(make_catalogue(12, blobs=True), "pypi:efficientnet-lite0", "pypi:all-minilm-l6-v2", tmp_path / "out", workers=2)
    features = Features.load(tmp_path / "out")
    assert (stats.images, features.image.shape, features.text.shape) == (12, (15, 1280), (15, 384))
    assert np.isfinite(features.image).all()
