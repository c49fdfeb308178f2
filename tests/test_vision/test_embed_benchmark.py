"""The benchmark runs on a workspace and prints what it promises. How good the figure is, is for a quiet machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pinhole.benchmarks import embed
from pinhole.errors import UsageError
from pinhole.vision import speed
from test_vision.conftest import picture


def test_figures(make_workspace: Callable[..., Any], tiny_encoders: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    import pyarrow as pa

    from pinhole.catalogue.store import Catalogue

    workspace = make_workspace(vision={"image_encoder": tiny_encoders[0], "text_encoder": tiny_encoders[1], "workers": 2})
    with pytest.raises(UsageError, match="no picture files"):
        speed.measure(workspace, 4)
    for i in range(10):
        (workspace.root / f"{i}.png").write_bytes(picture(i))
    rows = pa.table({"id": [str(i) for i in range(10)], "image": [f"{i}.png" for i in range(10)], "title": ["a"] * 10})
    Catalogue(workspace.tables).upsert("items", rows, base=workspace.root)
    figures = speed.measure(workspace, 6, rounds=1)
    assert 0 < figures["speed.embed.fraction"] < 2
    assert figures["speed.embed.fraction.n"] == 6
    monkeypatch.setattr("sys.argv", ["embed", str(workspace.root), "4"])
    monkeypatch.setattr(embed, "measure", lambda *_: figures)
    embed.main()
    assert set(json.loads(capsys.readouterr().out)) == {"embed.fraction", "embed.cpu_fraction", "embed.images_per_s", "n"}
    assert not [path for path in workspace.root.iterdir() if path.name.startswith("tmp")]
