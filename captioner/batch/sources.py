"""Sources of images: files, folders, globs, lists, archives and tables become a stream of items.

Sources are generators: a million paths are never held at once. A problem with a source (a folder
that cannot be read, a damaged archive, a bad line of a list) becomes an item with an error in its
place, and so a row of the result like any other failure.

The same files always come in the same order, so that a run can be resumed: arguments as given,
lists and archives by line, folders sorted by name.
"""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import logging
import lzma
import os
import posixpath
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import IO, Any, TypeAlias

from captioner.batch.item import Item
from captioner.batch.lists import LIST_SUFFIXES, read_list, read_stdin
from captioner.batch.parquet import PARQUET_SUFFIXES, count_rows, read_parquet
from captioner.image.foreign import describe_foreign_file
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
_MAX_LINKS = 40
"""Links from one to the next that are followed, as many as Linux does; a circle never ends."""
_ARCHIVE_ERRORS = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
_OPENERS: tuple[tuple[bytes, Callable[[IO[bytes]], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)
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
    left_out: Counter[str] | None = None,
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
        left_out: Counts, by their ending, the files of folders that are no images.
    """
    empty = []
    found = 0
    for path in paths:
        before = found
        for item in _open(
            path,
            recursive,
            image_root,
            partial(read_parquet, column=column),
            null_separated,
            left_out,
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
    left_out: Counter[str] | None = None,
) -> Iterator[Item]:
    """Yield the images of one argument."""
    if path == STDIN:
        return read_stdin(null_separated)
    if os.path.isdir(path):
        return _folder_or_tables(path, recursive, image_root, read_table, left_out)
    if re.match(r"[a-z][a-z\d+.-]+://", path, re.IGNORECASE) and not os.path.lexists(path):
        return iter((Item(path, error="a web address: download the image first"),))
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
    folder: str,
    recursive: bool,
    image_root: str | None,
    read_table: _Reader,
    left_out: Counter[str] | None,
) -> Iterator[Item]:
    """Yield the images of a folder; if it has none, those of its Parquet tables (Spark's way)."""
    empty = True
    others: Counter[str] = Counter()
    for item in _folder(folder, recursive, set(), others):
        empty = False
        yield item
    if left_out is not None and not (empty and next(_tables(folder), None)):
        left_out.update(others)
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


def _folder(
    folder: str,
    recursive: bool,
    visited: set[tuple[int, int]],
    others: Counter[str] | None = None,
) -> Iterator[Item]:
    """Yield the images of a folder by their ending, then those of its subfolders.

    Hidden files are left out. Links to folders are followed, but each folder is visited once, so
    that loops end.

    Args:
        folder: Where to search.
        recursive: Search subfolders too.
        visited: Device and number of the folders that have been searched.
        others: Counts other files by their ending, except sidecars of the images.
    """
    files: list[str] = []
    unknown: list[str] = []
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
                elif others is not None and not _is_ours(entry):
                    unknown.append(entry.name)
    except OSError as error:
        yield Item(folder, error=f"cannot read the folder: {error.strerror}")
    for name in sorted(files):
        path = os.path.join(folder, name)
        yield Item(path, path)
    if others is not None and unknown:
        sidecars = {f"{name}.txt" for path in files for name in (path, os.path.splitext(path)[0])}
        endings = (os.path.splitext(name)[1].lower() for name in unknown if name not in sidecars)
        others.update(ending or "no ending" for ending in endings)
    del files, unknown
    for name in sorted(folders):
        yield from _folder(os.path.join(folder, name), recursive, visited, others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it reports the error
        return False


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is no file of the user's: a folder, or an attention strip."""
    return _is_folder(entry) or entry.name.endswith(STRIP_SUFFIX)


def _is_image(name: str) -> bool:
    return _has_suffix(name, IMAGE_SUFFIXES) and not name.endswith(STRIP_SUFFIX)


def _has_suffix(path: str, suffixes: Iterable[str]) -> bool:
    return path.lower().endswith(tuple(suffixes))


def read_archive(path: str) -> Iterator[Item]:
    """Yield the images of a `.tar` archive, plain or compressed, read from front to back.

    An image is named `shard.tar/member.jpg`. Other members, such as WebDataset's `.json`, are left
    out. A damaged archive yields its images up to the damage, then an item with the error. Links
    to members of the archive come last, for which it is read once more; other links are errors.
    """
    found = 0
    links: dict[str, str] = {}  # member -> what it links to
    try:
        for member, archive in _members(path):
            name = f"{path}/{member.name}"
            if not _is_image(member.name) or member.isdir():
                continue
            if member.issym() or member.islnk():
                links[member.name] = _link_target(member)
            elif not member.isfile():
                yield Item(name, error="not a regular file")
            else:
                item = _read_member(archive, member, name)
                found += 1
                yield item
    except _ARCHIVE_ERRORS as error:
        foreign = None if found else _describe(path)
        yield Item(path, error=foreign) if foreign else _damaged(path, error, found)
    if links:
        yield from _read_links(path, links)


def _members(path: str) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yield the members of an archive, and the archive, without the hidden ones."""
    with open(path, "rb") as raw:
        head = raw.peek(6)
        opener = next((opener for start, opener in _OPENERS if head.startswith(start)), None)
        # Not tarfile's own way, which ends with the first of several compressed pieces.
        stream: Any = raw if opener is None else opener(raw)
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every member
                if not member.name.rsplit("/", 1)[-1].startswith("."):
                    yield member, archive


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> Item:
    if member.size > _MAX_BYTES:
        return Item(name, error=f"too large: {member.size:,} bytes in the archive")
    file = archive.extractfile(member)
    assert file is not None  # None is for members that are not files
    return Item(name, file.read())  # all of it, or an error


def _link_target(member: tarfile.TarInfo) -> str:
    """Return the member that a link leads to; a symbolic link starts at its own folder."""
    folder = posixpath.dirname(member.name) if member.issym() else ""
    return posixpath.normpath(posixpath.join(folder, member.linkname))


def _read_links(path: str, links: dict[str, str]) -> Iterator[Item]:
    """Yield the images that links of an archive stand for, in the order of their targets.

    Args:
        path: The archive.
        links: Name of each link -> name of its target, which may be a link too.
    """
    targets = {posixpath.normpath(name): target for name, target in links.items()}
    wanted: dict[str, list[str]] = {}  # member -> links to it
    for name, target in links.items():
        for _ in range(_MAX_LINKS):
            if target not in targets:
                break
            target = targets[target]
        wanted.setdefault(target, []).append(name)
    with contextlib.suppress(*_ARCHIVE_ERRORS):  # which has been told
        for member, archive in _members(path):
            names = member.isfile() and wanted.pop(posixpath.normpath(member.name), [])
            if names:
                item = _read_member(archive, member, path)
                yield from (replace(item, name=f"{path}/{name}") for name in names)
            if not wanted:
                return
    for target, names in wanted.items():
        for name in names:
            yield Item(f"{path}/{name}", error=f"a link to no file in the archive ({target})")


def _describe(path: str) -> str | None:
    """Say what a file is that is no archive; None if that cannot be told."""
    with contextlib.suppress(OSError):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                foreign = describe_foreign_file(file.read(512))
            if foreign and not foreign.startswith(("a tar", "a compressed")):
                return foreign
    return None


def _damaged(path: str, error: Exception, found: int) -> Item:
    if isinstance(error, OSError) and error.errno:
        return Item(path, error=error.strerror)
    return Item(path, error=f"damaged archive after {found:,} photos ({error})")


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
