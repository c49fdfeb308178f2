"""Every kind of picture that people have comes out upright, opaque and square; everything else is one clear error."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pinhole.errors import BadImage
from pinhole.vision.images import Recipe, decode

RED, WHITE, BLUE = (220, 20, 30), (255, 255, 255), (10, 30, 200)


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def near(pixel: np.ndarray, colour: tuple[int, int, int], by: int = 12) -> bool:
    return bool(np.abs(pixel.astype(int) - np.array(colour)).max() <= by)


def halves(width: int = 80, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image.convert(mode)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_formats(format: str) -> None:
    pixels = decode(saved(halves(), format), 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert near(pixels[16, 4], RED, 40)
    assert near(pixels[16, 28], BLUE, 40)
    assert near(pixels[1, 16], WHITE)


@pytest.mark.parametrize(("fit", "corner"), [("pad", WHITE), ("stretch", RED), ("crop", RED)])
def test_fits(fit: str, corner: tuple[int, int, int]) -> None:
    pixels = decode(saved(halves()), Recipe(32, fit))  # type: ignore[arg-type]
    assert near(pixels[0, 0], corner)
    assert near(pixels[16, 30], BLUE)


def test_crop_shows_the_middle() -> None:
    image = Image.new("RGB", (90, 30), RED)
    image.paste(BLUE, (30, 0, 60, 30))
    assert near(decode(saved(image), Recipe(16, "crop")).reshape(-1, 3).mean(0), BLUE)


def test_crop_with_an_edge_cuts_the_border_away() -> None:
    image = Image.new("RGB", (64, 64), RED)
    image.paste(BLUE, (6, 6, 58, 58))
    assert near(decode(saved(image), Recipe(56, "crop", 64))[8, 8], BLUE)
    assert near(decode(saved(image), Recipe(56, "crop"))[1, 1], RED)
    assert near(decode(saved(image), Recipe(48, "crop", 64)).reshape(-1, 3).min(0), (10, 30, 200))


def test_alpha_stands_on_white() -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((*RED, 255), (10, 10, 30, 30))
    pixels = decode(saved(image), 40)
    assert near(pixels[2, 2], WHITE)
    assert near(pixels[20, 20], RED)


def test_edges_do_not_mix_with_invisible_colour() -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))  # black where nothing is seen
    image.paste((255, 255, 255, 255), (0, 0, 31, 64))
    assert decode(saved(image), 16).min() >= 250


def test_half_transparent() -> None:
    assert near(decode(saved(Image.new("RGBA", (20, 20), (0, 0, 0, 128))), 10)[5, 5], (127, 127, 127), 3)


def test_palette_with_transparency() -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, *RED] + [0] * 750)
    image.paste(1, (10, 0, 20, 20))
    pixels = decode(saved(image, transparency=0), 20)
    assert near(pixels[10, 3], WHITE)
    assert near(pixels[10, 16], RED)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_modes(mode: str) -> None:
    image = Image.new("RGB", (20, 20), WHITE).convert(mode)
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    assert decode(saved(image, format), 16).min() > 200


def test_sixteen_bits() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    pixels = decode(saved(Image.fromarray(ramp)), 64)
    assert pixels[0, 0].max() <= 2
    assert pixels[0, 63].min() >= 253
    assert near(pixels[0, 32], (130, 130, 130), 4)


def test_float_tiff() -> None:
    pixels = decode(saved(Image.fromarray(np.linspace(-1, 1, 64, dtype=np.float32)[None].repeat(64, 0)), "TIFF"), 64)
    assert pixels[0, 0].max() <= 2
    assert pixels[0, 63].min() >= 253


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = halves(60, 40)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that a camera would have applied
    turned = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(saved(turned, "JPEG", exif=exif, quality=95), 30)
    assert near(pixels[15, 3], RED, 25)
    assert near(pixels[15, 26], BLUE, 25)
    assert near(pixels[1, 15], WHITE, 25)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    for format in ("GIF", "WEBP", "PNG"):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:])
        assert near(decode(data, 8)[4, 4], RED, 30)


def test_large_jpeg_by_draft_is_near_the_full_decode() -> None:
    grid = np.indices((1200, 1600)).sum(0) // 100 % 2 * 200 + 20
    image = Image.fromarray(grid.astype(np.uint8)).convert("RGB")
    data = saved(image, "JPEG", quality=95)
    full = np.asarray(image.resize((224, 168), Image.Resampling.BICUBIC))
    assert np.abs(decode(data, 224)[28:196].astype(int) - full).mean() < 3


def test_extreme_shapes() -> None:
    assert decode(saved(Image.new("RGB", (4000, 1), RED)), 32).shape == (32, 32, 3)
    assert decode(saved(Image.new("RGB", (1, 1), RED)), 32)[16, 16].tolist() == list(RED)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its few bytes hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "zero bytes"),
        (b"hello, this is text", "not an image"),
        (b'<?xml version="1.0"?>\n<!-- x --><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\xef\xbb\xbf  <svg/>", "export it as PNG"),
        (bomb(200_000, 200_000), "100,000,000"),
        (bomb(11_000, 10_000), "11,000 × 10,000"),
        (bomb(100, 100), "broken"),
        (saved(halves(300, 300), "JPEG")[:400], "broken"),
        (saved(halves(300, 300))[:80], "broken"),
        (saved(halves(300, 300), "WEBP")[:60], "image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 200, "image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_bad_bytes_are_one_clear_error(data: bytes, says: str) -> None:
    with pytest.raises(BadImage, match=says) as error:
        decode(data, 32)
    assert "\n" not in str(error.value)
    assert error.value.fix


def test_limit_is_the_callers() -> None:
    data = saved(halves(200, 100))
    with pytest.raises(BadImage, match="200 × 100"):
        decode(data, 32, max_pixels=10_000)
    assert decode(data, 32, max_pixels=20_000).shape == (32, 32, 3)


def test_random_damage_never_escapes() -> None:
    rng = np.random.default_rng(0)
    whole = [saved(halves(), format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    for turn in range(150):
        data = bytearray(whole[turn % len(whole)])
        for place in rng.integers(0, len(data), 6):
            data[place] = rng.integers(256)
        with contextlib.suppress(BadImage):
            assert decode(bytes(data), 16).shape == (16, 16, 3)
