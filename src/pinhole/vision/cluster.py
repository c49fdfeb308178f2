"""The encoding pool's place taken by a Ray cluster: the same jobs, the same worker, the same shard files.

A shard that is there is not made again, so a node that dies costs the shards it was at. Knows nothing of Ray (``pinhole.cluster``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from pinhole import cluster
from pinhole.errors import PinholeError, SpaceMismatch
from pinhole.vision.worker import CHANGED, Worker


class ClusterPool:
    """As :class:`pinhole.vision.pool.Pool`: ``with ClusterPool(on, count, setup) as pool: pool.run(jobs, done)``."""

    def __init__(self, on: str, count: int, setup: dict[str, Any]) -> None:
        """``count`` 0 is one worker a core of the cluster."""
        self.on, self.count, self.setup = on, count, setup

    def __enter__(self) -> ClusterPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def run(self, jobs: Iterator[dict[str, Any]], done: Callable[[int], None]) -> None:
        """Do all jobs. ``done(n)`` is called as shards are finished. Raises what a worker raised."""
        for n in cluster.each(self.on, encoding, self.setup, jobs, Path(self.setup["shards"]), self.count):
            done(n)


def encoding(setup: dict[str, Any]) -> cluster.Do:
    """What a worker of the cluster does: one shard, whose number of pictures or texts is the answer."""
    worker = Worker(setup, lambda answer: None)
    checked: set[str] = set()

    def do(job: dict[str, Any]) -> int:
        kind = job["kind"]
        if kind not in checked:
            here, there = (worker.see if kind == "image" else worker.read).identity, setup["identities"][kind]
            if here != there:
                raise SpaceMismatch(f"{kind} encoder {here} on a node met {there} here", where=setup[kind], fix="put the same files on every node")
            checked.add(kind)
        if not (worker.folder / job["name"]).exists():
            try:
                worker.do(job)
            except PinholeError as error:
                if error.what != CHANGED:
                    raise
                fix = "run the same command again: it resumes. Every node must see the picture at the same path"
                raise PinholeError("the picture changed while it was read, or is not there", where=error.where, fix=fix) from None
        return len(job["keys"])

    return do
