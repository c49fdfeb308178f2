"""Which of several servers answers: the one that holds the conversation's beginning, unless it is busy or down.

A conversation's key gives every server a score (rendezvous hashing: Thaler & Ravishankar 1998); it goes to the highest,
so that it comes back to the same keys and values, and when a server leaves only its own conversations move. A server
with too much at work is passed over for the next. One that failed is left alone for a while, longer each time, and
looked at again before it gets a conversation. Knows nothing of HTTP or of what is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pinhole.errors import EngineDown, PinholeError

log = logging.getLogger(__name__)
S = TypeVar("S")
LONGEST_PAUSE = 60.0


@dataclass(eq=False)
class Replica(Generic[S]):
    """One server and how it stands with it: ``busy`` answers at work, not to be asked before ``until``, failed ``failures`` times in turn."""

    name: str
    server: S
    busy: int = 0
    failures: int = 0
    until: float = 0.0
    trouble: PinholeError | None = field(default=None, repr=False)

    @property
    def down(self) -> bool:
        return self.failures > 0


class Replicas(Generic[S]):
    """``most`` answers at work make a server busy; ``check`` raises :class:`EngineDown` where a server is not (or no more) what it must be."""

    def __init__(
        self,
        servers: Sequence[tuple[str, S]],
        check: Callable[[S], None],
        *,
        most: int,
        pause: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.all = [Replica(name, server) for name, server in servers]
        self._check, self._most, self._pause, self._clock = check, most, pause, clock
        self._lock = threading.Lock()

    def open(self) -> None:
        """Check every server. Raises what is wrong with one that answers, and where none answers; one that is down among others is tried later."""
        for replica in self.all:
            try:
                self._check(replica.server)
            except EngineDown as error:
                self.failed(replica, error)
        if all(replica.down for replica in self.all):
            raise self._none()

    def order(self, key: str) -> list[Replica[S]]:
        """All of them, the conversation's own first."""
        return sorted(self.all, key=lambda replica: _score(replica.name, key), reverse=True)

    @contextlib.contextmanager
    def lease(self, key: str, avoid: Collection[Replica[S]] = ()) -> Iterator[Replica[S]]:
        """The server for a conversation, counted as at work meanwhile. Raises :class:`EngineDown` where none is left."""
        replica = self._take(key, set(avoid))
        try:
            yield replica
        finally:
            with self._lock:
                replica.busy -= 1

    def _take(self, key: str, avoid: set[Replica[S]]) -> Replica[S]:
        while True:
            with self._lock:
                replica, due = self._choose([one for one in self.order(key) if one not in avoid])
                replica.busy += 1
            for other in due:  # while others can answer, nobody waits for one that may not
                threading.Thread(target=self._look, args=(other,), name="pinhole-replica", daemon=True).start()
            if not replica.down or self._look(replica):
                return replica
            avoid.add(replica)
            with self._lock:
                replica.busy -= 1

    def _choose(self, order: Sequence[Replica[S]]) -> tuple[Replica[S], list[Replica[S]]]:
        """The server to ask, and those to look at again meanwhile."""
        now = self._clock()
        due = [replica for replica in order if replica.down and replica.until <= now]
        able = [replica for replica in order if not replica.down] or due[:1]
        if not able:
            raise self._none()
        for replica in due:
            replica.until = now + LONGEST_PAUSE  # one look at a time
        free = [replica for replica in able if replica.busy < self._most]
        chosen = free[0] if free else min(able, key=lambda replica: replica.busy)
        return chosen, [replica for replica in due if replica is not chosen]

    def _look(self, replica: Replica[S]) -> bool:
        """Whether a server that failed is what it must be again."""
        try:
            self._check(replica.server)
        except Exception as error:
            self.failed(replica, error if isinstance(error, PinholeError) else EngineDown(str(error), where=replica.name))
            return False
        with self._lock:
            replica.failures, replica.trouble = 0, None
        log.info("%s is back", replica.name)
        return True

    def _none(self) -> PinholeError:
        troubles = [replica.trouble for replica in self.all if replica.trouble is not None]
        if len(self.all) == 1 and troubles:
            return troubles[0]
        said = f"the last one: {troubles[-1].what}" if troubles else "look whether they run"
        return EngineDown("no server of the engine answers", where=", ".join(replica.name for replica in self.all), fix=said)

    def failed(self, replica: Replica[S], error: PinholeError) -> None:
        """Leave it alone for a while."""
        with self._lock:
            replica.failures += 1
            replica.trouble = error
            replica.until = self._clock() + min(LONGEST_PAUSE, self._pause * 2 ** (replica.failures - 1))
        log.warning("%s is left alone: %s", replica.name, error)


def _score(name: str, key: str) -> bytes:
    return hashlib.blake2b(f"{name}\n{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
