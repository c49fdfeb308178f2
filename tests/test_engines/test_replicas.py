"""A conversation comes back to its server; busy and broken ones are passed over, and broken ones come back when they are well."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from pinhole.engines.replicas import Replicas
from pinhole.errors import EngineDown, UsageError


class Fleet:
    """Servers that are numbers; ``ill`` are down, ``wrong`` are others than were meant."""

    def __init__(self, n: int, most: int = 4) -> None:
        self.now, self.ill, self.wrong, self.looks = 100.0, set[int](), set[int](), Counter[int]()
        self.replicas = Replicas([(f"http://{i}", i) for i in range(n)], self.check, most=most, pause=1.0, clock=lambda: self.now)

    def check(self, server: int) -> None:
        self.looks[server] += 1
        if server in self.ill:
            raise EngineDown("ill", where=str(server))
        if server in self.wrong:
            raise UsageError("wrong", where=str(server))

    def where(self, key: str) -> int:
        with self.replicas.lease(key) as replica:
            return replica.server

    def fail(self, server: int) -> None:
        self.ill.add(server)
        self.replicas.failed(self.replicas.all[server], EngineDown("ill", where=str(server)))


def eventually(true: object) -> None:
    end = time.monotonic() + 5
    while not true() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.005)
    assert true()  # type: ignore[operator]


KEYS = [f"conversation {i}" for i in range(400)]


def test_a_conversation_has_one_server_and_all_have_their_share() -> None:
    fleet = Fleet(4)
    places = [fleet.where(key) for key in KEYS]
    assert places == [fleet.where(key) for key in KEYS]
    assert all(60 <= count <= 140 for count in Counter(places).values())


def test_when_a_server_goes_only_its_own_conversations_move() -> None:
    four, fleet = Fleet(4), Fleet(4)
    fleet.fail(2)
    before, after = [four.where(key) for key in KEYS], [fleet.where(key) for key in KEYS]
    assert 2 not in after and len(set(after)) == 3
    assert all(a == b for a, b in zip(before, after, strict=True) if a != 2)
    assert len({b for a, b in zip(before, after, strict=True) if a == 2}) == 3, "its conversations are spread over the others"


def test_a_busy_server_is_passed_over() -> None:
    fleet = Fleet(2, most=2)
    leases = [fleet.replicas.lease("k") for _ in range(6)]
    servers = [lease.__enter__().server for lease in leases]
    home = servers[0]
    assert servers == [home, home, 1 - home, 1 - home, home, 1 - home], "and when all are busy, the least busy takes it"
    for lease in leases:
        lease.__exit__(None, None, None)
    assert [replica.busy for replica in fleet.replicas.all] == [0, 0]
    assert fleet.where("k") == home


def test_a_server_that_failed_is_looked_at_before_it_is_asked() -> None:
    fleet = Fleet(2)
    key = next(key for key in KEYS if fleet.where(key) == 0)
    fleet.fail(0)
    assert fleet.where(key) == 1 and fleet.looks[0] == 0
    fleet.now += 1.1
    assert fleet.where(key) == 1, "whoever asks does not wait for it"
    eventually(lambda: fleet.replicas.all[0].failures == 2)
    fleet.now += 1.1
    assert fleet.where(key) == 1 and fleet.looks[0] == 1, "the pause doubles"
    fleet.ill.clear()
    fleet.now += 1.0
    fleet.where(key)
    eventually(lambda: not fleet.replicas.all[0].down)
    assert fleet.where(key) == 0


def test_a_server_that_came_back_as_another_gets_nothing() -> None:
    fleet = Fleet(2)
    fleet.fail(0)
    fleet.ill.clear()
    fleet.wrong.add(0)
    fleet.now += 2
    assert {fleet.where(key) for key in KEYS} == {1}
    eventually(lambda: fleet.replicas.all[0].failures == 2)
    assert isinstance(fleet.replicas.all[0].trouble, UsageError)


def test_the_only_server_is_looked_at_by_whoever_asks() -> None:
    fleet = Fleet(1)
    fleet.fail(0)
    with pytest.raises(EngineDown, match="ill"):
        fleet.where("k")
    assert fleet.looks[0] == 0, "not before its pause is over"
    fleet.now += 1.1
    with pytest.raises(EngineDown, match="ill"):
        fleet.where("k")
    assert fleet.looks[0] == 1
    fleet.ill.clear()
    fleet.now += 2.1
    assert fleet.where("k") == 0


def test_none_left() -> None:
    fleet = Fleet(3)
    for server in range(3):
        fleet.fail(server)
    with pytest.raises(EngineDown, match=r"no server of the engine answers \(http://0, http://1, http://2\). the last one: ill"):
        fleet.where("k")
    with pytest.raises(EngineDown), Fleet(2).replicas.lease("k", Fleet(2).replicas.all) as _:
        other = Fleet(2)
        with other.replicas.lease("k", other.replicas.all):
            pass


def test_opening() -> None:
    fleet = Fleet(3)
    fleet.ill.add(1)
    fleet.replicas.open()
    assert [replica.down for replica in fleet.replicas.all] == [False, True, False]
    fleet.wrong.add(2)
    with pytest.raises(UsageError, match="wrong"):
        fleet.replicas.open()
    fleet.ill.update((0, 1, 2))
    with pytest.raises(EngineDown):
        fleet.replicas.open()


def test_many_at_once_are_counted_right() -> None:
    fleet = Fleet(3, most=2)

    def go(i: int) -> None:
        for k in range(200):
            with fleet.replicas.lease(f"{i} {k}"):
                pass

    threads = [threading.Thread(target=go, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [replica.busy for replica in fleet.replicas.all] == [0, 0, 0]
