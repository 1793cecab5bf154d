"""Read lists of images, results and captions files: the one reader for every form that is in use.

The content decides on the form, not the name:

- JSON Lines: an object per line, such as `{"image": "a.jpg", "captions": ["A dog.", ...]}`, or a
  file name per line in quotes. Hugging Face's `metadata.jsonl` is one.
- JSON: COCO (`images` and `annotations`), Karpathy (`images` with `sentences`), a list of objects
  or of file names (COCO results, BLIP), or an object `{"a.jpg": "A dog."}`.
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
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TextIO

from captioner.data.fields import (
    CAPTION_FIELD,
    ID_KEYS,
    NAME_KEYS,
    Row,
    field_key,
    id_key,
    is_image_name,
    is_known_field,
    mend_text,
    read_entry,
)
from captioner.errors import DataError
from captioner.image.io import describe_foreign_file

logger = logging.getLogger(__name__)

_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")
_NUMBERED = re.compile(r"\s*\d+\s+(\S.*)")  # Kaggle's Flickr30k has lost a separator in one row
_DELIMITERS = ",;\t|"
_JSON_START = re.compile(r'\s*(\{\s*("|\}|$)|\[\s*(\{|"|\[|\]|$))')
_JSON_STRING = re.compile(r'\s*"([^"\\]|\\.)*"\s*')  # all of a line: a table may have quotes too
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MAX_CELL = 1 << 27  # characters in a cell of a table


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
    is_table = suffix in (".csv", ".tsv")
    is_string = not is_table and _JSON_STRING.fullmatch(first)
    if suffix in _JSON_SUFFIXES or _JSON_START.match(first) or is_string:
        yield from _read_json(file, path, first, suffix in _JSON_SUFFIXES[1:])
        return
    file.seek(0)
    if _TOKEN.fullmatch(first.rstrip("\r\n")):
        yield from _read_tokens(file, path)
    elif is_table or captioned or _is_table(first):
        yield from _read_table(file, path, captioned)
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


# ----------------------------------------------------------------------------------------- tables


def _is_table(first: str) -> bool:
    """Return whether a line is the header of a table, or `image.jpg <tab> caption`."""
    if _separator_line(first):
        return True
    cells = first.split(_delimiter(first))
    known = sum(map(is_known_field, cells))
    return len(cells) > 1 and (known > 1 or ("\t" in first and is_image_name(cells[0])))


def _read_table(file: TextIO, path: str, captioned: bool) -> Iterator[Row]:
    first = next((line for line in file if line.strip()), "")
    file.seek(0)
    delimiter = _separator_line(first) or _delimiter(first)
    if _separator_line(first):
        first = ""
    csv.field_size_limit(_MAX_CELL)
    # Tables with bars know no quotes: a quotation mark is part of a caption.
    quoting: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if delimiter == "|" else {}
    rows = csv.reader(file, delimiter=delimiter, **quoting)
    header: list[str] | None = None
    for cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            if not first and _separator_line(delimiter.join(cells)):
                continue
            header = list(map(field_key, cells))
            if not _lacks_header(cells, captioned):
                _check_header(header, path, captioned)
                continue
            # No header: this is a row already. Blanks behind commas: one caption, not several.
            blanks = [cell.startswith(" ") for cell in cells[1:]]
            is_prose = delimiter in ",;" and any(blanks) and not blanks[0]
            count = 2 if is_prose else len(cells)
            header = ["image", *(f"caption_{number}" for number in range(1, count))]
        place = f"{path}:{rows.line_num}"
        if any("\n" in cell and _holds_rows(cell, delimiter, header) for cell in cells):
            yield Row(
                place,
                error="several lines are one cell, because a quotation mark is not closed: put the"
                " caption in quotes and write each quotation mark in it twice",
            )
            continue
        if len(cells) > len(header) and CAPTION_FIELD.fullmatch(header[-1]):
            # A caption with commas that nobody quoted.
            last = len(header) - 1
            cells = [*cells[:last], delimiter.join(cells[last:])]
        elif any(cell.strip() for cell in cells[len(header) :]):
            yield Row(
                place,
                error=f"{len(cells)} cells where the header has {len(header)}: put captions with"
                f" {delimiter!r} in them in quotes",
            )
            continue
        record = {key: cell.strip() for key, cell in zip(header, cells, strict=False)}
        if not any(map(CAPTION_FIELD.fullmatch, record)) and CAPTION_FIELD.fullmatch(header[-1]):
            match = _NUMBERED.fullmatch(cells[-1])
            record |= {header[-1]: match[1]} if match else {}
        yield read_entry(record, place)
    if header is None and captioned:
        raise DataError(f"{path}: empty")


def _holds_rows(cell: str, delimiter: str, header: list[str]) -> bool:
    """Return whether a cell holds rows of its table: lines with an image's name or id at an end."""
    rows = (line.split(delimiter) for line in cell.splitlines()[1:])
    by_id = header[0] in ID_KEYS
    return any(
        is_image_name(row[0]) or is_image_name(row[-1]) or (by_id and row[0].strip().isdecimal())
        for row in rows
        if len(row) > 1
    )


def _lacks_header(cells: list[str], captioned: bool) -> bool:
    """Return whether the first row of a table is an image already."""
    if any(map(is_known_field, cells)):
        return False
    return is_image_name(cells[0]) or not captioned


def _check_header(header: list[str], path: str, captioned: bool) -> None:
    named = any(key in NAME_KEYS or key in ID_KEYS for key in header)
    told = any(CAPTION_FIELD.fullmatch(key) for key in header)
    if not named or (captioned and not told):
        missing = "captions ('caption')" if named else "image ('image' or 'image_id')"
        raise DataError(f"{path}: no column for the {missing} in its header: {', '.join(header)}")


def _separator_line(line: str) -> str | None:
    """Return the delimiter that Excel's line `sep=;` names."""
    match = re.fullmatch(r'"?sep=(.)"?[\s,;]*', line.rstrip("\r\n"), re.IGNORECASE)
    return match[1] if match else None


def _delimiter(header: str) -> str:
    """Return the delimiter of a table: it makes most known fields, an image's name, most cells."""

    def fit(delimiter: str) -> tuple[int, bool, int]:
        cells = header.split(delimiter)
        return sum(map(is_known_field, cells)), is_image_name(cells[0]), len(cells)

    return max(_DELIMITERS, key=fit)


# ------------------------------------------------------------------------------------------- JSON


def _read_json(file: TextIO, path: str, first: str, lines: bool) -> Iterator[Row]:
    """Read JSON Lines or one JSON document.

    Args:
        file: Open behind its first line.
        path: Its name.
        first: That line.
        lines: The file's name promises JSON Lines.
    """
    content: Any = None
    try:
        content = json.loads(first)
        whole = True
    except (ValueError, RecursionError):
        whole = False
    second = next((line for line in file if line.strip()), "")
    if not (whole and second):
        # A document, or lines of which the first is damaged or the only one.
        try:
            content = content if whole else json.loads(first + second + file.read())
        except ValueError as error:
            if not lines and not _is_object(second):
                raise DataError(f"{path}: damaged JSON ({error})") from error
        else:
            if not (lines and isinstance(content, dict) and not _is_document(content)):
                yield from _read_document(content, path)
                return
    file.seek(0)
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Row(place, error=f"not JSON ({error})")
            else:
                yield read_entry(value, place)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_document(content: Mapping[str, Any]) -> bool:
    """Return whether an object holds many images, as COCO's does, or is `{"a.jpg": "A dog."}`."""
    lists = any(isinstance(content.get(key), list) for key in ("images", "annotations"))
    return lists or (bool(content) and all(map(is_image_name, content)))


def _read_document(content: Any, path: str) -> Iterator[Row]:
    """Read a whole JSON document."""
    if isinstance(content, dict):
        if isinstance(content.get("annotations"), list):
            yield from _read_coco(content, path)
            return
        if isinstance(content.get("images"), list):
            content = content["images"]
        elif _is_document(content):
            content = [{"image": name, "captions": text} for name, text in content.items()]
        elif any(map(is_known_field, content)):
            content = [content]
    if not isinstance(content, list):
        raise DataError(
            f"{path}: expected COCO JSON ('images' and 'annotations'), Karpathy JSON ('images' with"
            " 'sentences'), a list of objects with 'image', or one such object per line"
        )
    for number, value in enumerate(content):
        yield read_entry(value, f"{path}[{number}]")


def _read_coco(content: Mapping[str, Any], path: str) -> Iterator[Row]:
    """Read COCO captions (or COCO results in their form); ids of annotations are not looked at."""
    captions: dict[str, list[Any]] = {}
    ids: dict[str, Any] = {}
    for number, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict) or entry.get("image_id") is None:
            raise DataError(f"{path}: annotation {number} has no 'image_id'")
        key = id_key(entry["image_id"])
        ids.setdefault(key, entry["image_id"])
        if "caption" in entry:  # not in files of objects
            captions.setdefault(key, []).append(entry["caption"])
    images = content.get("images")
    if not isinstance(images, list):  # results
        images = [{"id": image_id} for image_id in ids.values()]
    listed = set()
    for number, entry in enumerate(images):
        place = f"{path}[{number}]"
        if not isinstance(entry, dict) or "id" not in entry:
            yield Row(place, error="expected an object with 'id' and 'file_name'")
            continue
        key = id_key(entry["id"])
        listed.add(key)
        yield read_entry({**entry, "captions": captions.get(key, [])}, place)
    strays = sum(len(captions[key]) for key in captions.keys() - listed)
    if strays:
        logger.warning("%s: left out %d caption(s) of images that it does not list", path, strays)


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
    """Return the kind of UTF-16 of a text that begins with ASCII; empty if it is no text."""
    even, odd = head[::2], head[1::2]
    for name, letters, zeros in (("utf-16-le", even, odd), ("utf-16-be", odd, even)):
        if 0 not in letters and 2 * zeros.count(0) > len(zeros):
            return name
    return ""


def _warn_of_encoding(place: str) -> None:
    logger.warning(
        "%s: not UTF-8, read as Windows-1252: if letters are wrong, save the file as UTF-8", place
    )


def _unreadable(path: str, error: Exception) -> DataError:
    text = error.strerror if isinstance(error, OSError) and error.errno else str(error)
    return DataError(f"{path}: cannot read this file: {text}")
