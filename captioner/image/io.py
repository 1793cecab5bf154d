"""Open any image safely: path, bytes, PIL image or array -> upright 8-bit RGB.

Whatever is wrong with an image becomes one `ImageError` whose single line names the file and the
reason, so that a run over millions of files can report each bad one and continue.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image

from captioner.errors import ImageError
from captioner.image.foreign import describe_foreign_file
from captioner.image.pixels import full_range, grey_16_to_8_bits, upright_rgb
from captioner.image.salvage import count_scans, has_plain_edge, with_tails, without_metadata

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray | Mapping[str, Any]"
)

MAX_PIXELS = 178_956_970
"""Most pixels that an image may declare: the number at which Pillow itself refuses."""

# Decoders that hold several copies of the image, 15 to 20 bytes a pixel where others hold 4.
_MEMORY_HEAVY = ("WEBP", "AVIF", "HEIF")
_MAX_BYTES = 1 << 28  # of a file that they read whole
_MAX_SCANS = 100  # of a progressive JPEG; the usual number is 10
_PLANAR, _BITS = 284, 258  # TIFF tags
_CHECKED = 1 << 24  # pixels of a JPEG that is decoded anew to look for missing rows
_AT_ONCE = 1 << 26  # pixels that threads together may be decoding, unless it is a single image

# Plain pixel formats only. Pillow also reads EPS, PDF-like and vendor formats, some of which start
# other programs; a captioning service must not hand them a stranger's file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif",
})
# fmt: on
"""Lower-case file endings that a folder search takes for images."""


def open_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, shrink_to: int | None = None
) -> Image.Image:
    """Open an image of any kind as an upright RGB image.

    EXIF orientation is applied; transparency is laid on white; CMYK, YCbCr, LAB, palette, 1-bit,
    16-bit, 32-bit and float images become 8-bit RGB (16 bits are scaled, not clipped); of an
    animation the first frame is taken (of a PIL image, the current one). The result carries no
    metadata, so opening it once more changes nothing. A PIL source is left as it is.

    Args:
        source: Path, encoded bytes, binary file object, PIL image, or an image of Hugging Face
            `datasets` (`{"bytes": ..., "path": ...}`); or an array or tensor, (height, width[, 1, 3
            or 4]) or (1, 3 or 4, height, width), of uint8, uint16, bool, or floats within 0..1.
        max_pixels: Refuse images that declare more pixels than this, before decoding them.
        shrink_to: Let the JPEG decoder shrink by 2, 4 or 8 while the shorter side stays at least
            this long: much quicker for camera images. Other formats keep their full size up to 16
            megapixels; beyond, they are averaged down to no less than three times this side.

    Raises:
        ImageError: The image cannot be used; one line names it and the reason. Damaged and
            truncated files are refused too: a half-grey image would get a confident wrong caption.
    """
    try:
        plain = _plain(source)
        if isinstance(plain, np.ndarray):
            image = upright_rgb(_from_array(plain, max_pixels), None)
        elif isinstance(plain, Image.Image):
            image = upright_rgb(_decode(plain, max_pixels, None), None)
        else:
            with _open_stream(plain) as stream:
                image = _read(stream, max_pixels, shrink_to)
    except Exception as error:  # decoders raise anything: SyntaxError, struct.error, MemoryError...
        raise ImageError(f"{_name(source)}: {_explain(error)}") from error
    image.info = {}  # a kept EXIF block would turn the image a second time
    return image


def _plain(source: Any) -> Any:
    """Turn an image of Hugging Face, a file object or a tensor into bytes, a path or an array."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, (Image.Image, np.ndarray)):
        return source
    if hasattr(source, "read"):
        if source.seekable():  # it may have been read before, or just been written
            source.seek(0)
        return source.read()
    if hasattr(source, "detach"):  # a tensor, maybe on a GPU
        source = source.detach().cpu()
    return np.asarray(source) if hasattr(source, "__array__") else source


def _read(stream: IO[bytes], max_pixels: int, shrink_to: int | None) -> Image.Image:
    """Read an encoded image, also where only what lies beside its pixels is damaged.

    Raises:
        ImageError: The pixels cannot be used.
    """
    try:
        image = _read_strictly(stream, max_pixels, shrink_to)
    except _DamagedError:
        if (bare := without_metadata(stream)) is not None:
            with contextlib.suppress(ImageError):
                return _read_strictly(bare, max_pixels, shrink_to)
        with contextlib.suppress(ImageError):
            copies = with_tails(stream, ended=False)
            limit = min(max_pixels, _AT_ONCE)
            if copies and (sound := _same_image(copies, limit, shrink_to)):
                return sound
        raise
    stream.seek(0)
    complete = True
    if stream.read(2) == b"\xff\xd8" and has_plain_edge(image):
        # The decoder fills missing rows with one colour and reports nothing.
        with contextlib.suppress(ImageError):  # too large to be decoded again
            copies = with_tails(stream, ended=True)
            limit = min(max_pixels, _CHECKED)
            complete = not copies or _same_image(copies, limit, shrink_to) is not None
    if not complete:
        raise _DamagedError("damaged or truncated JPEG data (rows are missing)")
    return image


def _same_image(
    copies: Iterable[IO[bytes]], max_pixels: int, shrink_to: int | None
) -> Image.Image | None:
    """Return the image of `with_tails`' copies; None if they differ."""
    digests = set()
    for copy in copies:  # one by one: they may be large
        image = _read_strictly(copy, max_pixels, shrink_to)
        digests.add(hashlib.blake2b(image.tobytes()).digest())
    return image if len(digests) == 1 else None


def _read_strictly(stream: IO[bytes], max_pixels: int, shrink_to: int | None) -> Image.Image:
    image = _identify(stream)
    _refuse_separate_planes(image)
    if "progressive" in image.info:
        _check_scans(stream)
    with _room.taken(_pixels_to_decode(image, max_pixels, shrink_to)):
        return upright_rgb(full_range(_decode(image, max_pixels, shrink_to)), shrink_to)


def _refuse_separate_planes(image: Image.Image) -> None:
    """Refuse a TIFF with 16 bits per colour in separate planes, of which Pillow makes noise."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits = tags.get(_BITS, (8,))
    if tags.get(_PLANAR) == 2 and len(bits) > 1 and max(bits) > 8:
        raise ImageError(
            "a TIFF of 16-bit colours in separate planes: save it with interleaved colours"
            " (`tiffcp -p contig`) or with 8 bits"
        )


def _name(source: object) -> str:
    """Return a name of the source for messages: one printable line, whatever the file's name."""
    if isinstance(source, Mapping):
        source = source.get("path") or source.get("bytes")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source):,} bytes>"
    if isinstance(source, Image.Image):
        source = getattr(source, "filename", "") or f"<PIL {source.mode} image>"
    if not isinstance(source, (str, os.PathLike)):
        return f"<{type(source).__name__}>"
    path = os.fsdecode(source).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in path) or "<empty path>"


def _explain(error: Exception) -> str:
    """Explain an exception of the file system or a decoder to a user, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, ImageError):
        return text
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, FileNotFoundError):
        if re.match(r"https?:/", str(error.filename)):
            return "a web address: download the image first"
        return "no such file"
    if isinstance(error, OSError) and error.errno:
        return error.strerror or text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _open_stream(source: object) -> IO[bytes]:
    """Open a path or wrap bytes; anything but a regular file is refused at once."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ImageError("no data (0 bytes)")
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError("not a picture: give a path, bytes, a file, a PIL image or an array")
    status = os.stat(source)
    if stat.S_ISDIR(status.st_mode):
        raise ImageError("a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or device could block for ever
        raise ImageError("not a regular file")
    if status.st_size == 0:
        raise ImageError("the file is empty (0 bytes)")
    return open(source, "rb")


@functools.cache
def _load_plugins() -> None:
    """Register the decoders of `FORMATS` and no others; pillow-heif joins where installed."""
    Image.preinit()
    for plugin in ("PIL.WebPImagePlugin", "PIL.TiffImagePlugin", "PIL.AvifImagePlugin"):
        with contextlib.suppress(ImportError):
            importlib.import_module(plugin)
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def _identify(stream: IO[bytes]) -> Image.Image:
    """Choose the decoder by content and read the header; pixels are not decoded yet.

    `Image.open` would apply a process-wide limit and call a damaged JPEG unidentified. Here the
    limit is the caller's and the message names the format.
    """
    _load_plugins()
    prefix = stream.read(16)
    failure: ImageError | None = None
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or accept is None or accept(prefix) is not True:
            continue
        if name in _MEMORY_HEAVY and (size := stream.seek(0, os.SEEK_END)) > _MAX_BYTES:
            raise ImageError(f"too large for a {name} picture: {size:,} bytes")
        stream.seek(0)
        try:
            return factory(stream, "")
        except Exception as error:
            failure = _damaged(name, error)  # AVIF and HEIF share a signature: try on
            failure.__cause__ = error
    stream.seek(0)
    foreign = describe_foreign_file(stream.read(512))
    is_heic = prefix[4:8] == b"ftyp" and prefix[8:12] not in (b"avif", b"avis")
    if failure is not None and not (foreign and is_heic):
        raise failure
    if foreign and foreign.startswith("an image, not"):
        raise ImageError("damaged image data: its first bytes are not what they must be")
    if foreign:
        raise ImageError(foreign)
    raise ImageError("not a picture in a known format (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF)")


class _DamagedError(ImageError):
    """A file that a decoder gave up on."""


def _damaged(format_name: str | None, error: Exception) -> ImageError:
    """Return the error for a file that a decoder gave up on."""
    if isinstance(error, (MemoryError, Image.DecompressionBombError)):
        return ImageError(_explain(error))
    return _DamagedError(f"damaged or truncated {format_name or 'image'} data ({_explain(error)})")


class _Room:
    """Bounds the memory of all threads that decode images at the same time.

    Args:
        pixels: Pixels that may be decoded together. A larger image waits until it is alone.
    """

    def __init__(self, pixels: int):
        self.pixels = pixels
        self._taken = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait for room for an image, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self.pixels)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_room = _Room(_AT_ONCE)


def _pixels_to_decode(image: Image.Image, max_pixels: int, shrink_to: int | None) -> int:
    """Return how many pixels, of 4 bytes each, a decoder will hold in memory."""
    width, height = image.size
    progressive = "progressive" in image.info  # such a decoder collects the whole image
    largest = max(max_pixels, MAX_PIXELS)
    if image.format in _MEMORY_HEAVY or (progressive and image.mode == "CMYK"):
        _check_size(width, height, min(max_pixels, largest // 3))
        return 4 * width * height
    if progressive and image.mode != "L":  # 3 bytes a pixel before 4, or 6 in full colour
        _check_size(width, height, min(max_pixels, largest // 2))
        return 2 * width * height
    if image.format not in ("JPEG", "MPO") or progressive:
        return width * height
    ratio = max(1, min(width, height) // shrink_to) if shrink_to else 1
    return width * height // min(8, 1 << (ratio.bit_length() - 1)) ** 2


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the picture has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{width:,} x {height:,} = {width * height:,} pixels is over the limit of "
            f"{max_pixels:,} (a decompression bomb?)"
        )


def _check_scans(stream: IO[bytes]) -> None:
    """Refuse a JPEG of a few kilobytes that would keep the decoder busy for hours.

    The decoder goes through the whole image once for each scan, however empty the scan is.
    """
    position = stream.tell()
    scans = count_scans(stream)
    stream.seek(position)
    if scans > _MAX_SCANS:
        raise ImageError(f"a JPEG of {scans:,} scans: over the limit of {_MAX_SCANS} (a bomb?)")


def _decode(image: Image.Image, max_pixels: int, shrink_to: int | None) -> Image.Image:
    """Decode the pixels of an image whose declared size is within the limit."""
    _check_size(*image.size, max_pixels)
    try:
        if shrink_to is not None:
            # A square bound is valid before and after EXIF rotation.
            image.draft(None, (max(1, shrink_to), max(1, shrink_to)))
        image.load()
    except Exception as error:
        raise _damaged(image.format, error) from error
    return image


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    """Make an L, RGB or RGBA image from an array.

    Raises:
        ImageError: The array has another shape or type, or values out of range.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    elif array.ndim == 3 and array.shape[2] not in (3, 4) and array.shape[0] in (1, 3, 4):
        return _from_array(np.moveaxis(array, 0, 2), max_pixels)  # channels first, as in PyTorch
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(
            f"an array of shape {array.shape} is not a picture: "
            "expected (height, width), (height, width, channels) or (channels, height, width)"
        )
    _check_size(array.shape[1], array.shape[0], max_pixels)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = grey_16_to_8_bits(array)
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # also true of NaN
            raise ImageError(
                f"float pixels must lie within 0..1, found {low:g}..{high:g}: "
                "scale them (for instance divide by 255)"
            )
        array = np.round(array.astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"pixels of type {array.dtype}: expected uint8, uint16, bool or float")
    return Image.fromarray(np.ascontiguousarray(array))
