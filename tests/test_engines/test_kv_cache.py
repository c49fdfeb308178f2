"""Prefixes are found again, never under another picture, and the budget holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pinhole.engines.kv_cache import KV, Entry, KVCache, common_prefix, sequence, soft_identity
from pinhole.graft.prompt import Prompt, Soft


def ids(*tokens: int) -> Any:
    return np.array(tokens, dtype=np.int64)


def read(entry: Entry, upto: int | None = None, layers: int = 2) -> None:
    """Write what a model would: here each token's own number."""
    new = entry.ids[entry.kv.length : upto]
    part = torch.from_numpy(new.astype(np.float32)).view(1, 1, -1, 1)
    for layer in range(layers):
        keys, values = entry.kv.write(layer, part, part + 0.5)
    entry.kv.advance(len(new))
    assert keys.flatten().tolist() == entry.ids[: entry.kv.length].tolist()
    assert (values - keys).unique().tolist() == [0.5]


def said(cache: KVCache, *tokens: int) -> Entry:
    entry = cache.take(ids(*tokens), len(tokens))
    read(entry)
    cache.give(entry)
    return entry


def test_common_prefix() -> None:
    assert common_prefix(ids(), ids(1)) == 0
    assert common_prefix(ids(1, 2, 3), ids(1, 2, 4)) == 2
    assert common_prefix(ids(1, 2), ids(1, 2, 4)) == 2
    assert common_prefix(ids(5), ids(6)) == 0


def test_a_picture_is_its_key_and_its_vector() -> None:
    a = Soft("space:a", np.arange(4, dtype=np.float32))
    same = Soft("space:a", np.arange(4, dtype=np.float32))
    other_key = Soft("space:b", a.vector)
    other_vector = Soft("space:a", a.vector + 1)
    assert soft_identity(a) == soft_identity(same) < 0
    assert len({soft_identity(soft) for soft in (a, other_key, other_vector)}) == 3

    def prompt(*soft: Soft) -> Prompt:
        return Prompt((1, *[-1 - i for i in range(len(soft))], 2), soft, (False,) * (len(soft) + 2))

    assert common_prefix(sequence(prompt(a, other_key)), sequence(prompt(same, other_vector))) == 2
    assert sequence(prompt(a))[[0, 2]].tolist() == [1, 2]


def test_a_continued_conversation_keeps_its_buffers() -> None:
    cache = KVCache(1 << 20)
    first = said(cache, *range(10))
    again = cache.take(ids(*range(10), 10, 11, 12), 13)
    assert again is first and again.kv.length == 10 and len(cache) == 1
    read(again)


def test_another_conversation_copies_what_it_shares() -> None:
    cache = KVCache(1 << 20)
    first = said(cache, *range(30))
    other = cache.take(ids(*range(5), 99, 98), 7)
    assert other is not first and other.kv.length == 5
    read(other)
    assert first.kv.length == 30
    back = cache.take(ids(*range(30), 77), 31)
    assert back is first and back.kv.length == 30


def test_the_last_token_is_always_read() -> None:
    cache = KVCache(1 << 20)
    said(cache, 1, 2, 3, 4)
    assert cache.take(ids(1, 2, 3, 4), 4).kv.length == 3


def test_a_busy_conversation_lends_what_it_has_read() -> None:
    cache = KVCache(1 << 20)
    busy = cache.take(ids(*range(40)), 40)
    read(busy, upto=20)
    other = cache.take(ids(*range(40)), 40)
    assert other is not busy and other.kv.length == 20


def test_tokens_said_and_not_read_are_not_kept() -> None:
    cache = KVCache(1 << 20)
    entry = cache.take(ids(1, 2, 3), 8)
    read(entry)
    cache.give(entry, [4, 5])  # 4 and 5 were said, neither was read back
    assert entry.ids.tolist() == [1, 2, 3]


def test_what_is_covered_by_a_longer_one_goes() -> None:
    cache = KVCache(1 << 20)
    pinned = cache.take(ids(1, 2), 2)
    read(pinned)
    cache.give(pinned, pin=True)
    said(cache, *range(1, 5), 50, 51, 52, 53, 54, 55, 56, 57, 58, 59)
    said(cache, *range(1, 5))
    assert len(cache) == 3
    said(cache, *range(1, 30))
    assert len(cache) == 3 and pinned.kv.length == 2


def test_the_budget_and_the_order_of_leaving() -> None:
    one = 2 * 2 * 64 * 4  # layers, keys and values, tokens, bytes
    cache = KVCache(3 * one)
    pinned = cache.take(ids(9, 9), 2)
    read(pinned)
    cache.give(pinned, pin=True)
    for i in range(6):
        said(cache, i, i + 1, i + 2)
        assert cache.nbytes <= 3 * one
    assert cache.take(ids(9, 9, 1), 3).kv.length == 2, "pinned stays"
    assert cache.take(ids(0, 1, 2, 3), 4).kv.length == 0, "the oldest has left"
    assert cache.take(ids(5, 6, 7, 8), 4).kv.length == 3, "the latest is there"


def test_buffers_grow_and_keep_what_they_hold() -> None:
    kv = KV(1)
    entry = Entry(ids(*range(1000)), kv)
    read(entry, upto=50)
    assert kv.capacity == 64
    kv.reserve(1000)
    read(entry)
    assert kv.length == 1000


def test_a_failed_step_leaves_no_trace() -> None:
    entry = Entry(ids(1, 2, 3), KV(3))
    read(entry, upto=2)
    entry.kv.write(0, torch.full((1, 1, 1, 1), 99.0), torch.zeros(1, 1, 1, 1))  # and then the step fails
    read(entry)
