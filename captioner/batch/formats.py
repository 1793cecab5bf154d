"""How one result becomes one record of a file, and how a record of an earlier run is read back.

A record is written in one piece and ends with a line end, so what an interrupted run left behind is
a whole number of records and at most one torn end.
"""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from captioner.batch.item import Item, Result, escaped
from captioner.data.fields import coco_image_id, id_key


class Kept(NamedTuple):
    """What a record of an earlier run says.

    Attributes:
        name: The photo, as `Format.name` writes it.
        error: Why it has no caption, if it has none.
    """

    name: str
    error: str | None


class Format(ABC):
    """Records of one kind.

    Attributes:
        header: What the file starts with.
        has_errors: Whether failed photos have records too.
    """

    header = ""
    has_errors = True

    @abstractmethod
    def encode(self, item: Item, result: Result) -> str | None:
        """The record of a result, with its line end; None if it has none."""

    @abstractmethod
    def decode(self, record: str) -> Kept:
        """Read a record back.

        Raises:
            ValueError: It is none of this format.
        """

    def name(self, item: Item) -> str:
        """What records call the photo."""
        return item.name

    def refuse(self, item: Item) -> str | None:
        """Why a photo cannot have a record, if it cannot."""
        return None

    def split(self, file: IO[bytes]) -> Iterator[bytes]:
        """The complete records of a file, header included; a torn end is left out."""
        for line in file:
            if line.endswith(b"\n"):
                yield line


class TextFormat(Format):
    """``name<TAB>caption``, and further captions behind more tabs; nothing for failed photos."""

    has_errors = False

    def encode(self, item: Item, result: Result) -> str | None:
        """See `Format.encode`."""
        if isinstance(result, str):
            return None
        return "\t".join([self.name(item), *sentences(result)]) + "\n"

    def decode(self, record: str) -> Kept:
        """See `Format.decode`."""
        name, tab, _ = record.partition("\t")
        if not tab:
            raise ValueError("no tab")
        return Kept(name, None)

    def name(self, item: Item) -> str:
        """The name on one line."""
        return escaped(item.name)


class BareFormat(TextFormat):
    """The captions alone, one a line: for a single photo."""

    def encode(self, item: Item, result: Result) -> str | None:
        """See `Format.encode`."""
        return None if isinstance(result, str) else "\n".join([*sentences(result), ""])


class JsonLinesFormat(Format):
    """One JSON object a line: ``image``, maybe ``id``, then the caption's fields or ``error``.

    Args:
        attention: Add the attention maps.
    """

    def __init__(self, attention: bool = False):
        self.attention = attention

    def encode(self, item: Item, result: Result) -> str:
        """See `Format.encode`."""
        return to_json(self.row(item, result)) + "\n"

    def row(self, item: Item, result: Result) -> dict[str, Any]:
        """The record as a dict."""
        row: dict[str, Any] = {"image": item.name}
        if item.id is not None:
            row["id"] = item.id
        if isinstance(result, str):
            return {**row, "error": result}
        return {**row, **result.to_dict(attention=self.attention)}

    def decode(self, record: str) -> Kept:
        """See `Format.decode`."""
        row = json.loads(record)
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise ValueError("no object with 'image'")
        return Kept(row["image"], row.get("error"))


class CocoFormat(Format):
    """Elements of a COCO results array, ``{"image_id", "caption"}``; nothing for failed photos."""

    has_errors = False

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # image id -> the image that has it

    def encode(self, item: Item, result: Result) -> str | None:
        """See `Format.encode`."""
        if isinstance(result, str):
            return None
        return to_json({"image_id": coco_id(item), "caption": result.text}) + "\n"

    def decode(self, record: str) -> Kept:
        """See `Format.decode`."""
        raise ValueError("COCO results do not name the photo")

    def refuse(self, item: Item) -> str | None:
        """See `Format.refuse`."""
        image_id = coco_id(item)
        if image_id is None:
            return "no image id: COCO results need COCO JSON, a list with ids, or COCO file names"
        first = self._names.setdefault(id_key(image_id), item.name)
        if first != item.name:
            return f"{first} has the image id {image_id} too: give each image an id of its own"
        return None


class CsvFormat(Format):
    """A table ``image,id,caption,score,error``, further captions as ``caption_2``, ...

    Args:
        captions: Captions a photo.
    """

    def __init__(self, captions: int = 1):
        self.captions = captions
        more = [f"caption_{number}" for number in range(2, captions + 1)]
        self.header = _csv_line(["image", "id", "caption", "score", "error", *more])

    def encode(self, item: Item, result: Result) -> str:
        """See `Format.encode`."""
        cells = [item.name, "" if item.id is None else str(item.id)]
        if isinstance(result, str):
            return _csv_line([*cells, "", "", result, *[""] * (self.captions - 1)])
        first, *more = sentences(result)
        more += [""] * (self.captions - 1 - len(more))
        return _csv_line([*cells, first, f"{result.score:.5f}", "", *more])

    def decode(self, record: str) -> Kept:
        """See `Format.decode`."""
        (cells,) = csv.reader(io.StringIO(record, newline=""))
        return Kept(cells[0], cells[4] or None)

    def name(self, item: Item) -> str:
        """The name with bytes that are not UTF-8 escaped, as `_csv_line` does."""
        return item.name.encode("utf-8", "backslashreplace").decode()

    def split(self, file: IO[bytes]) -> Iterator[bytes]:
        """See `Format.split`; quoted cells may hold line ends, so quotes are counted."""
        record = b""
        for line in file:
            record += line
            if record.count(b'"') % 2 == 0 and record.endswith(b"\n"):
                yield record
                record = b""


def sentences(caption: Any) -> list[str]:
    """All sentences of a caption, best first."""
    return [other.text for other in caption.candidates] or [caption.text]


def coco_id(item: Item) -> int | str | None:
    """Return the image id for COCO results: that of the list, or of a COCO file name."""
    return coco_image_id(item.name) if item.id is None else item.id


def to_json(value: Any) -> str:
    """JSON on one line that is always valid UTF-8, whatever bytes a file name holds."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a name with bytes that are not UTF-8: \udcNN brings them back
        return json.dumps(value)
    return text


def _csv_line(cells: list[str]) -> str:
    """Cells as RFC 4180 has them, lone surrogates escaped."""
    quoted = [
        '"' + cell.replace('"', '""') + '"' if any(c in cell for c in ',"\r\n') else cell
        for cell in cells
    ]
    return ",".join(quoted).encode("utf-8", "backslashreplace").decode() + "\n"
