"""Photos listed in files: text, CSV, JSON Lines, COCO JSON; or on standard input.

Text manifests are UTF-8 or, with a byte-order mark, UTF-16; either kind of line end will do. Bytes
that are not UTF-8 are kept as the file system's own names may hold them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from captioner.batch.item import Item

NAME_KEYS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path")
ID_KEYS = ("id", "image_id", "cocoid", "imgid")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"RIFF")
_DELIMITERS = ",;\t"


def read_text_list(path: str, image_root: str | None = None) -> Iterator[Item]:
    """One file name a line; empty lines are skipped."""
    roots = roots_of(path, image_root)
    try:
        with _open_text(path) as file:
            for line in file:
                if name := line.rstrip("\r\n"):
                    yield Item(name, _find(name, roots))
    except (OSError, UnicodeError) as error:
        yield _unreadable(path, error)


def read_json_lines(path: str, image_root: str | None = None) -> Iterator[Item]:
    """One JSON object a line with `image` (or `path`, `file`, `filename`) and maybe `id`.

    The command's own results and `--errors` files are such manifests.
    """
    roots = roots_of(path, image_root)
    try:
        with _open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    yield Item(f"{path}:{number}", error=f"not JSON ({error})")
                else:
                    yield item_of_record(record, roots, f"{path}:{number}")
    except (OSError, UnicodeError) as error:
        yield _unreadable(path, error)


def read_csv(path: str, image_root: str | None = None) -> Iterator[Item]:
    """A table with a column `image`, `path`, `file` or `filename` and maybe `id`.

    Columns are separated by commas, semicolons or tabs. Without a header the first column is taken.
    """
    roots = roots_of(path, image_root)
    try:
        with _open_text(path, newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(_DELIMITERS, key=first.count)
            header: list[str] | None = None
            rows = csv.reader(file, delimiter=delimiter)
            for cells in rows:
                if not any(cells):
                    continue
                if header is None:
                    header = [cell.strip().lower() for cell in cells]
                    if set(header) & set(NAME_KEYS):
                        continue
                    header = ["image"]  # no header: this row is a photo already
                record = dict(zip(header, cells, strict=False))
                yield item_of_record(record, roots, f"{path}:{rows.line_num}")
    except (OSError, UnicodeError, csv.Error) as error:
        yield _unreadable(path, error)


def read_json(path: str, image_root: str | None = None) -> Iterator[Item]:
    """COCO JSON or Karpathy JSON (the photos under `images`), or a list of objects or names."""
    roots = roots_of(path, image_root)
    if image_root is None:
        roots = [os.path.join(os.path.dirname(path), "images"), *roots]
    try:
        with _open_text(path) as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        yield _unreadable(path, error)
        return
    records = content.get("images") if isinstance(content, dict) else content
    if not isinstance(records, list):
        yield Item(path, error="neither COCO JSON (a list 'images') nor a list of photos")
        return
    for number, record in enumerate(records):
        if isinstance(record, dict) and "filename" in record and record.get("filepath"):
            # Karpathy's COCO photos lie in folders of their own.
            record = {**record, "image": f"{record['filepath']}/{record['filename']}"}
        yield item_of_record(record, roots, f"{path}[{number}]")


def read_stdin(null_separated: bool = False) -> Iterator[Item]:
    """File names from standard input as they arrive, or the one picture that is piped into it.

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


MANIFESTS: Mapping[str, Callable[[str, str | None], Iterator[Item]]] = {
    ".txt": read_text_list,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
}
"""Reader of each file ending: (path, image_root) -> items."""


def item_of_record(record: Any, roots: Sequence[str], where: str) -> Item:
    """An item from one entry of a manifest; `where` names the entry if it is wrong."""
    if isinstance(record, str):
        record = {"image": record}
    if not isinstance(record, dict):
        return Item(where, error="expected an object with 'image', or a file name")
    name = next((record[key] for key in NAME_KEYS if record.get(key)), None)
    if not isinstance(name, str):
        return Item(where, error="no file name: expected 'image', 'path', 'file' or 'filename'")
    number = next((record[key] for key in ID_KEYS if record.get(key) not in (None, "")), None)
    if not isinstance(number, (int, str)):
        number = None
    return Item(name, _find(name, roots), number)


def roots_of(path: str, image_root: str | None) -> list[str]:
    """Folders that a manifest's relative names may be relative to."""
    return [os.path.dirname(path), ""] if image_root is None else [image_root]


def _find(name: str, roots: Sequence[str]) -> str:
    """The path of a listed photo: in the first root that has it, else what the first would say."""
    paths = [os.path.join(root, name) for root in roots]
    try:
        return next((path for path in paths if os.path.lexists(path)), paths[0])
    except ValueError:  # a NUL in the name
        return paths[0]


def _open_text(path: str, newline: str = "\n") -> IO[str]:
    """Open a manifest in the encoding that its byte-order mark tells."""
    with open(path, "rb") as file:
        utf16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    encoding = "utf-16" if utf16 else "utf-8-sig"
    return open(path, encoding=encoding, errors="surrogateescape", newline=newline)


def _split(stream: IO[bytes], separator: bytes) -> Iterator[bytes]:
    """Pieces between separators, each as soon as it is there."""
    rest = b""
    start = True
    while block := stream.read1(65536):  # type: ignore[attr-defined]
        if start:
            block, start = block.removeprefix(b"\xef\xbb\xbf"), False
        *pieces, rest = (rest + block).split(separator)
        yield from pieces
    yield rest


def _unreadable(path: str, error: Exception) -> Item:
    text = error.strerror if isinstance(error, OSError) and error.errno else str(error)
    return Item(path, error=f"cannot read this list of photos: {text}")
