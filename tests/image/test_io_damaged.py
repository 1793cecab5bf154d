import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.damaged import png_header
from helpers.images import encode, noise, same
from PIL import Image, features

from captioner.errors import CaptionerError, ImageError
from captioner.image.io import open_image
from captioner.image.transforms import Preprocess


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message.isprintable()  # so no line break either
    assert "0x" not in message  # no <_io.BytesIO object at 0x...>
    return message


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("AVIF", {}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged EXIF and TIFF
def test_a_truncated_file_is_reported_or_complete(format: str, options: dict) -> None:
    if format in ("WEBP", "AVIF") and not features.check(format.lower()):
        pytest.skip(f"this Pillow has no {format}")
    data = encode(noise(), format, **options)
    whole = open_image(data)
    lengths = {*range(0, 64), *range(64, len(data), max(1, len(data) // 60)), len(data) - 1}
    refused = 0
    for length in sorted(lengths):
        try:
            image = open_image(data[:length])
        except ImageError:
            refused += 1
        else:  # only trailing bytes were cut: no pixel may be missing
            assert same(image, whole), f"half a picture passed at {length} of {len(data)} bytes"
    assert refused >= 0.9 * len(lengths)


def test_the_message_names_the_file_and_says_truncated(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    data = encode(noise(), "JPEG")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="truncated") as error:
        open_image(path)
    assert str(path) in one_line(error)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged EXIF and TIFF
def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(1)
    for format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"):
        if format == "WEBP" and not features.check("webp"):
            continue
        data = encode(noise(24, 16), format)
        for _ in range(60):
            damaged = bytearray(data)
            for position in rng.integers(0, min(len(data), 400), 4):
                damaged[position] = rng.integers(0, 256)
            try:
                image = open_image(bytes(damaged), max_pixels=100_000)
            except ImageError:
                continue
            assert image.mode == "RGB"


@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=r"60,000 x 50,000 .* 178,956,970") as error:
        open_image(png_header(60_000, 50_000))
    one_line(error)
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="truncated"):  # within the limit: no warning, decoded
        open_image(png_header(10_000, 10_000), max_pixels=100_000_000)


def test_max_pixels_is_exact_and_holds_for_every_source() -> None:
    image = Image.new("RGB", (20, 10))
    for source in (image, encode(image, "PNG"), np.asarray(image)):
        assert open_image(source, max_pixels=200).size == (20, 10)
        with pytest.raises(ImageError, match=r"20 x 10 = 200 pixels is over the limit of 199"):
            open_image(source, max_pixels=199)


@pytest.mark.parametrize("size", [(1, 1), (1, 50_000), (50_000, 1)])
def test_absurd_shapes_open(size: tuple[int, int]) -> None:
    image = open_image(encode(Image.new("RGB", size, "teal"), "PNG"), shrink_to=64)
    assert image.size == size
    assert Preprocess(8, (0, 0, 0), (1, 1, 1)).to_uint8(image).shape == (8, 8, 3)


def test_a_progressive_jpeg_may_have_half_as_many_pixels() -> None:
    """Its decoder keeps coefficients of the whole picture beside the pixels."""
    data = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG", progressive=True))
    size = data.index(b"\xff\xc2") + 5  # of the frame: height, then width
    data[size : size + 4] = struct.pack(">HH", 10_000, 10_000)
    with pytest.raises(ImageError, match=r"100,000,000 pixels is over the limit of 89,478,485"):
        open_image(bytes(data))


def test_a_picture_without_pixels() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        open_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"hello, this is no picture\n", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
        (b"%PDF-1.7\n", "a PDF document: save it as JPEG or PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?>\n<!-- Inkscape -->\n<svg>", "an SVG drawing"),
        (b"\xef\xbb\xbf\n<!doctype HTML><html>", "a web page"),
        (b"<html><body>404</body></html>", "a web page"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "a video"),
        (b"\x1aE\xdf\xa3" + bytes(40), "a video"),
        (b"RIFF\0\0\0\0AVI " + bytes(40), "a video"),
        (b"8BPS" + bytes(40), "a Photoshop file"),
        (b"\xff\x0a" + bytes(40), "a JPEG XL image"),
        (b"Rar!\x1a\x07\0", "a RAR archive"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "damaged or truncated JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "damaged or truncated PNG"),
        (b"\x89PNG\n\x1a\n" + bytes(40), "damaged image data"),  # sent as text
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "a web page"),
    ],
)
def test_files_that_are_no_pictures(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=said) as error:
        open_image(path)
    assert one_line(error).startswith(str(path))
    with pytest.raises(ImageError):
        open_image(content)


def test_a_heic_photo_opens_or_names_the_missing_package() -> None:
    with pytest.raises(ImageError, match=r"pillow-heif|HEIF"):
        open_image(b"\x00\x00\x00\x18ftypheic" + bytes(40))
    with pytest.raises(ImageError, match=r"pillow-heif|HEIF"):
        open_image(b"\x00\x00\x00\x18ftypmsf1" + bytes(40))  # AVIF may begin like this too


def test_places_that_are_no_files(tmp_path: Path) -> None:
    for source, said in (
        (tmp_path, "folder"),
        (tmp_path / "gone.jpg", "no such file"),
        (tmp_path / "line\nbreak.jpg", "no such file"),
        ("", "empty path"),
        ("a\0b.jpg", "null"),
        (os.fsdecode(b"caf\xe9.jpg"), "no such file"),
        ("x" * 5000, "too long"),
    ):
        with pytest.raises(ImageError, match=said) as error:
            open_image(source)
        one_line(error).encode("utf-8")


def test_pipes_and_devices_are_refused_without_blocking(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", os.devnull):
        with pytest.raises(ImageError, match="not a regular file"):
            open_image(path)


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"], io.BytesIO(b"x")])
def test_other_objects_are_refused(source: object) -> None:
    with pytest.raises(ImageError, match="not a picture"):
        open_image(source)  # type: ignore[arg-type]


def test_the_error_is_the_projects_own_and_keeps_its_cause() -> None:
    with pytest.raises(CaptionerError) as error:
        open_image(b"\xff\xd8\xff\xe0" + bytes(40))
    assert error.value.__cause__ is not None
