"""The claim: each signal and each part of the objective is there because held-out queries and boards are found better with it.

The workspace's training part is learned from again with one thing left out or put in, fusion weights and all, and the search exams are taken again:
the same held-out questions for every way, pooled over splits. Tables and artefacts are only read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.errors import UsageError
from pinhole.workspace import Workspace

if TYPE_CHECKING:
    from pinhole.evaluation.search_exams import Results

NEEDS_WORKSPACE = True
SPLITS = 2
SIZES = {"quick": 1, "long": 5}
WAYS: dict[str, dict[str, Any]] = {
    "as_it_is": {},
    "no_title": {"weight_title": 0.0},
    "no_board": {"weight_board": 0.0},
    "no_walk": {"weight_walk": 0.0},
    "no_query": {"weight_query": 0.0},
    "popularity": {"popularity": 0.5},
    "hard": {"hard": 128},
    "sigmoid": {"loss": "sigmoid"},
    "twice": {"steps": 2},
}
"""What is another in ``[align]``; ``steps`` is a factor."""
EXAMS = ("query", "board", "placed", "new")
Progress = Callable[[int, int], None]


def run(workspace: Workspace, progress: Progress | None = None, splits: int = SPLITS, ways: Mapping[str, dict[str, Any]] = WAYS) -> dict[str, float]:
    """``signals.WAY.EXAM`` recall@10 as served, ``.learned`` the learned column alone, ``.over`` ÷ the way as it is with a paired interval by
    query or board; exams: ``query`` (words find pictures), ``board`` (new boards), ``placed`` and ``new`` (what goes with an item)."""
    from pinhole.catalogue.store import Catalogue
    from pinhole.evaluation.search_exams import Results, Room, again, check_splits
    from pinhole.vision.align import Asked
    from pinhole.vision.features import Features
    from pinhole.vision.signals import read_signals, read_titles

    catalogue, features, config = Catalogue(workspace.tables), Features.load(workspace.need("embed").path), workspace.config
    check_splits(features, splits)
    asked = Asked.load(workspace.need("align").path).completed(catalogue.queries()["text"].to_pylist(), features.text_encoder.spec)
    signals, titles = read_signals(catalogue, features, config.graph), read_titles(catalogue, features.ids)
    results = {way: {exam: Results() for exam in EXAMS} for way in ways}
    for number in range(splits):
        drawn = config.model_copy(update={"catalogue": config.catalogue.model_copy(update={"split": config.catalogue.split + number})})
        part, held = signals.part(drawn.catalogue)
        for place, (way, changes) in enumerate(ways.items()):
            steps = config.align.steps * int(changes.get("steps", 1))
            settings = drawn.model_copy(update={"align": drawn.align.model_copy(update={**changes, "steps": steps})})
            space, weights = again(features, part, asked, titles, settings)
            room = Room(features, space, weights, part, held, asked, titles)
            found = results[way]
            room.seen(found["query"])
            room.like(found["board"], settings)
            room.mates(found, signals, settings)
            if progress:
                progress(number * len(ways) + place + 1, splits * len(ways))
    if not results[next(iter(ways))]["query"].cluster:
        raise UsageError("no held-out query leads to a held-out item", where=str(workspace.root), fix="ingest more queries and items")
    return {"signals.splits": float(splits)} | _figures(results, config.evaluate.seed)


def _figures(results: Mapping[str, Mapping[str, Results]], seed: int) -> dict[str, float]:
    from pinhole.evaluation.intervals import resampled

    base = next(iter(results.values()))
    found: dict[str, float] = {}
    for way, exams in results.items():
        for exam, measured in exams.items():
            if not measured.cluster:
                continue
            key, ours, theirs = f"signals.{way}.{exam}", np.array(measured.recalls["tuned"]), np.array(base[exam].recalls["tuned"])
            found |= {key: float(ours.mean()), f"{key}.n": float(len(ours)), f"{key}.learned": float(np.mean(measured.recalls["learned"]))}
            if measured is not base[exam]:
                drawn = resampled(np.stack([ours, theirs]), measured.cluster, seed)
                low, high = np.quantile(drawn[0] / np.maximum(drawn[1], 1e-9), (0.025, 0.975))
                found |= {
                    f"{key}.over": float(ours.mean() / max(theirs.mean(), 1e-9)),
                    f"{key}.over.low": float(low),
                    f"{key}.over.high": float(high),
                }
    return found


def table(figures: Mapping[str, float], workspace: Workspace) -> list[str]:
    """A line for each way."""
    ways = dict.fromkeys(key.split(".")[1] for key in figures if key.count(".") >= 2)
    lines = [f"recall@10 as served, {figures['signals.splits']:.0f} splits; in brackets ÷ the first line, with a 95% interval"]
    for way in ways:
        parts = []
        for exam in EXAMS:
            key = f"signals.{way}.{exam}"
            if f"{key}.over" in figures:
                over, low, high = (figures[f"{key}.over{end}"] for end in ("", ".low", ".high"))
                parts.append(f"{exam} {figures[key]:.3f} ({over:.3f}, {low:.3f} – {high:.3f})")
            elif key in figures:
                parts.append(f"{exam} {figures[key]:.3f} (n {figures[f'{key}.n']:.0f})")
        lines.append(f"{way:<12}" + "  ".join(parts))
    return lines
