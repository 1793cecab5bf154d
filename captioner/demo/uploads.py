"""A visitor's files, captioned: single images and zips become results in order.

Each image is opened once, in a thread: what goes on is the square that the model sees and a
thumbnail, so that memory does not depend on how large the images are. No zip is unpacked to disk,
so no name in it leads anywhere, and the limits of `security` hold whatever its headers promise.
"""

from __future__ import annotations

import io
import itertools
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.batch.item import Item, Result, reason
from captioner.batch.runner import caption_items
from captioner.demo import security
from captioner.demo.messages import for_visitors
from captioner.errors import ImageError
from captioner.image.io import IMAGE_SUFFIXES, open_image
from captioner.utils.parallel import batched, map_ahead

if TYPE_CHECKING:
    from captioner.api import Captioner

_BATCH = 8  # images: few, so that others get their turn and the table grows steadily
_THUMBNAIL = (192, 144)  # pixels, at most
_CHUNK = 1 << 20  # bytes of a zip that are read at once


class Upload(NamedTuple):
    """A file that a visitor has sent.

    Attributes:
        path: Where Gradio has put it; `Upload.of` checks it.
        name: What the visitor calls it.
    """

    path: str
    name: str

    @classmethod
    def of(cls, path: str, name: str | None) -> Upload:
        """Check a file that a browser or a program names.

        Raises:
            gradio.Error: It is not an upload.
        """
        name = (name or path).replace("\\", "/").split("/")[-1]
        return cls(security.uploaded(path), shown_name(name))

    @property
    def item(self) -> Item:
        """Return the file as an image."""
        with suppress(OSError):
            if (size := Path(self.path).stat().st_size) > security.MAX_FILE_BYTES:
                return Item(self.name, error=_too_large(size))
        return Item(self.name, self.path)

    @property
    def is_zip(self) -> bool:
        """Return whether its name says so."""
        return self.name.lower().endswith(".zip")

    def items(self) -> Iterator[Item]:
        """Yield the file as an image, or the images of a zip."""
        item = self.item
        return read_zip(self.path, self.name) if self.is_zip and not item.error else iter([item])


@dataclass(frozen=True)
class OpenedImage(Item):
    """An item whose source is the square that the model sees.

    Attributes:
        thumbnail: JPEG; empty if there is no image.
    """

    thumbnail: bytes = b""


def count_uploads(files: Sequence[Upload]) -> int:
    """Return how many results `caption_uploads` gives at most."""
    count = sum(count_zip(file.path) if file.is_zip else 1 for file in files)
    return min(count, security.MAX_IMAGES + 1)


def caption_uploads(
    captioner: Captioner, files: Sequence[Upload], options: Mapping[str, Any]
) -> Iterator[tuple[OpenedImage, Result]]:
    """Caption image files and the images in zips, in order.

    Args:
        captioner: The model.
        files: What was uploaded.
        options: Decoding options, as for `Captioner.stream`.

    Yields:
        Each image with its caption or failure.

    Raises:
        ConfigError: The options contradict each other.
    """
    work = partial(open_item, captioner)
    with closing(map_ahead(work, _items(files), workers=2, depth=_BATCH)) as images:  # type: ignore[type-var]
        # One batch per call: `Captioner.stream` would spread several over all cores, which other
        # visitors need as well.
        for batch in batched(images, _BATCH):
            for image, result in caption_items(captioner, batch, batch_size=_BATCH, **options):
                assert isinstance(image, OpenedImage)
                yield image, result


def _items(files: Sequence[Upload]) -> Iterator[Item]:
    """Yield the images, up to the limit."""
    items = itertools.chain.from_iterable(file.items() for file in files)
    limit = security.MAX_IMAGES
    for number, item in enumerate(items):
        if number == limit:
            yield Item("…", error=f"only {limit} photos at a time: the rest is left out")
            return
        yield item


def open_item(captioner: Captioner, item: Item) -> OpenedImage:
    """Open an image as the command line does; on failure, return the item with an error."""
    shape = captioner.preprocess
    if item.error is not None:
        return OpenedImage(item.name, error=item.error)
    try:
        image = open_image(item.source, max_pixels=security.MAX_PIXELS, shrink_to=shape.size)
    except ImageError as error:
        return OpenedImage(item.name, error=for_visitors(reason(item.source, str(error))))
    square = shape.to_uint8(image)
    image.thumbnail(_THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return OpenedImage(item.name, square, thumbnail=buffer.getvalue())


# --------------------------------------------------------------------------------------------- zips


class _Bounded(io.FileIO):
    """A file that refuses to be read in large pieces.

    `zipfile` reads the list of members in one piece and makes an object of each: this bounds both
    (1 MiB is about 10,000 members).
    """

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _CHUNK:
            raise zipfile.BadZipFile("too many files in it")
        return super().read(_CHUNK if size is None or size < 0 else size)


def count_zip(path: str) -> int:
    """Return how many items `read_zip` gives at most."""
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            return sum(1 for _ in _members(archive))
    except Exception:  # reading it will say why
        return 1


def read_zip(path: str, name: str) -> Iterator[Item]:
    """Yield the images of a zip, one after the other.

    Hidden files and other kinds of files are left out. An image or an archive that cannot be read
    is an item with an error.

    Args:
        path: The archive.
        name: Its name in messages.
    """
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            unpacked, found = 0, 0
            for member in _members(archive):
                found += 1
                unpacked += member.file_size
                if unpacked > security.MAX_UNZIPPED_BYTES:
                    megabytes = security.MAX_UNZIPPED_BYTES >> 20
                    yield Item(name, error=f"over {megabytes} MB unpacked: the rest is left out")
                    return
                yield _read(archive, member)
        if not found:
            yield Item(name, error="no photos in this zip")
    except Exception as error:  # hostile headers raise anything: struct.error, UnicodeError, ...
        detail = f" ({error})" if isinstance(error, zipfile.BadZipFile) else ""
        yield Item(name, error=f"damaged zip{detail}".replace(path, name))


def _members(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    for member in archive.infolist():
        name = PurePosixPath(member.filename)
        link = stat.S_ISLNK(member.external_attr >> 16)
        if member.is_dir() or link or name.name.startswith(".") or "__MACOSX" in name.parts:
            continue
        if name.suffix.lower() in IMAGE_SUFFIXES:
            yield member


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Item:
    """Return one member as an item; `zipfile` reads no more of it than its header declares."""
    name = shown_name(_member_name(member))
    if member.flag_bits & 1:
        return Item(name, error="protected by a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Item(name, error="packed in an unusual way: make a plain zip")
    if member.file_size > security.MAX_FILE_BYTES:
        return Item(name, error=_too_large(member.file_size))
    data = io.BytesIO()
    try:
        with archive.open(member) as packed:
            shutil.copyfileobj(packed, data, _CHUNK)
    except Exception:  # as above; the members after it may be sound
        return Item(name, error="damaged in the zip")
    return Item(name, data.getvalue())


def shown_name(name: str) -> str:
    """Return a name for results, which leads nowhere if someone takes it for a path."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "/".join(part for part in parts if part not in ("/", "..", "."))[-200:] or "photo"


def _member_name(member: zipfile.ZipInfo) -> str:
    """Return a member's name; many Chinese programs write GBK where the format says CP437.

    GB2312 is the common part of GBK, and no Western name looks like it. The rest of GBK is tried
    only for names that would hold line-drawing characters in CP437.
    """
    if member.flag_bits & 0x800:  # declared as UTF-8
        return member.filename
    raw = member.filename.encode("cp437", "replace")
    encodings = ["utf-8", "gb2312"]
    if any("\u2500" <= character <= "\u259f" for character in member.filename):
        encodings.append("gbk")
    for encoding in encodings:
        with suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    return member.filename


def _too_large(size: int) -> str:
    return f"too large: {size:,} bytes, over the limit of {security.MAX_FILE_BYTES >> 20} MB"
