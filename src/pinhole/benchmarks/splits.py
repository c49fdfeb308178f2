"""The search exams of `pinhole evaluate`, without the rest of it, over as many drawings of what is held out as are asked for.

On each split but the workspace's own, space and fusion weights are made again from its training part. Tables and artefacts are only read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pinhole.workspace import Workspace, read_json

NEEDS_WORKSPACE = True
COUNTS = True
SPLITS = 8
SHOWN = ("search.text_to_image", "search.fine", "boards", "related.placed", "related.new", "search.cold", "search.with_titles")
Progress = Callable[[int, int], None]


def run(workspace: Workspace, progress: Progress | None = None, n: int = SPLITS) -> dict[str, float]:
    """The figures of docs/evaluation.md's search exams, pooled over ``n`` splits."""
    from pinhole.catalogue.store import Catalogue
    from pinhole.evaluation.search_exams import search_exams
    from pinhole.retrieval.weights import Weights
    from pinhole.vision.align import Asked, Space
    from pinhole.vision.features import Features

    catalogue, features = Catalogue(workspace.tables), Features.load(workspace.need("embed").path)
    aligned = workspace.need("align").path
    asked = Asked.load(aligned).completed(catalogue.queries()["text"].to_pylist(), features.text_encoder.spec)
    weights = Weights.from_json(read_json(workspace.need("index").path / "weights.json"))
    config = workspace.config.model_copy(update={"evaluate": workspace.config.evaluate.model_copy(update={"splits": n})})
    return search_exams(catalogue, features, Space.load(aligned), weights, asked, config, progress)


def table(figures: Mapping[str, float], workspace: Workspace) -> list[str]:
    """A line for each exam."""
    lines = [f"recall@10, {figures['search.splits']:.0f} splits; ÷ without training, with a 95% interval by query or board"]
    for name in SHOWN:
        key = f"{name}.recall@10"
        tuned = figures.get(f"{key}.tuned", figures.get(key))
        if tuned is not None and f"{key}.ratio" in figures:
            over, low, high = (figures[f"{key}.ratio{end}"] for end in ("", ".low", ".high"))
            lines.append(f"{name:<22}{tuned:.3f} of {figures[f'{key}.base']:.3f}  {over:.3f} ({low:.3f} – {high:.3f})  n {figures[f'{key}.n']:.0f}")
    return lines
