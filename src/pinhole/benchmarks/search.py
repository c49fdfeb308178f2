"""The claim: from query vectors to ids and scores, a search of a million costs at most 1.2 times the bare faiss index of the same recall.

The workspace's own learned vectors, mixed two by two with noise under a fixed seed, so that the items lie as real ones do and not in easy clusters;
queries are the query log's vectors with noise. All sides search the same vectors for the same queries in rounds that take turns, at
the least effort that reaches the wanted recall@10, or at the largest, with what that reaches printed. ``bare`` is the faiss index that
ours stands on (inverted lists), called directly; ``hnsw`` faiss's other one; usearch is asked where it is installed, LanceDB's own index
always. With a filter the floor is a scan of exactly the rows it leaves. Encoding a text and full text are reported apart. Tables and
artefacts are only read.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.errors import UsageError
from pinhole.workspace import Workspace

if TYPE_CHECKING:
    from pinhole.config import IndexConfig
    from pinhole.retrieval.nearest import Nearest

NEEDS_WORKSPACE = True
COUNTS = True  # `--n` says how many items
N, K, BATCH, BATCHES, ALONE = 1_000_000, 10, 64, 20, 500
WANTED = 0.95
FILTER = 0.1
LINKS = 16  # of a node, for those that search along links
EFFORTS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
Progress = Callable[[int, int], None]
Ask = Callable[[np.ndarray, int], np.ndarray]
"""(q, width) queries and an effort to (q, k) rows."""


@dataclass
class Side:
    """One way to search, and what building it took."""

    ask: Ask
    cost: tuple[float, float]
    """Seconds and gigabytes."""
    effort: int = 0
    recall: float = 0.0
    batches: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)


def run(workspace: Workspace, progress: Progress | None = None, n: int = N) -> dict[str, float]:
    """``search.SIDE.qps`` (batches of 64), ``.p50_ms`` and ``.p99_ms`` (one query), ``.recall@10``, ``.effort``, ``.build_s``, ``.memory_gb`` for
    the sides ours, bare, hnsw, usearch and lance; ``search.qps_over_faiss`` bare ÷ ours, above 1 where ours is slower; ``search.filtered.…``
    with a filter that leaves a tenth.
    """
    from pinhole.vision.align import Asked, Space, learned_vectors
    from pinhole.vision.features import Features

    aligned = workspace.need("align").path
    space, features = Space.load(aligned), Features.load(workspace.need("embed").path)
    asked = Asked.load(aligned)
    if not len(asked.texts):
        raise UsageError("no query log to draw queries from", where=str(workspace.root), fix="ingest queries and run `pinhole build index`")
    draw = np.random.default_rng(0)
    vectors = resampled(learned_vectors(space, features), n, draw)
    queries = resampled(space.query_vectors(asked.of(asked.texts)), BATCH * BATCHES, draw)
    exact = _exact(vectors, queries)
    steps = _Steps(progress, 7 + _has_usearch())
    nearest, sides = _sides(vectors, workspace.config.index, steps)
    for side in sides.values():
        _tune(side, queries, exact)
        steps.one()
    _race(sides, queries)
    steps.one()
    figures: dict[str, float] = {"search.n": float(n), "search.recall@10": sides["ours"].recall}
    for name, side in sides.items():
        figures |= _figures(f"search.{name}", side)
    figures["search.qps_over_faiss"] = figures["search.bare.qps"] / figures["search.ours.qps"]
    nearest.index.nprobe = sides["ours"].effort
    figures |= _filtered(nearest, vectors, queries, draw) | _brute(features, vectors, sides["ours"], queries)
    return figures | _texts(workspace, asked.texts)


def resampled(vectors: np.ndarray, n: int, draw: np.random.Generator) -> np.ndarray:
    """(n, width) of length 1: each lies between two of ``vectors``, nearer to one, with noise of a third of its length."""
    width = vectors.shape[1]
    vectors = vectors[np.abs(vectors).max(1) > 0]
    out = np.empty((n, width), np.float32)
    for begin in range(0, n, 100_000):
        piece = out[begin : begin + 100_000]
        one, other = (vectors[draw.integers(0, len(vectors), len(piece))] for _ in range(2))
        piece[:] = 0.8 * one + 0.4 * other + draw.standard_normal(piece.shape, dtype=np.float32) * np.float32(0.3 / np.sqrt(width))
        piece /= np.maximum(np.linalg.norm(piece, axis=1, keepdims=True), 1e-12)
    return out


# -- the sides ------------------------------------------------------------------------------------


def _sides(vectors: np.ndarray, config: IndexConfig, steps: _Steps) -> tuple[Nearest, dict[str, Side]]:
    from pinhole.retrieval.nearest import Nearest

    config = config.model_copy(update={"flat_below": 0, "storage": "float32", "width": 0})
    nearest, cost = _built(lambda: Nearest.build(vectors, np.arange(len(vectors)), config))
    steps.one()

    def ours(asked: np.ndarray, effort: int) -> np.ndarray:
        nearest.index.nprobe = effort
        return nearest.many(asked, K)[0]

    def bare(asked: np.ndarray, effort: int) -> np.ndarray:
        nearest.index.nprobe = effort
        return np.asarray(nearest.index.search(asked, K)[1])

    sides = {"ours": Side(ours, cost), "bare": Side(bare, cost), "hnsw": _hnsw(vectors)}
    if _has_usearch():
        sides["usearch"] = _usearch(vectors)
    sides["lance"] = _lance(vectors)
    steps.one()
    return nearest, sides


def _has_usearch() -> bool:
    return importlib.util.find_spec("usearch") is not None


def _hnsw(vectors: np.ndarray) -> Side:
    import faiss

    index: Any = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 4 * LINKS

    def ask(asked: np.ndarray, effort: int) -> np.ndarray:
        index.hnsw.efSearch = effort
        return np.asarray(index.search(asked, K)[1])

    return Side(ask, _built(lambda: index.add(vectors))[1])


def _usearch(vectors: np.ndarray) -> Side:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=LINKS, expansion_add=4 * LINKS)

    def ask(asked: np.ndarray, effort: int) -> np.ndarray:
        index.expansion_search = effort
        found = index.search(asked, K)
        return np.asarray(found.keys, dtype=np.int64).reshape(len(asked), -1)

    return Side(ask, _built(lambda: index.add(np.arange(len(vectors)), vectors))[1])


def _lance(vectors: np.ndarray) -> Side:
    """A table of its own in a temporary folder, with inverted lists as ours: its links took ten minutes for a million, to be no faster."""
    os.environ.setdefault("RUST_LOG", "error")  # Lance warns on every table it creates
    import lancedb
    import pyarrow as pa

    folder = tempfile.TemporaryDirectory()
    width = vectors.shape[1]

    def build() -> Any:
        table = lancedb.connect(folder.name).create_table(
            "items",
            pa.table({"row": np.arange(len(vectors)), "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), width)}),
        )
        table.create_index(metric="dot", index_type="IVF_FLAT", num_partitions=max(1, min(int(4 * np.sqrt(len(vectors))), len(vectors) // 40)))
        return table

    table, cost = _built(build)

    def one(vector: np.ndarray, effort: int) -> np.ndarray:
        query = table.search(vector).distance_type("dot").nprobes(effort).limit(K).select(["row", "_distance"])
        found = query.to_arrow()["row"].to_numpy()
        return np.pad(found, (0, K - len(found)), constant_values=-1)

    def ask(asked: np.ndarray, effort: int) -> np.ndarray:
        assert folder  # its files stay as long as it does
        return np.stack([one(vector, effort) for vector in asked])

    return Side(ask, cost)


# -- measuring ------------------------------------------------------------------------------------


class _Steps:
    """One bar over pieces of about the same length."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def one(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(min(self.done, self.total), self.total)


def _built(make: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """What it made; seconds, and gigabytes that this process holds more."""
    import psutil

    process = psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    made = make()
    return made, (time.perf_counter() - began, (process.memory_info().rss - before) / 1e9)


def _exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    import faiss

    return np.asarray(faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1])


def _recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(*pair)) / K for pair in zip(found, exact, strict=True)]))


def _tune(side: Side, queries: np.ndarray, exact: np.ndarray) -> None:
    """The least effort that reaches the wanted recall on a part of the queries."""
    few = 2 * BATCH
    for side.effort in EFFORTS:
        side.recall = _recall(side.ask(queries[:few], side.effort), exact[:few])
        if side.recall >= WANTED:
            return


def _race(sides: dict[str, Side], queries: np.ndarray) -> None:
    """Batches, then single queries; the sides take turns in an order drawn anew each time, for who comes first finds the caches cold."""
    draw, every = np.random.default_rng(0), list(sides.values())
    for number in range(BATCHES):
        batch = queries[number * BATCH : (number + 1) * BATCH]
        for side in [every[place] for place in draw.permutation(len(every))]:
            began = time.perf_counter()
            side.ask(batch, side.effort)
            side.batches.append(time.perf_counter() - began)
    for one in queries[:ALONE]:
        for side in [every[place] for place in draw.permutation(len(every))]:
            began = time.perf_counter()
            side.ask(one[None], side.effort)
            side.alone.append(time.perf_counter() - began)


def _figures(key: str, side: Side) -> dict[str, float]:
    p50, p99 = (1000 * float(np.quantile(side.alone, share)) for share in (0.5, 0.99))
    found = {"qps": BATCH / statistics.median(side.batches), "p50_ms": p50, "p99_ms": p99, "recall@10": side.recall, "effort": float(side.effort)}
    return {f"{key}.{name}": value for name, value in (found | dict(zip(("build_s", "memory_gb"), side.cost, strict=True))).items()}


def _filtered(nearest: Nearest, vectors: np.ndarray, queries: np.ndarray, draw: np.random.Generator) -> dict[str, float]:
    """A tenth of all rows allowed, drawn anew: ours, against gathering those rows and scanning them."""
    import faiss

    spent: dict[str, list[float]] = {"ours": [], "scan": []}
    alone: list[float] = []
    same = []
    for number in range(BATCHES // 2):
        allowed = np.sort(draw.choice(len(vectors), int(FILTER * len(vectors)), replace=False))
        batch = queries[number * BATCH : (number + 1) * BATCH]
        began = time.perf_counter()
        ours = nearest.many(batch, K, allowed)[0]
        spent["ours"].append(time.perf_counter() - began)
        began = time.perf_counter()
        scan = allowed[faiss.knn(batch, vectors[allowed], K, metric=faiss.METRIC_INNER_PRODUCT)[1]]
        spent["scan"].append(time.perf_counter() - began)
        same.append(_recall(ours, scan))
        for one in batch[:8]:
            began = time.perf_counter()
            nearest.many(one[None], K, allowed)
            alone.append(time.perf_counter() - began)
    ours_s, scan_s = (statistics.median(seconds) for seconds in spent.values())
    figures = {"qps": BATCH / ours_s, "scan_qps": BATCH / scan_s, "qps_over_faiss": ours_s / scan_s, "recall@10": float(np.mean(same))}
    return {f"search.filtered.{name}": value for name, value in (figures | {"p50_ms": 1000 * statistics.median(alone)}).items()}


def _brute(features: Any, vectors: np.ndarray, ours: Side, queries: np.ndarray) -> dict[str, float]:
    """Processor time and arithmetic of a query, against a scan of vectors as wide as the frozen picture's (measured on a part, times the rest)."""
    import faiss

    wide, part = features.image_encoder.dim, min(len(vectors), 50_000)
    untuned = np.random.default_rng(1).standard_normal((part, wide), dtype=np.float32)
    asked = np.random.default_rng(2).standard_normal((BATCH, wide), dtype=np.float32)
    began = time.process_time()
    faiss.knn(asked, untuned, K, metric=faiss.METRIC_INNER_PRODUCT)
    brute_ms = 1000 * (time.process_time() - began) / BATCH * len(vectors) / part
    faiss.cvar.indexIVF_stats.reset()
    began = time.process_time()
    for number in range(BATCHES):
        ours.ask(queries[number * BATCH : (number + 1) * BATCH], ours.effort)
    ours_ms = 1000 * (time.process_time() - began) / len(queries)
    stats = faiss.cvar.indexIVF_stats
    distances = (stats.ndis + stats.nlist) / len(queries)  # of vectors and of centres
    flops = {"brute": 2.0 * wide * len(vectors), "ours": 2.0 * vectors.shape[1] * distances}
    found = {"cpu_ms": ours_ms, "brute.cpu_ms": brute_ms, "saved": 1 - ours_ms / brute_ms}
    return {f"search.compute.{name}": value for name, value in (found | {f"{name}.mflops": value / 1e6 for name, value in flops.items()}).items()}


def _texts(workspace: Workspace, texts: list[str]) -> dict[str, float]:
    """What comes before and beside the vectors: encoding a text, and full text over the workspace's own items."""
    from pinhole.catalogue.store import Catalogue
    from pinhole.vision.encoders import text_encoder

    read, catalogue = text_encoder(workspace.config.vision.text_encoder), Catalogue(Path(workspace.tables))
    spent: dict[str, list[float]] = {"encode_ms": [], "full_text_ms": []}
    for text in texts[:40]:
        for name, ask in (
            ("encode_ms", lambda text=text: read.encode([text])),
            ("full_text_ms", lambda text=text: catalogue.text_search(text, 200, None)),
        ):
            began = time.perf_counter()
            ask()
            spent[name].append(1000 * (time.perf_counter() - began))
    return {f"search.text.{name}": statistics.median(values) for name, values in spent.items()}
