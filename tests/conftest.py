"""What every room's tests may lean on: no progress bars, no colour, few threads, a fresh workspace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _no_workspace_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace or a debug switch in the developer's shell must not leak into a test."""
    for name in ("PINHOLE_WORKSPACE", "PINHOLE_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[..., Any]:
    """``make_workspace(align={"steps": 3})`` is a fresh workspace with those settings."""

    def make(name: str = "shop", **sections: dict[str, Any]) -> Any:
        from pinhole import config
        from pinhole.workspace import Workspace

        return Workspace.create(tmp_path / name, config.parse(sections, where="test"))

    return make


@pytest.fixture
def workspace(make_workspace: Callable[..., Any]) -> Any:
    return make_workspace()
