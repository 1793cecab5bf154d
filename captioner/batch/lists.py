"""Images listed in files or on standard input, as items of a batch run."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from captioner.batch.item import Item
from captioner.data.annotations import ImageFinder
from captioner.data.records import read_rows
from captioner.errors import DataError

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".token")
"""Endings of files that list images; what they hold is told by their content."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"RIFF")


def read_list(path: str, image_root: str | None = None) -> Iterator[Item]:
    """Yield the images that a file lists, in any form that `read_rows` knows.

    The command's own results and `--errors` files are such lists. A captions file names an image
    on several lines in a row: it is one item.

    Args:
        path: The file.
        image_root: What relative names are relative to; None tries the file's own folder, the
            working directory, then the folder `images` beside the file.
    """
    finder = ImageFinder(path, image_root, cwd=True)
    before = None
    try:
        for row in read_rows(path):
            if row.error is not None:
                yield Item(row.place, error=row.error)
            elif row.image is None:
                yield Item(row.place, id=row.image_id, error="no file name: expected 'image'")
            elif row.image != before or not row.captioned:
                yield list_item(row.image, row.image_id, finder)
            before = row.image
    except DataError as error:
        yield Item(path, error=str(error).removeprefix(f"{path}: "))


def list_item(name: str, image_id: int | str | None, finder: ImageFinder) -> Item:
    """Return the item of a listed image; one that is nowhere fails when it is opened."""
    return Item(name, finder.find(name) or os.path.join(finder.folder, name), image_id)


def read_stdin(null_separated: bool = False) -> Iterator[Item]:
    """Yield file names from standard input as they arrive, or the one image piped into it.

    Args:
        null_separated: Names end in NUL instead of a line end.
    """
    stream: Any = sys.stdin.buffer
    if not hasattr(stream, "peek"):
        stream = io.BufferedReader(stream)
    head = stream.peek(16)
    if head.startswith(_SIGNATURES) or head[4:8] == b"ftyp":
        yield Item("-", stream.read())
        return
    for raw in _split(stream, b"\0" if null_separated else b"\n"):
        name = os.fsdecode(raw if null_separated else raw.rstrip(b"\r"))
        if name:
            yield Item(name, name)


def _split(stream: IO[bytes], separator: bytes) -> Iterator[bytes]:
    """Yield the pieces between separators, each as soon as it is there."""
    rest = b""
    start = True
    while block := stream.read1(65536):  # type: ignore[attr-defined]
        if start:
            block, start = block.removeprefix(b"\xef\xbb\xbf"), False
        *pieces, rest = (rest + block).split(separator)
        yield from pieces
    yield rest
