"""A teacher of ranking at work on a Ray cluster: pairs go out in pieces, scores come back in the order of the pairs.

A pair's score does not depend on its company (see :class:`~pinhole.retrieval.teacher.CrossEncoder`), so what comes back is what this machine
would have said, on processors that compute alike. Knows nothing of Ray (``pinhole.cluster``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from pinhole import cluster
from pinhole.errors import SpaceMismatch
from pinhole.retrieval.asked import AskedTeacher
from pinhole.retrieval.teacher import CrossEncoder, Pair, Progress, Teacher, packaged_cross_encoder

PIECE = 64  # pairs of a job
AT_A_TIME = 16_384  # pairs between two writes into the cache: each time the cluster is joined anew


class ClusterTeacher:
    """``setup`` says how a worker makes the teacher: ``{}`` is the packaged cross-encoder, ``model`` and ``tokenizer`` one of files that every node
    sees, ``url``, ``name`` and ``at_once`` a server."""

    at_a_time = AT_A_TIME

    def __init__(self, teacher: Teacher, on: str, setup: dict[str, Any], folder: Path, workers: int = 0) -> None:
        """``teacher`` is the same here: its identity and its curve. ``folder`` is one that every node sees."""
        self.teacher, self.on, self.folder, self.workers = teacher, on, folder, workers
        self.identity, self.sees, self.grades = teacher.identity, teacher.sees, teacher.grades
        self.setup = {**setup, "identity": teacher.identity}

    def score(self, pairs: Sequence[Pair], progress: Progress) -> np.ndarray:
        """Raises what a worker raises."""
        out, done = np.full(len(pairs), np.nan), 0
        jobs = ({"at": at, "pairs": [astuple(pair) for pair in pairs[at : at + PIECE]]} for at in range(0, len(pairs), PIECE))
        for answer in cluster.each(self.on, scoring, self.setup, jobs, self.folder, self.workers):
            scores = np.array(answer["scores"], dtype=np.float64)  # null is NaN
            out[answer["at"] : answer["at"] + len(scores)] = scores
            done += len(scores)
            progress(min(done, len(pairs)), len(pairs))
        return out


def scoring(setup: dict[str, Any]) -> cluster.Do:
    """What a worker of the cluster does: one piece's scores."""
    teacher = _made(setup)
    if teacher.identity != setup["identity"]:
        what = f"the teacher {teacher.identity} on a node met {setup['identity']} here"
        raise SpaceMismatch(what, where="--on", fix="install the same Pinhole and put the same files on every node")

    def do(job: dict[str, Any]) -> dict[str, Any]:
        scores = teacher.score([Pair(*pair) for pair in job["pairs"]], lambda done, total: None)
        return {"at": job["at"], "scores": [float(score) if np.isfinite(score) else None for score in scores]}

    return do


def _made(setup: dict[str, Any]) -> Teacher:
    if "url" in setup:
        return AskedTeacher(setup["url"], setup["name"], setup["at_once"])
    if "model" in setup:
        return CrossEncoder(Path(setup["model"]), Path(setup["tokenizer"]), setup["identity"])
    return packaged_cross_encoder()
