"""Tables of images and captions: a header or none, any usual delimiter, Excel's line `sep=;`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from captioner.data.fields import (
    CAPTION_FIELD,
    ID_KEYS,
    NAME_KEYS,
    Row,
    field_key,
    is_image_name,
    is_known_field,
    read_entry,
)
from captioner.errors import DataError

_NUMBERED = re.compile(r"\s*\d+\s+(\S.*)")  # Kaggle's Flickr30k has lost a separator in one row
_DELIMITERS = ",;\t|"
_MAX_CELL = 1 << 27  # characters in a cell


def is_table(first: str) -> bool:
    """Return whether a line is the header of a table, or `image.jpg <tab> caption`."""
    if _separator_line(first):
        return True
    cells = first.split(_delimiter(first))
    known = sum(map(is_known_field, cells))
    return len(cells) > 1 and (known > 1 or ("\t" in first and is_image_name(cells[0])))


def read_table(file: TextIO, path: str, captioned: bool) -> Iterator[Row]:
    """Yield the rows of a table.

    Args:
        file: At its start.
        path: Its name.
        captioned: Captions are wanted.

    Raises:
        DataError: Its header lacks images or captions.
    """
    first = next((line for line in file if line.strip()), "")
    file.seek(0)
    delimiter = _separator_line(first) or _delimiter(first)
    if _separator_line(first):
        first = ""
    csv.field_size_limit(_MAX_CELL)
    # Tables with bars know no quotes: a quotation mark is part of a caption.
    quoting: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if delimiter == "|" else {}
    if is_table(first) and _is_spaced(first.split(delimiter)):  # else `, "a, b"` is cut in two
        quoting["skipinitialspace"] = True
    rows = csv.reader(file, delimiter=delimiter, **quoting)
    header: list[str] | None = None
    for cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            if not first and _separator_line(delimiter.join(cells)):
                continue
            header = _distinct(list(map(field_key, cells)))
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


def _is_spaced(header: Sequence[str]) -> bool:
    """Return whether the cells of a header begin with a blank, as those below then do."""
    return len(header) > 1 and all(cell.startswith(" ") for cell in header[1:])


def _distinct(header: list[str]) -> list[str]:
    """Number the columns of captions that have the same name, so that none hides another."""
    return [
        f"{key}_{number + 1}" if CAPTION_FIELD.fullmatch(key) and key in header[:number] else key
        for number, key in enumerate(header)
    ]


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
