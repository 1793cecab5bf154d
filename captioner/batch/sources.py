"""Sources of images: files, folders, globs, lists, archives and tables become a stream of items.

Sources are generators: a million paths are never held at once. A problem with a source (a folder
that cannot be read, a damaged archive, a bad line of a list) becomes an item with an error in its
place, and so a row of the result like any other failure.

The same files always come in the same order, so that a run can be resumed: arguments as given,
lists and archives by line, folders sorted by name.
"""

from __future__ import annotations

import glob
import logging
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from captioner.batch.item import Item
from captioner.batch.lists import LIST_SUFFIXES, read_list, read_stdin
from captioner.batch.parquet import PARQUET_SUFFIXES, count_rows, read_parquet
from captioner.image.io import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

STDIN = "-"
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
STRIP_SUFFIX = ".attention.png"
"""Ending of the attention strips, which a search of a folder leaves out."""

_MAX_BYTES = 256 * 1024**2
"""Largest archive member that is read: several are held in memory at once."""
_MAX_HEADER = 1024**2
"""Longest name or extended attribute, which `tarfile` reads before it gives the member."""
_READ_WHOLE = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)

_Reader: TypeAlias = Callable[[str, "str | None"], Iterator[Item]]  # (path, image_root) -> items


def open_sources(
    paths: Iterable[str],
    *,
    recursive: bool = False,
    image_root: str | None = None,
    column: str | None = None,
    null_separated: bool = False,
) -> Iterator[Item]:
    """Yield all images of all sources, in order.

    Args:
        paths: Files, folders, glob patterns, `-` for names (or one image) on standard input,
            `.txt`/`.csv`/`.tsv`/`.jsonl`/`.json` lists, `.tar` archives, `.parquet` tables, folders
            of such tables.
        recursive: Search subfolders too.
        image_root: The folder that relative names in lists start from; None tries the list's own
            folder, its `images` folder (COCO JSON), then the working directory.
        column: The column of Parquet tables that holds the images; None finds it by its name.
        null_separated: Names on standard input end in NUL, as `find -print0` writes them.
    """
    empty = []
    found = 0
    for path in paths:
        before = found
        for item in _open(
            path, recursive, image_root, partial(read_parquet, column=column), null_separated
        ):
            found += 1
            yield item
        if found == before:
            empty.append(path)
    if found and empty:  # if there is nothing at all, the caller complains
        logger.warning("no photos in %s", ", ".join(empty))


def expand(path: str, *, recursive: bool = False) -> Iterator[str]:
    """Yield the files that a glob pattern or a folder of tables stands for, other paths as is."""
    if path != STDIN and glob.has_magic(path) and not os.path.lexists(path):
        yield from _matches(path)
    elif os.path.isdir(path) and next(_folder(path, recursive, set()), None) is None:
        yield from _tables(path)
    else:
        yield path


def is_container(path: str) -> bool:
    """Return whether a file has images inside: an archive, or a table (which may name them)."""
    return _has_suffix(path, (*ARCHIVE_SUFFIXES, *PARQUET_SUFFIXES)) and not os.path.isdir(path)


def count_images(
    paths: Sequence[str],
    *,
    recursive: bool = False,
    image_root: str | None = None,
    column: str | None = None,
) -> int | None:
    """Return how many items `open_sources` yields, None if counting means reading it all."""
    if any(path == STDIN or _has_suffix(path, ARCHIVE_SUFFIXES) for path in paths):
        return None
    return sum(1 for path in paths for _ in _open(path, recursive, image_root, count_rows))


def _open(
    path: str,
    recursive: bool,
    image_root: str | None,
    read_table: _Reader,
    null_separated: bool = False,
) -> Iterator[Item]:
    """Yield the images of one argument."""
    if path == STDIN:
        return read_stdin(null_separated)
    if os.path.isdir(path):
        return _folder_or_tables(path, recursive, image_root, read_table)
    if glob.has_magic(path) and not os.path.lexists(path):
        return _glob(path, image_root, read_table)
    return _file(path, image_root, read_table)


def _file(path: str, image_root: str | None, read_table: _Reader) -> Iterator[Item]:
    """Yield the images of one file; its ending tells a list, a table, an archive or an image."""
    if _has_suffix(path, ARCHIVE_SUFFIXES):
        return read_archive(path)
    if _has_suffix(path, PARQUET_SUFFIXES):
        return read_table(path, image_root)
    if _has_suffix(path, LIST_SUFFIXES):
        return read_list(path, image_root)
    return iter((Item(path, path),))


def _glob(pattern: str, image_root: str | None, read_table: _Reader) -> Iterator[Item]:
    """Yield the images of the files that match; folders are left out (`**` enters them)."""
    for path in _matches(pattern):
        yield from _file(path, image_root, read_table)


def _folder_or_tables(
    folder: str, recursive: bool, image_root: str | None, read_table: _Reader
) -> Iterator[Item]:
    """Yield the images of a folder; if it has none, those of its Parquet tables (Spark's way)."""
    empty = True
    for item in _folder(folder, recursive, set()):
        empty = False
        yield item
    if empty:
        for path in _tables(folder):
            yield from read_table(path, image_root)


def _matches(pattern: str) -> Iterator[str]:
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if not os.path.isdir(path) and not path.endswith(STRIP_SUFFIX):
            yield path


def _tables(folder: str) -> Iterator[str]:
    for path in sorted(glob.iglob(os.path.join(glob.escape(folder), "*"))):
        if _has_suffix(path, PARQUET_SUFFIXES) and not os.path.isdir(path):
            yield path


def _folder(folder: str, recursive: bool, visited: set[tuple[int, int]]) -> Iterator[Item]:
    """Yield the images of a folder by their ending, then those of its subfolders.

    Hidden files are left out. Links to folders are followed, but each folder is visited once, so
    that loops end.
    """
    files: list[str] = []
    folders: list[str] = []
    try:
        status = os.stat(folder)
        if status.st_ino and (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):  # such as macOS's ._photo.jpg, which is not an image
                    continue
                if recursive and _is_folder(entry):
                    folders.append(entry.name)
                elif _is_image(entry.name):
                    files.append(entry.name)
    except OSError as error:
        yield Item(folder, error=f"cannot read the folder: {error.strerror}")
    for name in sorted(files):
        path = os.path.join(folder, name)
        yield Item(path, path)
    del files
    for name in sorted(folders):
        yield from _folder(os.path.join(folder, name), recursive, visited)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it reports the error
        return False


def _is_image(name: str) -> bool:
    return _has_suffix(name, IMAGE_SUFFIXES) and not name.endswith(STRIP_SUFFIX)


def _has_suffix(path: str, suffixes: Iterable[str]) -> bool:
    return path.lower().endswith(tuple(suffixes))


def read_archive(path: str) -> Iterator[Item]:
    """Yield the images of a `.tar` archive, plain or compressed, read once from front to back.

    An image is named `shard.tar/member.jpg`. Other members, such as WebDataset's `.json`, are left
    out. A damaged archive yields its images up to the damage, then an item with the error.
    """
    found = 0
    try:
        with tarfile.open(path, "r|*", tarinfo=_Header) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # otherwise it keeps every member
                folder_and_name = member.name.rsplit("/", 1)
                if not member.isfile() or folder_and_name[-1].startswith("."):
                    continue
                if os.path.splitext(member.name)[1].lower() not in IMAGE_SUFFIXES:
                    continue
                name = f"{path}/{member.name}"
                if member.size > _MAX_BYTES:
                    yield Item(name, error=f"too large: {member.size:,} bytes in the archive")
                    continue
                file = archive.extractfile(member)
                assert file is not None  # None is for members that are not files
                data = file.read()  # all of it, or an error
                found += 1
                yield Item(name, data)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            yield Item(path, error=error.strerror)
        else:
            yield Item(path, error=f"damaged archive after {found:,} photos ({error})")


class _Header(tarfile.TarInfo):
    """Member headers that report damage: `tarfile` itself takes it for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _READ_WHOLE and header.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a name of {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros: the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset:,}") from None
