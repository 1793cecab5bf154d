"""Read lists of images, results and captions files: the one reader for every form that is in use.

The content decides on the form, not the name:

- JSON Lines: an object per line, such as `{"image": "a.jpg", "captions": ["A dog.", ...]}`, or a
  file name per line in quotes. Hugging Face's `metadata.jsonl` is one.
- JSON: COCO (`images` and `annotations`), Karpathy (`images` with `sentences`), a list of objects
  or of file names (COCO results, BLIP), an object `{"a.jpg": "A dog."}`, or what pandas writes.
- A table with a header, separated by commas, semicolons, tabs or bars; Excel's line `sep=;` before
  it. Without a header the first column names the image and the others are captions.
- A token file of Flickr, `photo.jpg#0 <tab> caption`; or bare file names, one per line.

Text is UTF-8; or UTF-16 (also without a byte-order mark) or UTF-32. A byte that is not UTF-8 is
kept in file names, as the file system may have it, and read as Windows-1252 in captions, with a
warning.
"""

from __future__ import annotations

import codecs
import csv
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TextIO

from captioner.data.fields import Row, mend_text
from captioner.data.json_lists import read_json
from captioner.data.tables import is_table, read_table
from captioner.errors import DataError
from captioner.image.foreign import describe_foreign_file

logger = logging.getLogger(__name__)

_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")
_JSON_START = re.compile(r'\s*(\{\s*("|\}|$)|\[\s*(\{|"|\[|\]|$))')
_JSON_STRING = re.compile(r'\s*"([^"\\]|\\.)*"\s*')  # all of a line: a table may have quotes too
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_rows(path: str | os.PathLike[str], *, captioned: bool = False) -> Iterator[Row]:
    """Read a list of images, a file of results or a captions file, entry by entry.

    An entry that cannot be used becomes a row with an `error`; the others are still read.

    Args:
        path: The file.
        captioned: Captions are wanted, so a bare list of file names is refused.

    Raises:
        DataError: The file cannot be read or is of no known form; the message says what it is.
    """
    source = os.fspath(path)
    warned = False
    try:
        with _open_text(source) as file:
            for row in _rows(file, source, captioned):
                captions = tuple(map(mend_text, row.captions))
                if captions != row.captions:
                    if not warned:
                        _warn_of_encoding(row.place)
                    warned = True
                    row = replace(row, captions=captions)
                yield row
    except (OSError, UnicodeError, RecursionError, csv.Error) as error:
        raise _unreadable(source, error) from error


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a file in any of the encodings that `read_rows` knows.

    Raises:
        DataError: The file cannot be read.
    """
    source = os.fspath(path)
    try:
        with _open_text(source) as file:
            text = file.read()
    except (OSError, UnicodeError) as error:
        raise _unreadable(source, error) from error
    mended = mend_text(text)
    if mended != text:
        _warn_of_encoding(source)
    return mended


# ----------------------------------------------------------------------------------------- forms


def _rows(file: TextIO, path: str, captioned: bool) -> Iterator[Row]:
    """Choose the reader of an open file by its beginning."""
    suffix = os.path.splitext(path)[1].lower()
    first = next((line for line in file if line.strip()), "")
    is_csv = suffix in (".csv", ".tsv")
    is_string = not is_csv and _JSON_STRING.fullmatch(first)
    if suffix in _JSON_SUFFIXES or _JSON_START.match(first) or is_string:
        yield from read_json(file, path, first, suffix in _JSON_SUFFIXES[1:])
        return
    file.seek(0)
    if _TOKEN.fullmatch(first.rstrip("\r\n")):
        yield from _read_tokens(file, path)
    elif is_csv or captioned or is_table(first):
        yield from read_table(file, path, captioned)
    else:
        for number, line in enumerate(file, start=1):
            if name := line.rstrip("\r\n"):
                yield Row(f"{path}:{number}", name)


def _read_tokens(file: TextIO, path: str) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = f"{path}:{number}"
            match = _TOKEN.fullmatch(line.rstrip("\r\n"))
            if match is None:
                yield Row(place, error="expected photo.jpg#0, a tab and a caption")
            else:
                yield Row(place, match[1], captions=(match[2],))


# ------------------------------------------------------------------------------------------ files


def _open_text(path: str) -> TextIO:
    """Open a text file in the encoding that its first bytes tell.

    Raises:
        DataError: It is no text file; the message says what it is.
    """
    if re.match(r"https?:/", path):
        raise DataError(f"{path}: a web address: download the file first and name it here")
    if os.path.isdir(path):
        tars = any(name.endswith((".tar", ".tar.gz", ".tgz")) for name in os.listdir(path))
        what = " of tar archives: `captioner caption` reads archives" if tars else ""
        raise DataError(f"{path}: a folder{what}; name a file here")
    if os.path.exists(path) and not os.path.isfile(path):  # it cannot be read twice
        raise DataError(f"{path}: a pipe or a device: save its content in a file and name that")
    with open(path, "rb") as file:
        head = file.read(512)
    if foreign := describe_foreign_file(head):
        raise DataError(f"{path}: {foreign}")
    encoding = next((name for bom, name in _BOMS.items() if head.startswith(bom)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in head:
        encoding = _encoding_without_mark(head)
    if not encoding:
        raise DataError(f"{path}: not a text file: name a list, a table or a JSON file")
    return open(path, encoding=encoding, errors="surrogateescape", newline="")


def _encoding_without_mark(head: bytes) -> str:
    """Return the kind of UTF-16 or UTF-32 of a text that begins with ASCII; empty if it is none."""
    for name in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        start = head[:16].decode(name, "replace")
        if start.isascii() and "\0" not in start:
            return name
    return ""


def _warn_of_encoding(place: str) -> None:
    logger.warning(
        "%s: not UTF-8, read as Windows-1252: if letters are wrong, save the file as UTF-8", place
    )


def _unreadable(path: str, error: Exception) -> DataError:
    text = error.strerror if isinstance(error, OSError) and error.errno else str(error)
    return DataError(f"{path}: cannot read this file: {text}")
