"""Files that a decoder refuses although their pixels are sound, made readable.

A damaged or huge text, colour profile or thumbnail beside the pixels stops Pillow; so does a JPEG
that lacks its end marker. Here such parts are left out, or the marker is put back. Nothing is
guessed: pixels that are missing or damaged stay an error.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import IO

from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MAX_BYTES = 1 << 28  # of a JPEG that is searched for its scans
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # neither a stuffed byte nor a restart
_END = b"\xff\xd9"
_SOS, _APP0, _APP1, _APP14, _APP15, _COM = 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_MIN_BYTES = 14  # of a segment with JFIF's or Adobe's colours
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF markers
_TAILS = (_END, bytes(range(1, 255)) * 16 + _END, b"\x93\x5a\x2c" * 1000 + _END)


def without_metadata(stream: IO[bytes]) -> IO[bytes] | None:
    """Return a PNG or JPEG file without what it carries beside the pixels.

    What bears on the pixels stays: transparency, orientation (EXIF), Adobe's colour transform.

    Returns:
        A file that reads from `stream`; None if there is nothing to leave out.
    """
    stream.seek(0)
    head = stream.read(8)
    if head == PNG_SIGNATURE:
        spans = list(_png_spans(stream))
    elif head.startswith(b"\xff\xd8"):
        spans = list(_jpeg_spans(stream))
    else:
        return None
    if len(spans) < 2:
        return None
    return io.BufferedReader(_Spans(stream, spans))


def count_scans(stream: IO[bytes]) -> int:
    """Return the number of scans of a JPEG, those of its thumbnail or of appended files excluded.

    Raises:
        ValueError: The file is too large to be searched.
    """
    return sum(marker == _SOS for marker, _, _ in _segments(_read(stream)))


def with_tails(stream: IO[bytes], *, ended: bool) -> tuple[IO[bytes], ...] | None:
    """Return copies of a JPEG with different bytes between its pixels and its end marker.

    If all pixels are there, no decoder looks at these bytes and the copies give equal images;
    pixels that are missing would be made of them.

    Args:
        stream: The file.
        ended: Whether to copy a file that has its end marker, or one that lacks it.

    Returns:
        The copies; None for a file of the other kind, or with too few scans for all pixels.
    """
    try:
        data = _read(stream)
    except ValueError:
        return None
    end: int | None = None
    wanted: set[tuple[int, int]] = set()  # (component, coefficient)
    found: set[tuple[int, int]] = set()
    for marker, body, start in _segments(data):
        if marker == _END[1]:
            end = start
        if marker in _FRAMES and len(body) >= 6:
            wanted |= {(body[i], k) for i in range(6, len(body) - 2, 3) for k in range(64)}
        elif marker == _SOS and body and len(body) >= 2 * body[0] + 4:
            first, last, approximation = body[2 * body[0] + 1 : 2 * body[0] + 4]
            if approximation & 15 == 0:  # to the last bit
                parts = body[1 : 2 * body[0] : 2]
                found |= {(part, k) for part in parts for k in range(first, last + 1)}
    if (end is not None) != ended or not wanted or not wanted <= found:
        return None
    data = data[:end].removesuffix(_END[:1])  # half a marker
    return tuple(io.BytesIO(data + tail) for tail in _TAILS)


def has_plain_edge(image: Image.Image) -> bool:
    """Return whether all pixels of an edge are equal, as where the last rows are missing."""
    width, height = image.size
    lines = ((0, 0, width, 1), (0, height - 1, width, height))
    columns = ((0, 0, 1, height), (width - 1, 0, width, height))  # EXIF may have turned it
    extrema = (image.crop(box).getextrema() for box in lines + columns)
    return any(all(low == high for low, high in bands) for bands in extrema)  # type: ignore[misc]


class _Spans(io.RawIOBase):
    """A file made of spans of another.

    Args:
        file: The other file.
        spans: (start, length) of each.
    """

    def __init__(self, file: IO[bytes], spans: list[tuple[int, int]]) -> None:
        self._file = file
        self._spans = spans
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another position."""
        size = sum(length for _, length in self._spans)
        start = (0, self._position, size)[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read the rest of the span at the position, or as much as fits."""
        skip = self._position
        for start, length in self._spans:
            if skip < length:
                self._file.seek(start + skip)
                data = self._file.read(min(length - skip, len(buffer)))
                buffer[: len(data)] = data
                self._position += len(data)
                return len(data)
            skip -= length
        return 0


def _png_spans(stream: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Yield where the chunks lie that make up the pixels, neighbours as one."""
    begin = position = 0
    stream.seek(8)
    end = 8
    while len(header := stream.read(8)) == 8:
        position, end = end, end + 12 + int.from_bytes(header[:4], "big")
        kind = header[4:]
        ancillary = kind[:1].islower() and kind != b"tRNS"
        if kind == b"eXIf" and end - position < 1 << 20:
            body = stream.read(end - position - 12)
            ancillary = zlib.crc32(kind + body) != int.from_bytes(stream.read(4), "big")
        if ancillary:
            if position > begin:
                yield begin, position - begin
            begin = end
        stream.seek(end)
        if kind == b"IEND":
            break
    if end > begin:
        yield begin, end - begin


def _jpeg_spans(stream: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Yield where the segments lie that make up the pixels, neighbours as one."""
    begin, position = 0, 2
    while True:
        stream.seek(position)
        header = stream.read(4)
        if len(header) < 4 or header[0] != 0xFF or header[1] == _SOS:
            break
        end = position + 2 + int.from_bytes(header[2:], "big")
        application = _APP0 < header[1] <= _APP15 and header[1] not in (_APP1, _APP14)
        short = header[1] in (_APP0, _APP14) and end - position < _MIN_BYTES  # decoders skip these
        if application or short or header[1] == _COM:
            if position > begin:
                yield begin, position - begin
            begin = end
        position = end
    size = stream.seek(0, io.SEEK_END)
    if size > begin:
        yield begin, size - begin


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield (marker, body, start) of each segment of a JPEG, up to its end marker."""
    position = 2
    while match := _MARKER.search(data, position):
        marker = match[1][0]
        length = int.from_bytes(data[match.end() : match.end() + 2], "big")
        yield marker, data[match.end() + 2 : match.end() + length], match.start()
        if marker == _END[1]:
            return
        position = match.end() + max(length, 2)


def _read(stream: IO[bytes]) -> bytes:
    stream.seek(0)
    data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"over {_MAX_BYTES:,} bytes")
    return data
