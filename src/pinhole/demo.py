"""The demo: how long it may take, as settings in one table, and its steps.

``quick`` proves that everything runs and promises no quality; ``default`` is meant for 25 minutes on
two cores, ``full`` for 60; what they took is printed. Knows nothing of how a step works.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal

from pinhole import config as configuration
from pinhole import tasks, wiring
from pinhole.console import Console
from pinhole.errors import UsageError
from pinhole.meter import Meter
from pinhole.tasks import Answer
from pinhole.workspace import Workspace, write_json

Size = Literal["quick", "default", "full"]

SAMPLE = "openclipart"
FOLDER = Path("demo")
MARK = "demo.json"  # lies in a workspace that the demo made

# What differs from the defaults of pinhole.toml, by size.
SIZES: dict[Size, dict[str, dict[str, Any]]] = {
    "quick": {
        "align": {"steps": 150},
        "graft": {"seeing_steps": 30, "talking_steps": 16},
        "evaluate": {"n": 30, "seeing_n": 30, "conversations": 4},
    },
    "default": {},
    "full": {
        "align": {"steps": 400},
        "graft": {"seeing_steps": 880, "talking_steps": 450},
        "evaluate": {"splits": 8},
    },
}


def run(folder: Path | None, size: Size, console: Console) -> tuple[Workspace, Answer]:
    """All steps but serving; each is skipped when it is done. The answer ends with the report's figures."""
    started = time.perf_counter()
    root = folder or (Path(os.environ["PINHOLE_WORKSPACE"]) if os.environ.get("PINHOLE_WORKSPACE") else FOLDER)
    opened, made = workspace(root, size)
    console.say(f"{'made' if made else 'using'} the workspace {root} ({size})")
    fetched = SAMPLE not in tasks.samples(opened)
    with Meter() as meter:
        if fetched:
            for line in tasks.sample(opened, SAMPLE, console).lines:
                console.say(line)
    built = tasks.build(opened, [], console)
    report = tasks.report(opened, console)
    cost = {
        "action": "built" if fetched else "fresh",
        "reason": "",
        "seconds": round(meter.seconds, 2),
        "peak_memory_gb": round(meter.peak_bytes / 1e9, 3),
    }
    value = {"demo": size, "wall_s": round(time.perf_counter() - started, 1), "report": report.value["report"], **built.value}
    value["stages"] = {"sample": cost, **value["stages"]}
    value["peak_memory_gb"] = max(stage["peak_memory_gb"] for stage in value["stages"].values())
    figures = {key: value.pop(key) for key in tasks.figures(opened) if key in value}
    lines = [*built.lines, *report.lines, f"the whole way took {value['wall_s'] / 60:.1f} minutes"]
    return opened, Answer({**value, **figures}, lines)


def workspace(root: Path, size: Size) -> tuple[Workspace, bool]:
    """The demo's workspace with the settings of ``size``, and whether it was made just now.

    In a workspace that exists, only the settings named in :data:`SIZES` are touched: they go to what ``size``
    says. Raises what :meth:`Workspace.open` raises, and :class:`UsageError` where it holds somebody's own catalogue.
    """
    if not (root / "pinhole.toml").exists():
        made = Workspace.create(root, configuration.parse(SIZES[size], where=f"demo --{size}"))
        write_json(root / MARK, {"sample": SAMPLE})
        return made, True
    opened = Workspace.open(root)
    own = not (root / MARK).exists() and SAMPLE not in tasks.samples(opened)
    if own and wiring.open_catalogue(opened).count("items"):
        fix = "name another folder with -w, or run `pinhole build` for this one"
        raise UsageError("this workspace holds a catalogue of its own, and the demo would add to it", where=str(root), fix=fix)
    settings = _settings(opened, size)
    return (opened.change(settings) if settings else opened), False


def _settings(opened: Workspace, size: Size) -> dict[str, Any]:
    """What has to change in an existing workspace: every setting that any size names."""
    changes: dict[str, Any] = {}
    for sections in SIZES.values():
        for section, keys in sections.items():
            for key in keys:
                default = getattr(getattr(configuration.Config(), section), key)
                wanted = SIZES[size].get(section, {}).get(key, default)
                if getattr(getattr(opened.config, section), key) != wanted:
                    changes[f"{section}.{key}"] = wanted
    return changes
