"""``pinhole doctor``: what this machine can do, what is missing, and what to install.

Looks only; changes nothing and fetches nothing. Each line is a name, whether it is good, what was
found, and the fix. Knows nothing of workspaces.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pinhole.processes import cores
from pinhole.workspace import cache_dir

State = Literal["ok", "missing", "warning"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# name → (distribution, what it is for, what to install); the core's own packages come first.
PACKAGES = {
    "torch": ("torch", "trains and runs the language model", "pip install torch"),
    "transformers": ("transformers", "language models", "pip install pinhole-vlm"),
    "lancedb": ("lancedb", "tables", "pip install pinhole-vlm"),
    "faiss": ("faiss-cpu", "vector search", "pip install pinhole-vlm"),
    "onnxruntime": ("onnxruntime", "runs encoders on CPUs", "pip install pinhole-vlm"),
}
OPTIONAL = {
    "efficientnet_lite_pytorch": ("efficientnet-lite-pytorch", "the default image encoder", 'pip install "pinhole-vlm[demo]"'),
    "datasets": ("datasets", "hf: catalogues", 'pip install "pinhole-vlm[hf]"'),
    "timm": ("timm", "timm: encoders", "pip install timm"),
    "open_clip": ("open_clip_torch", "open_clip: encoders", "pip install open_clip_torch"),
    "ray": ("ray", "build --on ray", 'pip install "pinhole-vlm[ray]"'),
}


@dataclass(frozen=True)
class Finding:
    name: str
    state: State
    found: str
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def examine() -> list[Finding]:
    """All findings. ``missing`` is something the core needs; ``warning`` is something that a feature needs."""
    return [*_machine(), *_packages(), *_accelerators(), *_programs(), *_cache()]


def _machine() -> Iterator[Finding]:
    import psutil

    new = sys.version_info >= (3, 11)
    yield _finding("python", new, platform.python_version(), "install Python 3.11 or newer", otherwise="missing")
    yield Finding("cores", "ok", str(cores()))
    memory = psutil.virtual_memory()
    yield _finding("memory", memory.total >= 6e9, f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}", "the demo needs 6 GB")
    free = shutil.disk_usage(Path.cwd()).free
    yield _finding("disk here", free >= 3e9, f"{free / 1e9:.1f} GB free", "the demo needs 3 GB")


def _finding(name: str, good: bool, found: str, fix: str, otherwise: State = "warning") -> Finding:
    return Finding(name, "ok", found) if good else Finding(name, otherwise, found, fix)


def _packages() -> Iterator[Finding]:
    for needed, packages in ((True, PACKAGES), (False, OPTIONAL)):
        for module, (distribution, purpose, fix) in packages.items():
            if importlib.util.find_spec(module) is None:
                yield Finding(module, "missing" if needed else "warning", f"not installed ({purpose})", fix)
            else:
                yield Finding(module, "ok", f"{_version(distribution)} ({purpose})")
    if importlib.util.find_spec("torchvision") is not None:
        found = "installed; a build that does not match torch's breaks transformers"
        yield Finding("torchvision", "warning", found, "pip uninstall torchvision, unless timm or open_clip need it")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _accelerators() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    from pinhole.graft.model import best_dtype

    if torch.cuda.is_available():
        yield Finding("gpu", "ok", torch.cuda.get_device_name(0))
    else:
        yield Finding("gpu", "ok", "none: everything runs on the processor")
    fast = best_dtype() is torch.bfloat16
    yield Finding("bfloat16", "ok", "in hardware: training runs in it" if fast else "not in hardware: training runs in float32, about half as fast")


def _programs() -> Iterator[Finding]:
    own = "use your own catalogue instead, or `pinhole ingest items hf:NAME`"
    yield _program("apt-get", bool(shutil.which("apt-get") and shutil.which("dpkg-deb")), "samples openclipart and tuxpaint", own)
    yield _program("npm", bool(shutil.which("npm")), "sample openmoji", f"install Node.js, or {own}")
    browser = next((name for name in BROWSERS if shutil.which(name)), None)
    yield _program(browser or "chromium", browser is not None, "the page's own tests", "apt-get install chromium")


def _program(name: str, there: bool, purpose: str, fix: str) -> Finding:
    return _finding(name, there, f"{'there' if there else 'not there'} ({purpose})", fix)


def _cache() -> Iterator[Finding]:
    folder = cache_dir()
    held = sorted(path for path in folder.glob("*/*") if not path.name.startswith("."))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    names = ", ".join(f"{path.parent.name}/{path.name}" for path in held) or "empty: the first build downloads about 200 MB"
    found = f"{folder}, {size / 1e6:.0f} MB: {names}"
    yield _finding("cache", os.access(folder, os.W_OK), found, "set PINHOLE_CACHE to a folder that you may write", otherwise="missing")


def lines(findings: list[Finding]) -> list[str]:
    """One a finding; the fix under what needs one."""
    marks = {"ok": "  ", "warning": "? ", "missing": "! "}
    width = max(len(one.name) for one in findings)
    shown = []
    for one in findings:
        shown.append(f"{marks[one.state]}{one.name:{width}}  {one.found}")
        if one.fix:
            shown.append(f"  {'':{width}}  → {one.fix}")
    return [*shown, "", "! must be installed   ? only what is said in brackets needs it"]


def summary(findings: list[Finding]) -> dict[str, Any]:
    return {"ok": not any(one.state == "missing" for one in findings), "findings": [one.as_dict() for one in findings]}
