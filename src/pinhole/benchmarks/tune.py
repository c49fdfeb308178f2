"""The claim: an encoder that learned from boards and queries shows heads more than the open one, on items and queries that neither saw.

The workspace's image encoder is tuned as ``[tune]`` says (``full`` where it says "no") on the training part of its split, all
pictures are embedded again, and the same heads are trained on both. ``before`` and ``after`` are recall@10 of the same questions: ``query``, held-out
queries on held-out items known by their pictures alone, by the heads; ``boards``, the mates of a held-out item on a held-out
board, by the heads from pictures alone; ``pictures``, the same by the frozen vectors, with no heads. ``ratio`` is after ÷ before
with a paired bootstrap over queries (boards). Tables and artefacts are only read. A run that was stopped goes on
where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.config import Config
from pinhole.evaluation.intervals import resampled
from pinhole.retrieval.fusion import recall_at
from pinhole.retrieval.trials import Asking, Trials, held_trials
from pinhole.vision.align import Asked, Space
from pinhole.vision.features import Features
from pinhole.vision.signals import read_signals
from pinhole.workspace import Workspace, digest, read_json, write_json

NEEDS_WORKSPACE = True
SIZES = {"quick": 20, "long": 1200}
K = 10
Progress = Callable[[int, int], None]


def run(workspace: Workspace, progress: Progress | None = None, steps: int = 0) -> dict[str, float]:
    """``steps`` in place of the workspace's own ``[tune] steps``. ``tune.pictures_per_s`` is of training alone, since the
    last time it was begun: pictures forwarded and gone back through ÷ seconds."""
    from pinhole.catalogue.store import Catalogue
    from pinhole.vision.precompute import precompute
    from pinhole.vision.tune import build_tune

    config, catalogue = _settings(workspace.config, steps), Catalogue(workspace.tables)
    embedded, vision = workspace.need("embed").path, config.vision
    place = workspace.root / "benchmarks" / f"tune-{_key(workspace, config)}"
    out, plain, after = (place / name for name in ("tune", "plain", "after"))
    out.mkdir(parents=True, exist_ok=True)
    made = _made(out) or build_tune(catalogue, config, out, progress, embedded)
    write_json(out / "made.json", made)
    for spec, folder in ((vision.image_encoder, plain), (f"tuned:{out.absolute()}/encoder", after)):
        precompute(catalogue, spec, vision.text_encoder, folder, embedded, vision.workers, None, vision.max_pixels)
    asked = Asked.load(workspace.need("align").path).completed(catalogue.queries()["text"].to_pylist(), vision.text_encoder)
    figures = compare(catalogue, Features.load(plain), Features.load(after), asked, config)
    shutil.rmtree(place)
    figures |= {f"tune.{name}": made[name] for name in ("steps", "items", "trained", "pictures_per_s")}
    return figures | {"tune.loss.first": made["loss.first"], "tune.loss.last": made["loss.last"]}


def _key(workspace: Workspace, config: Config) -> str:
    """What a stopped run must have in common with this one."""
    vision = config.vision
    return digest(config.tune.model_dump(), config.catalogue.model_dump(), vision.image_encoder, vision.text_encoder, workspace.need("embed").key)


def _made(out: Path) -> dict[str, float]:
    """Figures of a training that had ended when the run was stopped."""
    return dict(read_json(out / "made.json")) if (out / "made.json").exists() else {}


def _settings(config: Config, steps: int) -> Config:
    changed: dict[str, Any] = {"steps": steps} if steps else {}
    if config.tune.unfreeze == "no":
        changed["unfreeze"] = "full"
    return config.model_copy(update={"tune": config.tune.model_copy(update=changed)})


def compare(catalogue: Any, before: Features, after: Features, asked: Asked, config: Config) -> dict[str, float]:
    """Figures of the same questions on two sets of features of the same items."""
    from pinhole.vision.heads import fit

    part, held = read_signals(catalogue, before).part(config.catalogue)
    vectors = asked.of([query.key for query in part.queries])
    spaces = [fit(features, part, vectors, config.align).space for features in (before, after)]
    trials = held_trials(before, part, held, spaces[0].picture(np.asarray(before.image)))
    recalls = [_recalls(features, space, trials, asked) for features, space in zip((before, after), spaces, strict=True)]
    figures: dict[str, float] = {}
    for name, questions in (("query", trials.text), ("boards", trials.like), ("pictures", trials.like)):
        figures |= _figures(f"tune.{name}.recall@10", [one[name] for one in recalls], questions)
    return figures


def _recalls(features: Features, space: Space, trials: Trials, asked: Asked) -> dict[str, np.ndarray]:
    """recall@10 of every question, pictures alone."""
    image = np.asarray(features.image)[trials.gallery]
    learned, seen = space.seen_vectors(image), space.picture(image)
    texts = space.query_vectors(asked.of([one.text for one in trials.text]))
    liked = np.array([one.liked for one in trials.like], dtype=np.int64)
    return {
        "query": _recall(texts @ learned.T, trials.text),
        "boards": _recall(learned[liked] @ learned.T, trials.like),
        "pictures": _recall(seen[liked] @ seen.T, trials.like),
    }


def _recall(scores: np.ndarray, asked: list[Asking]) -> np.ndarray:
    scores = np.array(scores, dtype=np.float64)
    for row, one in enumerate(asked):
        if one.liked >= 0:  # no candidate itself
            scores[row, one.liked] = -np.inf
    return recall_at(scores, [one.right for one in asked], K) if asked else np.zeros(0)


def _figures(key: str, recalls: list[np.ndarray], asked: list[Asking]) -> dict[str, float]:
    if not asked:
        return {f"{key}.n": 0}
    clusters = [one.board or one.text for one in asked]
    drawn = resampled(np.stack(recalls), clusters, 0)
    low, high = np.quantile(drawn[1] / np.maximum(drawn[0], 1e-9), (0.025, 0.975))
    before, after = (float(one.mean()) for one in recalls)
    figures = {f"{key}.before": before, f"{key}.after": after, f"{key}.n": len(asked), f"{key}.clusters": len(set(clusters))}
    return figures | ({f"{key}.ratio": after / before, f"{key}.ratio.low": float(low), f"{key}.ratio.high": float(high)} if before else {})
