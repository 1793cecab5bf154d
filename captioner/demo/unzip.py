"""Photos in a ``.zip`` that a stranger has uploaded.

Nothing is ever unpacked to disk, so no name in it leads anywhere. What it may make us hold or do is
limited by `captioner.demo.limits`, whatever its headers promise.
"""

from __future__ import annotations

import io
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from captioner.batch.item import Item
from captioner.demo import limits
from captioner.image.io import IMAGE_SUFFIXES

_CHUNK = 1 << 20  # bytes that are read at once


class _Bounded(io.FileIO):
    """A file that refuses to be read in large pieces.

    ``zipfile`` reads the list of members in one piece and makes an object of each: this bounds both
    (1 MiB are about 10,000 members).
    """

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _CHUNK:
            raise zipfile.BadZipFile("too many files in it")
        return super().read(_CHUNK if size is None or size < 0 else size)


def count_photos(path: str) -> int:
    """How many items :func:`read_photos` will give at most."""
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            return sum(1 for _ in _members(archive))
    except Exception:  # reading it will say why
        return 1


def read_photos(path: str, name: str) -> Iterator[Item]:
    """The photos of a zip, one after the other.

    Hidden files and what does not end like a picture are left out. A photo that cannot be read, or
    an archive that cannot, is an item with an error.

    Args:
        path: The archive.
        name: What to call it in messages.
    """
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            unpacked, found = 0, 0
            for member in _members(archive):
                found += 1
                unpacked += member.file_size
                if unpacked > limits.UNPACKED:
                    megabytes = limits.UNPACKED >> 20
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
    """One member as an item; ``zipfile`` reads no more of it than its header declares."""
    name = shown_name(member.filename)
    if member.flag_bits & 1:
        return Item(name, error="protected by a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Item(name, error="packed in an unusual way: make a plain zip")
    if member.file_size > limits.PHOTO:
        return Item(name, error=f"too large: {member.file_size:,} bytes")
    data = io.BytesIO()
    try:
        with archive.open(member) as packed:
            shutil.copyfileobj(packed, data, _CHUNK)
    except Exception:  # as above; the members after it may be sound
        return Item(name, error="damaged in the zip")
    return Item(name, data.getvalue())


def shown_name(name: str) -> str:
    """A name for rows and files of results, which leads nowhere if someone takes it for a path."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "/".join(part for part in parts if part not in ("/", "..", "."))[-200:] or "photo"
