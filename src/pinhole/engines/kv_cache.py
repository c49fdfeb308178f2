"""Keys and values of past sequences, found again by their longest common prefix.

A sequence is what the model read: token ids, and for each soft token a number made from its key *and
its vector's bytes*. So what was computed from one picture can never stand for another, even if somebody
re-uses a key. The store belongs to one thread (the engine's worker) and takes no locks. Knows nothing
of models beyond the shape of what they write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from pinhole.graft.prompt import Prompt, Soft

STEP = 64  # buffers grow by whole steps
TAIL = 8  # a sequence that would lose no more than this is continued in place, not copied


def soft_identity(soft: Soft) -> int:
    """A negative number that stands for a picture in a sequence (keyed 64-bit hash, one sign bit of it)."""
    cells = b"" if soft.cells is None else soft.cells.tobytes()
    return hash((soft.key, soft.vector.dtype.str, soft.vector.tobytes(), cells)) | -(1 << 63)


def sequence(prompt: Prompt) -> np.ndarray:
    """A prompt as the cache sees it: int64 (tokens,), pictures by content."""
    identities = [soft_identity(soft) for soft in prompt.soft]
    return np.array([token if token >= 0 else identities[-1 - token] for token in prompt.tokens], dtype=np.int64)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    first = int(differ.argmax()) if n else 0
    return first if n and differ[first] else n


class KV:
    """Keys and values of one sequence, layer by layer, in buffers with room to grow."""

    def __init__(self, capacity: int) -> None:
        self.length = 0
        self.capacity = -(-capacity // STEP) * STEP
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # each (1, kv heads, capacity, head dim)

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self._layers.values())

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put (1, kv heads, n, head dim) after what is there; returns all of it, (1, kv heads, length + n, head dim).

        The length moves with :meth:`advance`, once every layer has written, so a failed step leaves no trace.
        """
        end = self.length + key.shape[2]
        if layer not in self._layers:
            self._layers[layer] = self._buffers(key, value)
        keys, values = self._layers[layer]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def _buffers(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        shapes = [(*part.shape[:2], self.capacity, part.shape[3]) for part in (key, value)]
        return key.new_empty(shapes[0]), value.new_empty(shapes[1])

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def cut(self, length: int) -> None:
        self.length = min(self.length, length)

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens."""
        if capacity > self.capacity:
            grown = self.copy(self.length, max(capacity, self.capacity * 5 // 4))
            self.capacity, self._layers = grown.capacity, grown._layers

    def copy(self, length: int, capacity: int) -> KV:
        """The first ``length`` tokens in buffers of their own."""
        other = KV(max(capacity, length))
        for layer, (keys, values) in self._layers.items():
            other._layers[layer] = other._buffers(keys, values)
            other._layers[layer][0][:, :, :length] = keys[:, :, :length]
            other._layers[layer][1][:, :, :length] = values[:, :, :length]
        other.length = length
        return other


@dataclass(eq=False)
class Entry:
    """A sequence and its keys and values. ``ids`` may be longer than what has been computed so far."""

    ids: np.ndarray
    kv: KV
    busy: bool = True
    pinned: bool = False
    used: int = field(default=0)

    @property
    def known(self) -> np.ndarray:
        return self.ids[: self.kv.length]


class KVCache:
    """Sequences by recency, within a budget of bytes; busy and pinned ones stay."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: list[Entry] = []
        self._clock = 0

    @property
    def nbytes(self) -> int:
        return sum(entry.kv.nbytes for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, ids: np.ndarray, capacity: int) -> Entry:
        """An entry for this sequence, with as much of it as any cached one has (never its last token)."""
        best, shared = None, 0
        for entry in self._entries:
            n = common_prefix(entry.known, ids[:-1])
            if n > shared or n == shared > 0 and best is not None and best.busy and not entry.busy:
                best, shared = entry, n
        self._clock += 1
        if best is None:
            entry = Entry(ids, KV(capacity))
            self._entries.append(entry)
        elif not best.busy and not best.pinned and best.kv.length - shared <= TAIL:
            best.kv.cut(shared)
            best.kv.reserve(capacity)
            best.ids, best.busy, entry = ids, True, best
        else:
            best.used = self._clock
            entry = Entry(ids, best.kv.copy(shared, capacity))
            self._entries.append(entry)
        entry.used = self._clock
        self._evict()
        return entry

    def give(self, entry: Entry, generated: Sequence[int] = (), *, pin: bool = False) -> None:
        """Hand an entry back, with the tokens that were generated after its prompt."""
        entry.ids = np.concatenate([entry.ids, np.array(generated, dtype=np.int64)])[: entry.kv.length]
        entry.busy, entry.pinned = False, entry.pinned or pin
        for other in [other for other in self._entries if other is not entry and not other.busy]:
            covered = len(other.ids) <= len(entry.ids) and common_prefix(other.ids, entry.ids) == len(other.ids)
            if covered and (not other.pinned or entry.pinned and len(other.ids) == len(entry.ids)):
                self._entries.remove(other)  # all of it is the beginning of the new one
        self._evict()

    def drop(self, entry: Entry) -> None:
        """Forget an entry whose keys and values cannot be trusted."""
        if entry in self._entries:
            self._entries.remove(entry)

    def _evict(self) -> None:
        over = self.nbytes - self.budget
        if over <= 0:
            return
        for entry in sorted((entry for entry in self._entries if not entry.busy and not entry.pinned), key=lambda entry: entry.used):
            self._entries.remove(entry)
            over -= entry.kv.nbytes
            if over <= 0:
                return
