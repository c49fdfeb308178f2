"""Pictures of items over HTTP: the original, or a bounded thumbnail from a small cache.

Only an id of the catalogue leads to bytes; no path ever comes from a request. Only raster images that Pillow
recognises are sent, under the type Pillow found and not the one a name claims: an SVG or an HTML page in the
catalogue is "no picture" here, never active content. Does not fetch anything from anywhere.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from pinhole.errors import BadImage, PinholeError

SIZES = (64, 128, 256, 384, 512, 768, 1024)
_ORIENTATION = 0x0112
MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp", "AVIF": "image/avif", "BMP": "image/bmp"}


class NoPicture(PinholeError):
    """The item is there, but it has no picture that can be shown."""

    status = 404


@dataclass(frozen=True)
class Picture:
    body: bytes
    media_type: str
    etag: str


def snap(size: int) -> int:
    """The smallest offered size that is no smaller, so that a client cannot fill the cache with sizes."""
    return next((offered for offered in SIZES if offered >= size), SIZES[-1])


class Pictures:
    """Blocking and thread-safe. Thumbnails are WebP on white (what the encoder saw), at most ``size`` pixels on a side."""

    def __init__(self, catalogue: Any, *, max_pixels: int = 100_000_000, cache_bytes: int = 64_000_000) -> None:
        self.catalogue, self.max_pixels = catalogue, max_pixels
        self._cache: OrderedDict[tuple[str, int], Picture] = OrderedDict()
        self._room = cache_bytes
        self._lock = threading.Lock()

    def get(self, item_id: str, size: int | None = None) -> Picture:
        """Raises `UnknownItem`, or :class:`NoPicture` where the item's image is missing, broken or no raster image."""
        try:
            return self._get(self.catalogue.image(item_id), size)
        except BadImage as error:
            raise NoPicture(f"no picture: {error.what}", where=item_id) from None

    def _get(self, data: bytes, size: int | None) -> Picture:
        content = hashlib.sha256(data).hexdigest()[:20]
        kind, width, height = look(data, self.max_pixels)
        if size is None and kind in MEDIA_TYPES:
            return Picture(data, MEDIA_TYPES[kind], f'"{content}"')
        side = min(snap(size or SIZES[-1]), max(width, height))
        key = (content, side)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        picture = Picture(shrink(data, side, width, height, self.max_pixels), "image/webp", f'"{content}-{side}"')
        with self._lock:
            if key not in self._cache:
                self._cache[key] = picture
                self._room -= len(picture.body)
            while self._room < 0 and self._cache:
                self._room += len(self._cache.popitem(last=False)[1].body)
        return picture


def look(data: bytes, max_pixels: int) -> tuple[str, int, int]:
    """Format, width and height of the upright picture, from its header. Raises `BadImage` for what is no raster image."""
    from PIL import Image

    from pinhole.vision.images import FORMATS

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind, (width, height) = image.format or "", image.size
            if width * height > max_pixels:
                raise BadImage(f"{width} × {height} pixels are more than {max_pixels:,}")
            if kind != "PNG" or "exif" in image.info:  # Pillow decodes a whole PNG to look for what is not there
                turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
                width, height = (height, width) if turned else (width, height)
            return kind, width, height
    except BadImage:
        raise
    except Exception:  # Pillow raises many kinds for hostile bytes; all mean the same here
        raise BadImage("not an image that can be shown") from None


def shrink(data: bytes, side: int, width: int, height: int, max_pixels: int) -> bytes:
    """WebP of the picture at most ``side`` pixels wide and high, decoded by the one guarded recipe."""
    from PIL import Image

    from pinhole.vision.images import decode

    square = Image.fromarray(decode(data, side, max_pixels))
    scale = side / max(width, height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (side - w) // 2, (side - h) // 2
    out = io.BytesIO()
    square.crop((left, top, left + w, top + h)).save(out, "WEBP", quality=90, method=3)
    return out.getvalue()
