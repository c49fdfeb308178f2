"""A small real catalogue, and tiny encoders that are quick to run."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Specifications of a tiny image and a tiny text encoder, converted once into a cache of their own."""
    from pinhole.vision.encoders import image_encoder, text_encoder
    from test_vision import tiny

    patch = pytest.MonkeyPatch()
    patch.setenv("PINHOLE_CACHE", str(tmp_path_factory.mktemp("cache")))
    folder = tmp_path_factory.mktemp("models")
    tiny.vit(folder / "see")
    tiny.bert(folder / "read")
    specs = f"hf:{folder / 'see'}", f"hf:{folder / 'read'}"
    image_encoder(specs[0]), text_encoder(specs[1])
    yield specs
    patch.undo()


def picture(seed: int, size: int = 48) -> bytes:
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def make_catalogue(tmp_path: Path) -> Callable[..., Any]:
    """``make_catalogue(n)`` has n items, with titles and without, one repeated; and one broken, one missing, one without a picture.

    ``blobs`` keeps every fifth picture in the table (a worker that reads one imports Lance, which takes a second).
    """

    def make(n: int = 60, blobs: bool = False) -> Any:
        import pyarrow as pa

        from pinhole.catalogue.store import Catalogue

        root = tmp_path / "shop"
        (root / "files").mkdir(parents=True)
        (root / "tables").mkdir()
        rows: list[dict[str, Any]] = []
        for i in range(n):
            row: dict[str, Any] = {
                "id": f"item{i:04d}",
                "title": f"a red apple {i % 9}" if i % 3 else "",
                "description": "small tree" if i % 10 == 1 else None,
            }
            if blobs and i % 5 == 4:
                row["image_bytes"] = picture(i)
            else:
                row["image"] = f"files/{i}.png"
                (root / row["image"]).write_bytes(picture(0 if i == 1 else i))
            rows.append(row)
        (root / "files" / "broken.png").write_bytes(picture(5)[:60])
        (root / "files" / "gone.png").write_bytes(picture(6))
        rows += [{"id": "x-broken", "image": "files/broken.png"}, {"id": "x-gone", "image": "files/gone.png"}, {"id": "x-none", "title": "winter"}]
        schema = pa.schema([(key, pa.string()) for key in ("id", "image", "title", "description")] + [("image_bytes", pa.large_binary())])
        catalogue = Catalogue(root / "tables")
        catalogue.upsert("items", pa.Table.from_pylist(rows, schema=schema), base=root)
        (root / "files" / "gone.png").unlink()
        return catalogue

    return make
