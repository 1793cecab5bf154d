import io
from pathlib import Path

import numpy as np
import pytest
from helpers.images import encode, noise, same
from PIL import Image, features

from captioner.errors import ImageError
from captioner.image.io import IMAGE_SUFFIXES, open_image

WIDTH, HEIGHT = 40, 24  # a landscape picture, so that a wrong turn shows in the size


def quadrants() -> Image.Image:
    """Red, green / blue, white quarters: every flip and turn gives another picture."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    image.paste((220, 20, 20), (0, 0, WIDTH // 2, HEIGHT // 2))
    image.paste((20, 200, 20), (WIDTH // 2, 0, WIDTH, HEIGHT // 2))
    image.paste((20, 20, 220), (0, HEIGHT // 2, WIDTH // 2, HEIGHT))
    return image


def distance(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


# ------------------------------------------------------------------------------ kinds of source


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path) -> None:
    data = encode(quadrants(), "PNG")
    path = tmp_path / "quadrants.png"
    path.write_bytes(data)
    array = np.asarray(quadrants())
    for source in (path, str(path), data, quadrants(), array, Image.open(path)):
        image = open_image(source)
        assert type(image) is Image.Image
        assert image.mode == "RGB"
        assert same(image, quadrants())


def test_a_pil_source_is_left_alone() -> None:
    source = Image.open(io.BytesIO(encode(noise(320, 240), "JPEG")))
    image = open_image(source, shrink_to=32)
    image.paste("black", (0, 0, 10, 10))
    assert source.size == (320, 240)
    assert not same(source.convert("RGB"), image)
    assert source.info  # its metadata too


@pytest.mark.parametrize(
    "array",
    [
        np.full((5, 7), 51, np.uint8),
        np.full((5, 7, 1), 51, np.uint8),
        np.full((5, 7, 3), 51, np.uint8),
        np.full((5, 7, 3), 51 * 257, np.uint16),
        np.full((5, 7), 51 * 257, ">u2"),
        np.full((5, 7, 3), 0.2, np.float32),
        np.full((5, 7, 3), 0.2, np.float64),
        np.full((5, 7), 0.2, np.float16),
        np.full((10, 14, 3), 51, np.uint8)[::2, ::-2],  # not contiguous
    ],
    ids=lambda a: f"{a.dtype.str}{a.shape}",
)
def test_arrays_of_every_accepted_type(array: np.ndarray) -> None:
    image = open_image(array)
    assert image.size == (7, 5)
    assert set(np.asarray(image).ravel().tolist()) == {51}


def test_bool_and_rgba_arrays() -> None:
    assert (
        np.asarray(open_image(np.eye(4, dtype=bool)))[..., 0].tolist()
        == (255 * np.eye(4, dtype=int)).tolist()
    )
    clear = np.zeros((3, 3, 4), np.uint8)  # black, but fully transparent
    assert np.asarray(open_image(clear)).min() == 255


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 5, 7), np.uint8), "shape"),
        (np.zeros((2, 2, 2), np.uint8), "shape"),
        (np.zeros(9, np.uint8), "shape"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 0), np.float32), "no pixels"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4), np.complex64), "complex64"),
        (np.zeros((4, 4), object), "object"),
        (np.full((4, 4), 200.0), "255"),
        (np.full((4, 4), -0.5), "0..1"),
        (np.array([[0.5, np.nan]]), "nan"),
        (np.array([[0.5, np.inf]]), "inf"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        open_image(array)


# -------------------------------------------------------------------------- modes and formats


MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV LAB I F I;16 I;16L I;16B"


@pytest.mark.parametrize("mode", MODES.split())
def test_every_pillow_mode_opens(mode: str) -> None:
    if mode == "LAB":
        pytest.importorskip("PIL.ImageCms")
    grey = Image.new("L", (6, 4), 255)
    grey.paste(0, (0, 0, 3, 4))
    if mode in ("I;16", "I;16L", "I;16B"):
        order = ">u2" if mode.endswith("B") else "<u2"
        data = (np.asarray(grey).astype(order) * 257).tobytes()
        image = Image.frombytes(mode, grey.size, data)
    elif mode in ("La", "PA", "RGBa"):
        image = grey.convert({"La": "LA", "PA": "P", "RGBa": "RGBA"}[mode]).convert(mode)
    elif mode == "LAB":
        image = Image.merge("LAB", [grey, Image.new("L", (6, 4), 128), Image.new("L", (6, 4), 128)])
    else:
        image = grey.convert("RGB").convert(mode)
    got = np.asarray(open_image(image)).astype(int)
    assert got.shape == (4, 6, 3)
    assert got[:, :3].max() <= 2
    assert got[:, 3:].min() >= 253


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 3.0),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 3.0),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("GIF", {}, 2),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("PPM", {}, 0),
        ("AVIF", {"quality": 95}, 4),
    ],
)
def test_every_format_opens(format: str, options: dict, tolerance: float, tmp_path: Path) -> None:
    if format in ("WEBP", "AVIF") and not features.check(format.lower()):
        pytest.skip(f"this Pillow has no {format}")
    data = encode(quadrants(), format, **options)
    path = tmp_path / "photo.dat"  # content decides, not the ending
    path.write_bytes(data)
    for source in (data, path):
        assert distance(open_image(source), quadrants()) <= tolerance


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    for clear in (rgba, rgba.convert("LA")):
        assert open_image(encode(clear, "PNG")).getpixel((1, 1)) == (255, 255, 255)
    assert open_image(half).getpixel((1, 1)) == pytest.approx((127, 127, 127), abs=1)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    assert open_image(encode(palette, "PNG")).getpixel((0, 0)) == (200, 0, 0)
    for transparency in (1, b"\xff\x00"):
        data = encode(palette, "PNG", transparency=transparency)
        assert open_image(data).getpixel((0, 0)) == (255, 255, 255)
    keyed = encode(Image.new("RGB", (4, 4), (9, 8, 7)), "PNG", transparency=(9, 8, 7))
    assert open_image(keyed).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_jpeg_is_not_a_negative() -> None:
    # Pillow writes Adobe's inverted CMYK, as Photoshop does.
    data = encode(quadrants().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert distance(open_image(data), quadrants()) < 4


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format: str) -> None:
    ramp = np.linspace(0, 65535, 256 * 4).astype("<u2").reshape(4, 256)
    image = Image.frombytes("I;16", (256, 4), ramp.tobytes())
    for source in (image, encode(image, format), ramp):
        got = np.asarray(open_image(source))[..., 0]
        assert np.abs(got - ramp / 257).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([0.0, 65535 / 2, 65535.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([3e9, 3e9, 3e9], [0, 0, 0]),
    ],
)
def test_float_pictures(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert image.mode == "F"
    assert np.asarray(open_image(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(format: str) -> None:
    if format == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    red, green, blue = open_image(data).getpixel((3, 3))
    assert red > 240
    assert green < 20
    assert blue < 20


# ----------------------------------------------------------------------------- orientation

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),  # stored so that turning it clockwise makes it upright
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def stored(orientation: int, format: str = "PNG", **options) -> bytes:
    """The quadrants picture as a camera held in `orientation` stores it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.ascontiguousarray(TURNS[orientation](np.asarray(quadrants())))
    return encode(Image.fromarray(pixels), format, exif=exif, **options)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(orientation: int, format: str) -> None:
    if format == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    data = stored(orientation, format, **({} if format == "TIFF" else {"quality": 95}))
    image = open_image(data)
    assert distance(image, quadrants()) < 6
    assert same(open_image(image), image)
    assert same(open_image(Image.open(io.BytesIO(data))), image)


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_exif_block_is_ignored(exif: bytes) -> None:
    assert distance(open_image(encode(quadrants(), "JPEG", exif=exif, quality=95)), quadrants()) < 6


def test_an_impossible_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert same(open_image(encode(quadrants(), "PNG", exif=exif)), quadrants())


# --------------------------------------------------------------------------------- shrink_to


@pytest.mark.parametrize("size", [(640, 480), (333, 1000), (64, 48), (1700, 300), (97, 95)])
@pytest.mark.parametrize("target", [1, 32, 96, 224])
def test_shrinking_keeps_the_shorter_side_and_the_content(
    size: tuple[int, int], target: int
) -> None:
    photo = quadrants().resize(size)
    data = encode(photo, "JPEG", quality=95)
    image = open_image(data, shrink_to=target)
    assert min(image.size) >= min(target, *size)
    scale = next(k for k in (1, 2, 4, 8) if image.size == (-(-size[0] // k), -(-size[1] // k)))
    assert scale == 8 or min(size) < 2 * scale * target  # one more halving would be too small
    assert distance(image, photo.resize(image.size)) < 8


def test_shrinking_and_turning_together() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = quadrants().resize((800, 480))
    data = encode(photo.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    image = open_image(data, shrink_to=120)
    assert image.size == (200, 120)
    assert distance(image, photo.resize((200, 120))) < 6


def test_other_formats_ignore_shrink_to() -> None:
    assert same(open_image(encode(noise(), "PNG"), shrink_to=8), noise())


def test_suffixes_are_lower_case_endings() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp"} <= IMAGE_SUFFIXES
    assert all(s == s.lower() and s.startswith(".") for s in IMAGE_SUFFIXES)
    assert not {".eps", ".pdf", ".svg", ".txt"} & IMAGE_SUFFIXES
