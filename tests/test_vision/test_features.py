"""A finished artefact loads lazily; anything else is one clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinhole.errors import Corrupt, MissingArtefact, SpaceMismatch
from pinhole.vision.features import Features
from pinhole.vision.precompute import precompute


def test_errors(make_catalogue: Callable[..., Any], tiny_encoders: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(MissingArtefact, match="pinhole build embed"):
        Features.load(out)
    precompute(make_catalogue(6), *tiny_encoders, out, workers=1)
    features = Features.load(str(out))
    assert isinstance(features.image, np.memmap)
    assert not features.image.flags.writeable
    assert len(features) == len(features.ids) == 9
    features.check(image=features.image_encoder.identity, text=features.text_encoder.identity)
    with pytest.raises(SpaceMismatch, match="0000"):
        features.check(image="0000")
    (out / "image.npy").write_bytes((out / "image.npy").read_bytes()[:200])
    with pytest.raises(Corrupt, match="image.npy"):
        _ = Features.load(out).image
    np.save(out / "title.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(Corrupt, match=r"shape \(2, 3\)"):
        _ = Features.load(out).text
    (out / "features.json").write_text("{")
    with pytest.raises(Corrupt):
        Features.load(out)
