"""What docs/encoders.md shows is run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pinhole.config import Config
from pinhole.vision import encoders
from pinhole.vision.encoders import IMAGE, TEXT
from pinhole.vision.precompute import precompute

PAGE = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")


def test_examples_run(make_catalogue: Callable[..., Any], tiny_encoders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "IMAGE", dict(IMAGE))
    catalogue = make_catalogue(4)
    precompute(catalogue, *tiny_encoders, tmp_path / "out", workers=1)
    names = {"paths": [catalogue.root / "files" / "0.png", catalogue.root / "files" / "2.png"], "folder": tmp_path / "out"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/encoders.md", "exec"), names)
    assert names["pictures"].shape == (2, 1280)  # type: ignore[attr-defined]


def test_the_page_names_what_there_is() -> None:
    defaults = Config().vision
    assert f'image_encoder = "{defaults.image_encoder}"' in PAGE
    assert f'text_encoder = "{defaults.text_encoder}"' in PAGE
    for family in {*IMAGE, *TEXT}:
        assert f"`{family}:" in PAGE
