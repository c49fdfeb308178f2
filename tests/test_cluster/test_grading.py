"""A teacher at work on two nodes, one of them killed midway, says what it says alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinhole.errors import SpaceMismatch
from pinhole.retrieval import cluster_teacher
from pinhole.retrieval.cluster_teacher import PIECE, ClusterTeacher, scoring
from pinhole.retrieval.teacher import CrossEncoder, Pair, scored
from test_retrieval.test_ranker import tiny_cross_encoder
from toy_cluster import slow_scoring


def silent(done: int, total: int) -> None:
    pass


def pairs(n: int) -> list[Pair]:
    words = ("a", "red", "boat", "hat")
    return [Pair(words[k % 4], k, f"{words[k // 4 % 4]} {words[k // 16 % 4]}", f"look{k}") for k in range(n)]


def test_graded_on_two_nodes_as_on_this_machine(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny_cross_encoder(tmp_path)
    alone, asked = CrossEncoder(model, tokenizer, "tiny"), pairs(20 * PIECE + 7)
    second = nodes.add_node(num_cpus=1, object_store_memory=100_000_000)
    monkeypatch.setattr(cluster_teacher, "scoring", slow_scoring)
    raylet, killed = second.all_processes["raylet"][0].process.pid, threading.Event()

    def kill() -> None:
        while not list(tmp_path.glob(f"at-{raylet}-*")):
            time.sleep(0.02)
        nodes.remove_node(second, allow_graceful=False)  # SIGKILL
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    setup = {"model": str(model), "tokenizer": str(tokenizer), "notes": str(tmp_path)}
    teacher = ClusterTeacher(alone, f"ray:{nodes.address}", setup, tmp_path)
    counted: list[int] = []
    found = teacher.score(asked, lambda done, total: counted.append(done))
    assert killed.is_set(), "the second node was never at work: the test shows nothing"
    np.testing.assert_array_equal(found, alone.score(asked, silent))
    assert counted[-1] >= len(asked) and teacher.grades(found)[0] == alone.grades(found)[0]


def test_what_is_kept_is_not_asked_again(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny_cross_encoder(tmp_path)
    teacher = ClusterTeacher(
        CrossEncoder(model, tokenizer, "tiny"), f"ray:{nodes.address}", {"model": str(model), "tokenizer": str(tokenizer)}, tmp_path
    )
    first = scored(teacher, pairs(40), silent)
    monkeypatch.setattr(teacher, "on", "ray:127.0.0.1:9")  # nobody is there
    np.testing.assert_array_equal(scored(teacher, pairs(40), silent), first)


def test_another_teacher_on_a_node_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatch, match="on a node met another here"):
        scoring({"url": "http://127.0.0.1:9/v1", "name": "m", "at_once": 1, "identity": "another"})
