"""The claim: a training step spends at least 90% of its time on the forward and backward pass of its tokens.

Lessons of the workspace, drawn and stepped as the graft stage does, against the bare forward and
backward pass of the same model on the same rows; beside it the same pass through the stock modules
of transformers and peft, and what packing saves. Nothing is written.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from pinhole.workspace import Workspace

NEEDS_WORKSPACE = True
Progress = Callable[[int, int], None]


def run(workspace: Workspace, progress: Progress | None = None, steps: int = 12) -> dict[str, float]:
    """``train.fraction`` is bare ÷ whole, ``train.over_stock`` stock ÷ bare, ``train.packing`` tokens unpacked ÷ packed."""
    from pinhole.graft.fast import fast_rows
    from pinhole.graft.train import fill_rows, new_graft, seeing_lessons, warm_start
    from pinhole.graft.tuning import Trainer

    config, world = workspace.config.graft, _world(workspace)
    graft = new_graft(world, config)
    warm_start(graft, world)
    trainer = Trainer(graft, config, config.seed)
    whole = bare = stock = 0.0
    tokens = plain = 0
    for step in range(-1, steps):  # the first is a warm-up
        began = time.perf_counter()
        with fast_rows(graft.lm):
            rows = fill_rows(seeing_lessons(world, random.Random(step), 1.0), graft.prompter, config)
            trainer.step(rows, 0.5)
            stepped = time.perf_counter()
            _passes(trainer, rows)
            passed = time.perf_counter()
        _passes(trainer, rows)
        if step >= 0:
            whole, bare, stock = whole + stepped - began, bare + passed - stepped, stock + time.perf_counter() - passed
            tokens, plain = tokens + sum(len(row.tokens) for row in rows), plain + sum(row.plain_tokens for row in rows)
        if progress:
            progress(step + 1, steps)
    return {
        "train.fraction": bare / whole,
        "train.over_stock": stock / bare,
        "train.packing": plain / tokens,
        "train.tokens_per_s": tokens / whole,
        "train.steps": float(steps),
    }


def _passes(trainer: Any, rows: Any) -> None:
    """Forward and backward, and nothing else."""
    import torch

    from pinhole.graft.scoring import answer_logits

    logits, wanted = answer_logits(trainer.graft, rows)
    torch.autograd.grad(torch.nn.functional.cross_entropy(logits, wanted), trainer.trained)


def _world(workspace: Workspace) -> Any:
    from pinhole.catalogue.split import Split
    from pinhole.catalogue.store import Catalogue
    from pinhole.graft.world import build_world
    from pinhole.vision.align import Space
    from pinhole.vision.features import Features

    space, features, settings = Space.load(workspace.need("align").path), Features.load(workspace.need("embed").path), workspace.config.catalogue
    return build_world(Catalogue(workspace.tables), features, space, Split(settings), settings.category)
