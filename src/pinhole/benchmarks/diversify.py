"""The claim: results can be made more different from each other at little cost in relevance, and one number says how much of either.

Held-out queries over held-out items, as in the search exam with titles; the first 200 of each are arranged at several strengths. Tables and
artefacts are only read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pinhole.errors import UsageError
from pinhole.workspace import Workspace, read_json

NEEDS_WORKSPACE = True
STRENGTHS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
K = 10
Progress = Callable[[int, int], None]


def run(workspace: Workspace, progress: Progress | None = None, most: int = 1000) -> dict[str, float]:
    """For each strength in per cent ``diversify.s20.recall@10``, ``.unlikeness`` (mean of 1 − cosine over all pairs of the ten, as the encoder sees
    them) and ``.kinds`` (different categories among the ten); ``diversify.n`` queries. ``diversify.ms`` is what arranging 200 takes, p50."""
    import statistics
    import time

    from pinhole.catalogue.store import Catalogue
    from pinhole.evaluation.search_exams import titled_scores
    from pinhole.retrieval.arrange import POOL
    from pinhole.retrieval.diversify import Results, spread, unlikeness
    from pinhole.retrieval.weights import Weights
    from pinhole.vision.align import Asked, Space
    from pinhole.vision.features import Features

    aligned, features = workspace.need("align").path, Features.load(workspace.need("embed").path)
    weights = Weights.from_json(read_json(workspace.need("index").path / "weights.json"))
    catalogue = Catalogue(workspace.tables)
    texts = Asked.load(aligned).completed(catalogue.queries()["text"].to_pylist(), features.text_encoder.spec)
    asked, scores, pictures, kinds = titled_scores(catalogue, features, Space.load(aligned), weights, texts, workspace.config, most)
    if not asked:
        raise UsageError("no held-out query leads to a held-out item", where=str(workspace.root), fix="ingest more queries and items")
    found: dict[float, list[tuple[float, float, float]]] = {strength: [] for strength in STRENGTHS}
    spent: list[float] = []
    for number, right in enumerate(asked):
        order = np.argsort(-scores[number], kind="stable")[:POOL]
        best = scores[number][order]
        results = Results((best - best[0]) / max(float(best.std()), 1e-9), pictures[order], kinds[order])
        for strength in STRENGTHS:
            began = time.perf_counter()
            first = order[spread(results, K, strength)]
            if strength:
                spent.append(time.perf_counter() - began)
            recall = len(np.intersect1d(first, right)) / min(K, len(right))
            found[strength].append((recall, unlikeness(pictures[first]), float(len(np.unique(kinds[first])))))
        if progress:
            progress(number + 1, len(asked))
    figures = {"diversify.n": float(len(asked)), "diversify.ms": 1000 * statistics.median(spent)}
    for strength, measured in found.items():
        recall, unlike, different = np.array(measured).mean(0).tolist()
        key = f"diversify.s{100 * strength:.0f}"
        figures |= {f"{key}.recall@10": recall, f"{key}.unlikeness": unlike, f"{key}.kinds": different}
    return figures


def plot(figures: Mapping[str, float], path: Path) -> None:
    """Relevance kept over diversity gained, a point a strength."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    keys = [f"diversify.s{100 * strength:.0f}" for strength in STRENGTHS]
    across, up = ([figures[f"{key}.{name}"] for key in keys] for name in ("unlikeness", "recall@10"))
    axes.plot(across, up, "o-")
    for strength, x, y in zip(STRENGTHS, across, up, strict=True):
        axes.annotate(f"{strength:g}", (x, y), xytext=(5, 5), textcoords="offset points", fontsize=9, color="#555")
    axes.set(xlabel="how unlike the first ten are (mean of 1 − cosine)", ylabel="recall@10", ylim=(0, None))
    axes.set_title(f"[diversify] strength beside each point; {figures['diversify.n']:.0f} held-out queries", fontsize=9)
    axes.grid(color="#ddd", linewidth=0.6)
    figure.savefig(path, dpi=150)
