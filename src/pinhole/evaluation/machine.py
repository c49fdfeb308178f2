"""What figures were measured on: processor, cores, memory and versions, as words beside them. Measures nothing itself."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from pinhole.processes import cores


def machine() -> dict[str, str]:
    """``processor``, ``cores``, ``memory``, ``system``, ``python``, ``torch`` … of the machine this runs on."""
    import psutil

    found = {"processor": _processor(), "cores": str(cores()), "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB"}
    found |= {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnxruntime")}


def _processor() -> str:
    """The model's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def in_words(of: dict[str, str]) -> str:
    """One line: ``2 cores of …, 16 GB, Linux x86_64, torch 2.13``."""
    return ", ".join(part for part in (f"{of.get('cores', '?')} cores of {of.get('processor', '?')}", of.get("memory"), of.get("system")) if part)
