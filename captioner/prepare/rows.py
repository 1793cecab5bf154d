"""Captions of one's own as rows: tables, token files, JSON Lines, or text files beside photos."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.data.annotations import read_captions, read_text
from captioner.errors import DataError
from captioner.image.io import IMAGE_SUFFIXES

_IMAGE = ("image", "image_name", "file_name", "filename", "file", "path", "filepath", "image_path")
_CAPTION = re.compile(r"(captions?|comments?|sentences?|text|description|raw)([ _-]?\d+)?")
_SPLIT = ("split", "subset", "partition")
_DELIMITERS = ",;\t|"
_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")
# A line of Kaggle's Flickr30k table has lost the separator after its number.
_NUMBERED = re.compile(r"\s*\d+\s+(\S.*)")


@dataclass(frozen=True)
class Row:
    """What one line says.

    Attributes:
        image: The photo's name as written.
        captions: Its captions as written, empty ones included.
        split: Its split, if the line names one.
        place: `file:line`, for messages.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None
    place: str


def read_rows(path: Path) -> Iterator[Row]:
    """Read a file of captions.

    `.jsonl`: an object a line with `image` and `captions` (or `caption`), maybe `split`.
    `.json`: COCO or Karpathy JSON. Anything else is a table with a header, separated by commas,
    semicolons, tabs or bars, with a column for the photo and one or more for captions, a photo on
    one line or several; or a token file, `photo.jpg#0 <tab> caption`.

    Args:
        path: The file.

    Raises:
        DataError: The file cannot be read; the message has the line.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path)
    elif suffix == ".json":
        examples = read_captions(path, missing="ignore")
        several = len({item.split for item in examples}) > 1  # COCO JSON has no splits
        for item in examples:
            yield Row(item.image, item.captions, item.split if several else None, str(path))
    else:
        text = read_text(path)
        first = text.lstrip().split("\n", 1)[0]
        yield from (_tokens if _TOKEN.fullmatch(first.rstrip("\r")) else _table)(path, text)


def read_folder(folder: Path) -> tuple[list[Row], list[str]]:
    """Photos of a folder and its subfolders, with the captions in text files of the same name.

    Args:
        folder: `dog.jpg` is captioned by `dog.txt`, a caption a line.

    Returns:
        A row for each photo, its captions empty where there is no text file, in the order of the
        paths; and the text files without a photo.

    Raises:
        DataError: No such folder, or a text file is not UTF-8.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    photos: list[Path] = []
    texts: set[Path] = set()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                photos.append(path)
            elif path.suffix.lower() == ".txt":
                texts.add(path)
    rows = []
    used = set()
    for path in sorted(photos):
        text = path.with_suffix(".txt")
        lines: list[str] = []
        if text in texts:
            used.add(text)
            lines = read_text(text).splitlines()
        # A blank line at the end is no caption; a file of blank lines is an empty one.
        captions = tuple(line for line in lines if line.strip()) or ("",) * bool(text in texts)
        rows.append(Row(path.relative_to(folder).as_posix(), captions, None, str(text)))
    return rows, sorted(str(path) for path in texts - used)


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: not JSON ({error})") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise DataError(f"{place}: expected an object with 'image' and 'captions'")
        yield Row(entry["image"], _texts(entry, place), _split_of(entry), place)


def _texts(entry: Mapping[str, Any], place: str) -> tuple[str, ...]:
    captions = entry.get("captions", entry.get("caption", entry.get("text", [])))
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(item, str) for item in captions):
        raise DataError(f"{place}: 'captions' must be a list of strings")
    return tuple(captions)


def _tokens(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        match = _TOKEN.fullmatch(line.rstrip("\r"))
        if match is None:
            raise DataError(f"{path}:{number}: expected photo.jpg#0, a tab and a caption")
        yield Row(match[1], (match[2],), None, f"{path}:{number}")


def _table(path: Path, text: str) -> Iterator[Row]:
    lines = text.splitlines(keepends=True)
    header_line = next((line for line in lines if line.strip()), "")
    delimiter = max(_DELIMITERS, key=header_line.count)
    if delimiter == "|":  # such tables know no quotes: a quotation mark is part of a caption
        rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(lines, delimiter=delimiter)
    header: list[str] | None = None
    try:
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                image, captions = _columns(path, header)
                continue
            place = f"{path}:{rows.line_num}"
            if len(cells) > len(header) and captions[-1] == len(header) - 1:
                # A caption with commas that nobody quoted.
                cells = [*cells[: len(header) - 1], delimiter.join(cells[len(header) - 1 :])]
            elif any(cell.strip() for cell in cells[len(header) :]):
                raise DataError(
                    f"{place}: {len(cells)} cells where the header has {len(header)}: put captions"
                    f" with {delimiter!r} in them in quotes"
                )
            record = dict(zip(header, cells, strict=False))
            found = [cells[column] for column in captions if column < len(cells)]
            if not found and (match := _NUMBERED.fullmatch(cells[-1])):
                found = [match[1]]
            if image >= len(cells) or not cells[image].strip():
                raise DataError(f"{place}: no photo named")
            yield Row(cells[image].strip(), _cells(found), _split_of(record), place)
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: {error}") from error
    if header is None:
        raise DataError(f"{path}: empty")


def _columns(path: Path, header: list[str]) -> tuple[int, list[int]]:
    """The places of the photo's column and of the captions' columns."""
    image = next((header.index(name) for name in _IMAGE if name in header), None)
    captions = [place for place, name in enumerate(header) if _CAPTION.fullmatch(name)]
    if image is None or not captions:
        missing = "photo ('image')" if image is None else "captions ('caption')"
        raise DataError(f"{path}: no column for the {missing} in its header: {', '.join(header)}")
    return image, captions


def _cells(cells: list[str]) -> tuple[str, ...]:
    """Captions in the cells; a cell may hold a JSON list of them."""
    captions: list[str] = []
    for cell in cells:
        if cell.startswith("["):
            try:
                content = json.loads(cell)
            except ValueError:
                content = None
            if isinstance(content, list) and all(isinstance(item, str) for item in content):
                captions += content
                continue
        captions.append(cell)
    if len(captions) > 1:  # columns that this photo does not use
        captions = [caption for caption in captions if caption.strip()] or [""]
    return tuple(captions)


def _split_of(record: Mapping[str, Any]) -> str | None:
    value = next((record[name] for name in _SPLIT if record.get(name)), None)
    return str(value).strip() or None if value is not None else None
