"""The claim: a change of 1% of the items costs at most 2% of a full build, plus a constant.

The workspace's tables are copied, without what was built; ``embed``, ``align`` and ``index`` are made in full. Then one item changes,
and they are brought up to date: that is the constant (a command and its workers that start, files that are copied). Then 1% of the
items change: a half gets other pictures (its own, mirrored), a quarter is new, a quarter is deleted; and again they are brought up to
date. Times are the command's, from its start to its end, its workers' processor time with it. With ``--n`` the items are that many
drawings, on boards and asked for, in place of the workspace's own.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.errors import PinholeError
from pinhole.workspace import Workspace

NEEDS_WORKSPACE = True
COUNTS = True
SHARE = 0.01
GROUP = 40  # drawings of a board and of a query
Progress = Callable[[int, int], None]


def run(workspace: Workspace, progress: Progress | None = None, n: int = 0) -> dict[str, float]:
    """``refresh.cost`` is processor time after the change of 1% ÷ that of the full build, ``refresh.cost.wall`` the same of wall time;
    ``refresh.constant`` and ``refresh.constant.wall`` after the change of one item."""
    with tempfile.TemporaryDirectory(prefix="pinhole-refresh-") as folder:
        copy = _drawn(Path(folder) / "shop", workspace, n) if n else _copied(Path(folder) / "shop", workspace)
        steps: list[tuple[float, float]] = []
        built: list[dict[str, str]] = []
        for number, items in enumerate((0, 1, max(1, round(SHARE * _count(copy))))):
            if items:
                _change(copy, items, number)
            started, spent = time.perf_counter(), _processor()
            built.append(_build(copy))
            steps.append((_processor() - spent, time.perf_counter() - started))
            if progress:
                progress(number + 1, 3)
        (full, full_wall), (one, one_wall), (some, some_wall) = steps
        figures = {
            "refresh.cost": some / full,
            "refresh.cost.wall": some_wall / full_wall,
            "refresh.constant": one / full,
            "refresh.constant.wall": one_wall / full_wall,
            "refresh.beyond_constant": max(0.0, some - one) / full,
            "refresh.full_cpu_s": full,
            "refresh.full_s": full_wall,
            "refresh.cpu_s": some,
            "refresh.s": some_wall,
            "refresh.constant_cpu_s": one,
            "refresh.items": float(_count(copy)),
            "refresh.kept": float(built[-1]["align"] == "kept"),
            "refresh.extended": float(built[-1]["index"] == "extended"),
        }
    return figures


def _build(workspace: Workspace) -> dict[str, str]:
    """``pinhole build index`` as a command of its own, from its start to its end: what became of each stage."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from pinhole.cli import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "build", "index", "--json", "-w", str(workspace.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PinholeError(f"the build failed: {done.stderr.strip()[-300:]}", where=str(workspace.root))
    return {stage: one["action"] for stage, one in json.loads(done.stdout)["stages"].items()}


def _processor() -> float:
    """Seconds of the builds so far, with their workers."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _count(workspace: Workspace) -> int:
    from pinhole.catalogue.store import Catalogue

    return Catalogue(workspace.tables).count("items")


# -- the copy -----------------------------------------------------------------------------------


def _copied(root: Path, workspace: Workspace) -> Workspace:
    """The same tables and settings; pictures stay where they are."""
    copy = Workspace.create(root, workspace.config)
    shutil.copytree(workspace.tables, copy.tables, dirs_exist_ok=True)
    return copy


def _drawn(root: Path, workspace: Workspace, n: int) -> Workspace:
    """``n`` drawings under the workspace's settings."""
    import pyarrow as pa

    from pinhole.catalogue.store import Catalogue

    copy, draw = Workspace.create(root, workspace.config), np.random.default_rng(0)
    catalogue = Catalogue(copy.tables)
    ids = [f"drawing/{number:07d}" for number in range(n)]
    for start in range(0, n, 5000):
        piece = ids[start : start + 5000]
        titles = [f"drawing {number % GROUP} of set {number // GROUP}" for number in range(start, start + len(piece))]
        catalogue.upsert("items", pa.table({"id": piece, "title": titles, "image_bytes": [_drawing(draw) for _ in piece]}))
    groups = [ids[start : start + GROUP] for start in range(0, n, GROUP)]
    names = [f"set {number}" for number in range(len(groups))]
    catalogue.upsert("boards", pa.table({"id": names, "title": names, "items": groups}))
    asked = [(name, id) for name, group in zip(names, groups, strict=True) for id in group]
    catalogue.upsert("queries", pa.table({"text": [text for text, _ in asked], "item": [id for _, id in asked], "count": [1] * len(asked)}))
    return copy


def _drawing(draw: np.random.Generator) -> bytes:
    """A PNG of a few coloured boxes."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (96, 96), "white")
    pen = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y, width, height = draw.integers(4, 48, 4).tolist()
        pen.rectangle((x, y, x + width, y + height), fill=tuple(draw.integers(0, 256, 3).tolist()))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


# -- the change ---------------------------------------------------------------------------------


def _change(workspace: Workspace, count: int, seed: int) -> None:
    """Other pictures for half of ``count`` items (one: for that one), a quarter new, a quarter deleted."""
    import pyarrow as pa

    from pinhole.catalogue.store import Catalogue

    catalogue = Catalogue(workspace.tables)
    ids = catalogue.ids().to_pylist()
    chosen = [ids[place] for place in np.random.default_rng(seed).permutation(len(ids)).tolist()]
    changed, new, gone = (count, 0, 0) if count < 4 else (count - 2 * (count // 4), count // 4, count // 4)
    mirrored = _mirrored(catalogue, chosen, changed + new)
    rows = [{"id": id if number < changed else f"new-{seed}/{number}", "image_bytes": data} for number, (id, data) in enumerate(mirrored)]
    titles = {row["id"]: row["title"] for row in catalogue.items(["id", "title"], ids=[id for id, _ in mirrored]).to_pylist()}
    named = [{**row, "title": titles[id]} for row, (id, _) in zip(rows, mirrored, strict=True)]
    catalogue.upsert("items", pa.Table.from_pylist(named))
    kept = {id for id, _ in mirrored}
    if gone:
        catalogue.delete("items", [id for id in chosen if id not in kept][:gone])


def _mirrored(catalogue: Any, ids: Sequence[str], count: int) -> list[tuple[str, bytes]]:
    """(id, its picture the other way round) of the first ``count`` that have a picture that can be read."""
    from PIL import Image, ImageOps

    found: list[tuple[str, bytes]] = []
    for id in ids:
        if len(found) == count:
            break
        try:
            with Image.open(io.BytesIO(catalogue.image(id))) as picture:
                turned = ImageOps.mirror(picture.convert("RGB"))
        except (PinholeError, OSError, ValueError, Image.DecompressionBombError):
            continue
        out = io.BytesIO()
        turned.save(out, "PNG")
        found.append((id, out.getvalue()))
    return found
