"""Work in pieces on a Ray cluster: ``--on ray[:ADDRESS]`` is taken apart here, and here only is Ray known.

A piece is one JSON-able job, done by a function that was made once on each worker and keeps its state there (an encoder, a teacher).
Ray Data hands the pieces out, starts workers anew and does again what a dead node had not answered: a piece may be done twice, so it must
write what it writes by one rename. Knows nothing of what a job holds. Workers run Pinhole as it is installed on their
node, and see files by the paths that this process sees them by; both are checked before a node does anything.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pinhole
from pinhole import errors
from pinhole.errors import EngineDown, MissingDependency, PinholeError, UnknownName, UsageError

Do = Callable[[dict[str, Any]], Any]
"""One job in, a JSON-able answer out."""
Make = Callable[[dict[str, Any]], Do]
"""A function of a module of Pinhole's, called once a worker with the setup."""
REACH_SECONDS = 5.0
INSTALL = 'pip install "pinhole-vlm[ray]"'


def address(on: str) -> str:
    """ADDRESS of ``ray:ADDRESS``; "" for ``ray`` alone: RAY_ADDRESS, a cluster that runs on this machine, or one that is started here.

    Raises :class:`UnknownName`, :class:`UsageError` and, without Ray, :class:`MissingDependency`: nothing is connected yet.
    """
    scheme, colon, rest = on.partition(":")
    if scheme != "ray":
        raise UnknownName(f"nothing to build on is called `{on}`", where="--on", fix="ray (this machine, or RAY_ADDRESS), or ray:HOST:PORT")
    host, _, port = rest.rpartition(":")
    if colon and not (host and port.isdecimal() and int(port) < 65536) and rest != "auto":
        raise UsageError(f"`{rest}` is no address of a cluster", where="--on", fix="HOST:PORT, as `ray start --head` prints it; or auto")
    if importlib.util.find_spec("ray") is None:
        raise MissingDependency("Ray is not installed", where="--on", fix=INSTALL)
    return rest


def each(on: str, make: Make, setup: dict[str, Any], jobs: Iterable[dict[str, Any]], folder: Path, workers: int = 0) -> Iterator[Any]:
    """Answers to ``jobs`` as they come, in no order. ``folder`` is one that every worker must see; ``workers`` 0 is one a core of the cluster.

    Raises what a worker raised, and :class:`EngineDown` where there is no cluster at the address.
    """
    lines = [json.dumps(job) for job in jobs]
    if not lines:
        return
    ray = _connected(address(on))
    mark = _marked(folder)
    try:
        yield from _answers(ray, (make, setup, str(mark), _versions()), lines, workers)
    finally:
        mark.unlink(missing_ok=True)
        ray.shutdown()


def _marked(folder: Path) -> Path:
    """A new file, by which a worker knows that it sees this very folder."""
    mark = Path(os.path.abspath(folder)) / f".seen-{uuid.uuid4().hex}"  # workers have folders of their own
    mark.touch()
    return mark


def _connected(where: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is an exception; its log would go to stderr, in its own words
    import ray

    fix = "see that `ray status` answers there, and that this machine may reach it"
    if where and where != "auto":
        host, _, port = where.rpartition(":")
        try:
            socket.create_connection((host.removeprefix("ray://"), int(port)), REACH_SECONDS).close()
        except OSError as error:
            raise EngineDown(f"no cluster can be reached: {error.strerror or error}", where=where, fix=fix) from None
    try:
        ray.init(address=where or None, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except (RuntimeError, ConnectionError, OSError, ValueError) as error:
        if "ersion mismatch" in str(error):
            first = " ".join(str(error).split())
            raise EngineDown(first, where=where, fix="install the same Python and Ray on this machine and on the cluster") from None
        raise EngineDown(f"no cluster can be used: {' '.join(str(error).split())[:300]}", where=where or "--on ray", fix=fix) from None
    return ray


def _answers(ray: Any, made: tuple[Make, dict[str, Any], str, str], lines: list[str], workers: int) -> Iterator[Any]:
    import ray.data as data

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    most = min(workers or max(1, int(ray.cluster_resources().get("CPU", 1))), len(lines))
    pool = data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most)
    pieces = data.from_items([{"job": line} for line in lines], override_num_blocks=len(lines))
    done = pieces.map_batches(Doer, batch_size=1, compute=pool, num_cpus=1, fn_constructor_args=made)
    try:
        for row in done.iter_rows():
            answer = json.loads(row["answer"])
            if "error" in answer:
                kind, what, where, fix = answer["error"]
                raise getattr(errors, kind, PinholeError)(what, where=where, fix=fix)
            yield answer["done"]
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [""])[-1][:300]
        if "No module named 'pinhole" in str(error):
            raise PinholeError("a node of the cluster has no Pinhole", where=last, fix=f"there, with {_versions()}: {INSTALL}") from None
        raise PinholeError(f"the cluster gave up: {last}", fix="run the same command again: it resumes") from None


class Doer:
    """One worker of the cluster. What is wrong is an answer: raised here, Ray would bury it in a trace of its own."""

    def __init__(self, make: Make, setup: dict[str, Any], mark: str, versions: str) -> None:
        self.make, self.setup, self.mark, self.versions = make, setup, mark, versions
        self.do: Do | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"answer": [json.dumps(self._answer(line)) for line in batch["job"]]}

    def _answer(self, line: str) -> dict[str, Any]:
        try:
            if self.do is None:
                self._check()
                self.do = self.make(self.setup)
            return {"done": self.do(json.loads(line))}
        except PinholeError as error:
            where = ", ".join(part for part in (error.where, f"node {socket.gethostname()}") if part)
            return {"error": [type(error).__name__, error.what, where, error.fix]}

    def _check(self) -> None:
        if _versions() != self.versions:
            raise PinholeError(f"a node runs {_versions()}, this machine {self.versions}", fix="install the same on every node")
        if not Path(self.mark).exists():
            fix = "put the workspace on a file system that every node mounts at the same path"
            raise PinholeError("a node does not see the workspace", where=str(Path(self.mark).parent), fix=fix)


def _versions() -> str:
    return f"pinhole {pinhole.__version__} on Python {platform.python_version()}"
