"""Where photos come from: whatever a person names on the command line, as a stream of items.

Sources are generators: a million paths are never held at once. What is wrong with a source (a
folder that cannot be read, a damaged archive, a bad line of a manifest) is an item with an error,
in its place, so that it becomes a row of the result like any other failure.

Order is always the same for the same files, which is what makes a run resumable: arguments as
given, manifests and archives by line, folders sorted by name.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from captioner.batch.archives import ARCHIVE_SUFFIXES, read_archive
from captioner.batch.item import Item
from captioner.batch.lists import LIST_SUFFIXES, read_list, read_stdin
from captioner.batch.parquet import PARQUET_SUFFIXES, count_rows, read_parquet
from captioner.image.io import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

STDIN = "-"
STRIP_SUFFIX = ".attention.png"
"""Ending of the attention strips: a folder search leaves them out, they are our own."""

_Reader: TypeAlias = Callable[[str, "str | None"], Iterator[Item]]  # (path, image_root) -> items


def open_sources(
    paths: Iterable[str],
    *,
    recursive: bool = False,
    image_root: str | None = None,
    column: str | None = None,
    null_separated: bool = False,
) -> Iterator[Item]:
    """All photos of all sources, in order.

    Args:
        paths: Files, folders, glob patterns, ``-`` for names (or one picture) on standard input,
            ``.txt``/``.csv``/``.tsv``/``.jsonl``/``.json`` manifests, ``.tar`` archives,
            ``.parquet`` tables, folders of such tables.
        recursive: Search subfolders too.
        image_root: What manifests' relative names are relative to; None tries the manifest's own
            folder, its ``images`` folder (COCO JSON), then the working directory.
        column: The column of Parquet tables that holds the photos; None finds it by its name.
        null_separated: Names on standard input end in NUL, as ``find -print0`` writes them.
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
    if found and empty:  # with nothing at all, it is for the caller to complain
        logger.warning("no photos in %s", ", ".join(empty))


def expand(path: str, *, recursive: bool = False) -> Iterator[str]:
    """The files that a glob pattern or a folder of tables stands for; all else as it is."""
    if path != STDIN and glob.has_magic(path) and not os.path.lexists(path):
        yield from _matches(path)
    elif os.path.isdir(path) and next(_folder(path, recursive, set()), None) is None:
        yield from _tables(path)
    else:
        yield path


def holds_photos(path: str) -> bool:
    """Whether a file has photos inside: an archive, or a table (which may name them instead)."""
    return _has_suffix(path, (*ARCHIVE_SUFFIXES, *PARQUET_SUFFIXES)) and not os.path.isdir(path)


def count_photos(
    paths: Sequence[str],
    *,
    recursive: bool = False,
    image_root: str | None = None,
    column: str | None = None,
) -> int | None:
    """How many items `open_sources` will give, or None where counting means reading it all."""
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
    """The photos of one argument."""
    if path == STDIN:
        return read_stdin(null_separated)
    if os.path.isdir(path):
        return _folder_or_tables(path, recursive, image_root, read_table)
    if glob.has_magic(path) and not os.path.lexists(path):
        return _glob(path, image_root, read_table)
    return _file(path, image_root, read_table)


def _file(path: str, image_root: str | None, read_table: _Reader) -> Iterator[Item]:
    """One file, which its ending says to be a manifest, a table, an archive or else a picture."""
    if _has_suffix(path, ARCHIVE_SUFFIXES):
        return read_archive(path)
    if _has_suffix(path, PARQUET_SUFFIXES):
        return read_table(path, image_root)
    if _has_suffix(path, LIST_SUFFIXES):
        return read_list(path, image_root)
    return iter((Item(path, path),))


def _glob(pattern: str, image_root: str | None, read_table: _Reader) -> Iterator[Item]:
    """Files that match, as if each had been named; folders are left out (``**`` enters them)."""
    for path in _matches(pattern):
        yield from _file(path, image_root, read_table)


def _folder_or_tables(
    folder: str, recursive: bool, image_root: str | None, read_table: _Reader
) -> Iterator[Item]:
    """A named folder; if there is no picture in it, its Parquet tables, as Spark writes them."""
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
    """Pictures of a folder by their ending, then those of its subfolders; hidden files left out.

    Links to folders are followed, but each folder is visited once, so that loops end.
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
                if entry.name.startswith("."):  # among them macOS's ._photo.jpg, no pictures
                    continue
                if recursive and _is_folder(entry):
                    folders.append(entry.name)
                elif _is_picture(entry.name):
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
    except OSError:  # a link to itself: opening it will say so
        return False


def _is_picture(name: str) -> bool:
    return _has_suffix(name, IMAGE_SUFFIXES) and not name.endswith(STRIP_SUFFIX)


def _has_suffix(path: str, suffixes: Iterable[str]) -> bool:
    return path.lower().endswith(tuple(suffixes))
