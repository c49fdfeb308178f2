"""Bytes to pixels: the one guarded recipe by which every picture is read, in the index and in a query.

The header is checked before a pixel is decoded, only common raster formats are tried, the first frame
stands for an animation, EXIF orientation is applied, transparency is shown on white. JPEGs are decoded
at a reduced scale (``draft``) and large pictures are reduced in two steps (``reducing_gap``), which moves
vectors a little: that is why there is one recipe. Knows nothing of encoders or files. Does not limit
the time that a decoder takes, only the pixels it is given.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import (  # a plugin registers its format when imported; no others are tried
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from pinhole.errors import BadImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 100_000_000
MAX_BYTES = 256 << 20
GAP = 2.0  # how much larger than asked an intermediate picture is, at least

# A picture is read or refused with a reason; what Pillow remarks on the way helps nobody, and max_pixels stands in for its limit.
warnings.filterwarnings("ignore", module=r"PIL\.")

_ORIENTATION = 0x0112
_TRANSPOSE = {  # EXIF orientation: how to turn it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Recipe:
    """How a picture becomes an encoder's square input, and how its numbers are scaled."""

    size: int
    """Edge of the square, in pixels."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """Whole picture with white borders; or the middle of it; or squeezed into the square."""
    edge: int = 0
    """With ``crop``: the shorter edge before the middle is cut out; 0 = ``size``."""
    resample: int = int(Image.Resampling.BICUBIC)
    """Pillow's number of the filter."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from channels scaled to 0…1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides what the mean was subtracted from."""


def decode(data: bytes, recipe: Recipe | int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Upright uint8 RGB ``(size, size, 3)`` of an encoded picture. Raises :class:`BadImage` on anything else."""
    recipe = Recipe(recipe) if isinstance(recipe, int) else recipe
    if not data:
        raise BadImage("an image of zero bytes", fix="give a PNG, JPEG or WebP file")
    if len(data) > MAX_BYTES:
        raise BadImage(f"an image file of {len(data):,} bytes, more than {MAX_BYTES:,}", fix="make it smaller")
    try:
        return _decode(data, recipe, max_pixels)
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(f"an image of more than {max_pixels:,} pixels", fix="make it smaller, or raise [vision] max_pixels") from None
    except UnidentifiedImageError:
        raise _unknown(data) from None
    except Exception as error:  # hostile bytes make a decoder raise anything
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise BadImage(f"a broken image: {reason}", fix="export it again as PNG or JPEG") from None


def _unknown(data: bytes) -> BadImage:
    head = data[:2048].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in data[:65536].lower()):
        return BadImage("an SVG drawing, which has no pixels", fix="export it as PNG")
    return BadImage("not an image that can be read", fix=f"give one of {', '.join(FORMATS)}")


def _decode(data: bytes, recipe: Recipe, max_pixels: int) -> np.ndarray:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # the owner asked for more than Pillow lets through
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size  # from the header: nothing is decoded yet
        if width * height > max_pixels:
            raise BadImage(
                f"an image of {width:,} × {height:,} pixels, more than {max_pixels:,}", fix="make it smaller, or raise [vision] max_pixels"
            )
        if width < 1 or height < 1:
            raise BadImage("an image without pixels", fix="export it again")
        turn = _TRANSPOSE.get(image.getexif().get(_ORIENTATION, 1))
        (out_width, out_height), box = _geometry(width, height, recipe)
        scale = max(out_width / (box[2] - box[0]), out_height / (box[3] - box[1]))
        image.draft("RGB", (max(1, int(width * scale * GAP)), max(1, int(height * scale * GAP))))  # JPEG only
        image.load()
        drafted_x, drafted_y = image.width / width, image.height / height
        box = (box[0] * drafted_x, box[1] * drafted_y, box[2] * drafted_x, box[3] * drafted_y)
        plain = _opaque_modes(image)
        small = plain.resize((out_width, out_height), recipe.resample, box=box, reducing_gap=GAP)
    if turn is not None:
        small = small.transpose(turn)
    return _square(_on_white(small), recipe.size)


def _geometry(width: int, height: int, recipe: Recipe) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    """The size to resize to, and the box of the source that it shows."""
    size = recipe.size
    if recipe.fit == "stretch":
        return (size, size), (0, 0, width, height)
    if recipe.fit == "crop":
        side_x = side_y = min(width, height) * size / max(recipe.edge or size, size)
        left, top = (width - side_x) / 2, (height - side_y) / 2
        return (size, size), (left, top, left + side_x, top + side_y)
    scale = size / max(width, height)
    return (max(1, round(width * scale)), max(1, round(height * scale))), (0, 0, width, height)


def _opaque_modes(image: Image.Image) -> Image.Image:
    """RGB, or RGBa (colours already multiplied by alpha, so that they mix rightly when resized)."""
    if image.mode.startswith(("I", "F")):
        return _deep(image).convert("RGB")
    if image.has_transparency_data:
        return image.convert("RGBA").convert("RGBa")
    return image.convert("RGB")


def _deep(image: Image.Image) -> Image.Image:
    """16-bit and float greys as 8-bit: 16 bits by their range, floats by their own darkest and lightest."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I") and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0 if high > 255 or image.mode != "I" else 255.0
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(scaled.round().astype(np.uint8))


def _on_white(image: Image.Image) -> np.ndarray:
    """(h, w, 3) uint8."""
    pixels = np.asarray(image)
    if image.mode == "RGB":
        return pixels
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    return np.minimum(colours.astype(np.uint16) + (255 - alpha.astype(np.uint16)), 255).astype(np.uint8)


def _square(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return np.ascontiguousarray(pixels)
    square = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square
