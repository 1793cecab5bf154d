"""Rows and records: how a result is written to a file, and how a resumed run reads it back.

A *row* is a dict of JSON values (`to_row`); a *record* is the text of a row in one format. A record
is written in one piece and ends with a line end, so an interrupted run leaves a whole number of
records and at most one incomplete record behind them.
"""

from __future__ import annotations

import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from captioner.batch.item import Item, Result, escaped
from captioner.data.fields import coco_image_id, id_key
from captioner.errors import ConfigError
from captioner.outputs import Failure

_SUFFIXES = {
    ".txt": "text",
    ".tsv": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".json": "json",
    ".parquet": "parquet",
}
_NUMBER = re.compile(r"(0|[1-9]\d{0,11})(\.0+)?")  # longer ones are codes, such as TextCaps'


def to_row(item: Item, result: Result, *, attention: bool = False) -> dict[str, Any]:
    """Return a result as a row: `image`, `id` if there is one, then `error` or the caption.

    Args:
        item: The image.
        result: Its caption or failure.
        attention: Add the attention maps.
    """
    row: dict[str, Any] = {"image": item.name}
    if item.id is not None:
        row["id"] = item.id
    if isinstance(result, Failure):
        return {**row, "error": result.error}
    return {**row, **result.to_dict(attention=attention)}


class PreviousResult(NamedTuple):
    """The result of an earlier run for one image.

    Attributes:
        name: The image, as `Format.name` writes it.
        error: Why it has no caption, if it has none.
        missing: There is no record of it in its place: it is new, its record comes later, or (with
            an `error`) it failed and the format has no records of failures.
    """

    name: str
    error: str | None
    missing: bool = False


class Format(ABC):
    """Turns rows into records.

    Attributes:
        header: The first line of the file, if the format has one.
        has_errors: Whether images without a caption have records too.
    """

    header = ""
    has_errors = True

    @abstractmethod
    def encode(self, row: dict[str, Any]) -> str | None:
        """Return the record of a row, with its line end; None if the row has no record."""

    @abstractmethod
    def decode(self, record: str) -> PreviousResult:
        """Read a record back.

        Raises:
            ValueError: It is not a record of this format.
        """

    def name(self, item: Item) -> str:
        """Return the name of an image in its record."""
        return item.name

    def refuse(self, item: Item) -> str | None:
        """Return why an image cannot have a record; None if it can."""
        return None

    def split(self, file: IO[bytes]) -> Iterator[bytes]:
        """Yield the complete records of a file, the header included."""
        for line in file:
            if line.endswith(b"\n"):
                yield line


class TextFormat(Format):
    """`name<TAB>caption`, with a tab before each further caption; no records of failures."""

    has_errors = False

    def encode(self, row: dict[str, Any]) -> str | None:
        """See `Format.encode`."""
        return None if "error" in row else "\t".join([escaped(row["image"]), *texts(row)]) + "\n"

    def decode(self, record: str) -> PreviousResult:
        """See `Format.decode`."""
        name, tab, _ = record.partition("\t")
        if not tab:
            raise ValueError("no tab")
        return PreviousResult(name, None)

    def name(self, item: Item) -> str:
        """Return the name on one line."""
        return escaped(item.name)


class BareFormat(TextFormat):
    """The captions of a single image, one per line, without its name."""

    def encode(self, row: dict[str, Any]) -> str | None:
        """See `Format.encode`."""
        return None if "error" in row else "\n".join([*texts(row), ""])


class JsonLinesFormat(Format):
    """One JSON object per line."""

    def encode(self, row: dict[str, Any]) -> str:
        """See `Format.encode`."""
        return to_json(row) + "\n"

    def decode(self, record: str) -> PreviousResult:
        """See `Format.decode`."""
        row = json.loads(record)
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise ValueError("no object with 'image'")
        return PreviousResult(row["image"], row.get("error"))


class CocoFormat(Format):
    """Elements of a COCO results array, `{"image_id", "caption"}`; no records of failures."""

    has_errors = False

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # image id -> the image that has it

    def encode(self, row: dict[str, Any]) -> str | None:
        """See `Format.encode`."""
        if "error" in row:
            return None
        image_id = coco_id(row["image"], row.get("id"))
        return to_json({"image_id": image_id, "caption": row["caption"]}) + "\n"

    def decode(self, record: str) -> PreviousResult:
        """See `Format.decode`."""
        raise ValueError("COCO results do not name the image")

    def refuse(self, item: Item) -> str | None:
        """See `Format.refuse`."""
        image_id = coco_id(item.name, item.id)
        if image_id is None:
            return "no image id: COCO results need COCO JSON, a list with ids, or COCO file names"
        first = self._names.setdefault(id_key(image_id), item.name)
        if first != item.name:
            return f"{first} has the image id {image_id} too: give each image an id of its own"
        return None


class CsvFormat(Format):
    """A table with the columns `image,id,caption,score,error,caption_2,caption_3,...`.

    Args:
        captions: Captions per image.
    """

    def __init__(self, captions: int = 1):
        self.captions = captions
        more = [f"caption_{number}" for number in range(2, captions + 1)]
        self.header = _csv_line(["image", "id", "caption", "score", "error", *more])

    def encode(self, row: dict[str, Any]) -> str:
        """See `Format.encode`."""
        first, *more = texts(row) if "error" not in row else [""]
        score = f"{row['score']:.5f}" if "score" in row else ""
        cells = [row["image"], str(row.get("id", "")), first, score, row.get("error", ""), *more]
        return _csv_line([*cells, *[""] * (self.captions - 1 - len(more))])

    def decode(self, record: str) -> PreviousResult:
        """See `Format.decode`."""
        (cells,) = csv.reader(io.StringIO(record, newline=""))
        return PreviousResult(cells[0], cells[4] or None)

    def name(self, item: Item) -> str:
        """Return the name with the escapes that `_csv_line` writes."""
        return item.name.encode("utf-8", "backslashreplace").decode()

    def split(self, file: IO[bytes]) -> Iterator[bytes]:
        """See `Format.split`; quoted cells may hold line ends, so quotes are counted."""
        record = b""
        for line in file:
            record += line
            if record.count(b'"') % 2 == 0 and record.endswith(b"\n"):
                yield record
                record = b""


def texts(row: dict[str, Any]) -> list[str]:
    """Return all captions of a row, best first."""
    return [other["caption"] for other in row.get("candidates", [])] or [row["caption"]]


def coco_id(name: str, listed: int | str | None) -> int | str | None:
    """Return the image id for COCO results: that of the list, or of a COCO file name."""
    if isinstance(listed, str) and (number := re.fullmatch(_NUMBER, listed.strip())):
        return int(number[1])  # from a table, which has no types; COCO's tools need integers
    return coco_image_id(name) if listed is None else listed


def to_json(value: Any) -> str:
    """Return JSON on one line that is valid UTF-8 whatever bytes a file name holds."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a name with bytes that are not UTF-8: \udcNN brings them back
        return json.dumps(value)
    return text


def _csv_line(cells: list[str]) -> str:
    """Return cells quoted as in RFC 4180, with lone surrogates escaped."""
    quoted = [
        '"' + cell.replace('"', '""') + '"' if any(c in cell for c in ',"\r\n') else cell
        for cell in cells
    ]
    return ",".join(quoted).encode("utf-8", "backslashreplace").decode() + "\n"


def format_of(output: str, form: str | None = None) -> str:
    """Return the format of a file: the given one, or that of the file's ending.

    Raises:
        ConfigError: The ending is unknown.
    """
    form = form or _SUFFIXES.get(Path(output).suffix.lower())
    if form is None:
        known = ", ".join(_SUFFIXES)
        raise ConfigError(f"-o {output}: end it in one of {known}, or add --format")
    return form


def format_named(form: str, captions: int = 1) -> Format:
    """Return the format of the records; those of an array are its elements."""
    if form == "csv":
        return CsvFormat(captions)
    return {"text": TextFormat, "coco": CocoFormat}.get(form, JsonLinesFormat)()
