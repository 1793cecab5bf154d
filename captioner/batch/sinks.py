"""Where results go: standard output, a file that can be resumed, one array, or sidecars."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TextIO

from captioner.batch.formats import (
    BareFormat,
    CocoFormat,
    CsvFormat,
    Format,
    JsonLinesFormat,
    Kept,
    TextFormat,
    coco_id,
    to_json,
)
from captioner.batch.items import Item, Result
from captioner.batch.rowfile import Mode, RowFile
from captioner.batch.sidecars import SidecarSink
from captioner.errors import CaptionerError, ConfigError
from captioner.files import replacing

FORMATS = ("text", "jsonl", "csv", "json", "coco", "sidecar")
_SUFFIXES = {
    ".txt": "text",
    ".tsv": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".json": "json",
}
_ARRAYS = ("json", "coco")


class Sink(Protocol):
    """Takes results one by one, in the order of the items.

    Attributes:
        shows_errors: Whether failed photos appear in it; if not, they have to be told elsewhere.
    """

    shows_errors: bool

    def refuse(self, item: Item) -> str | None:
        """Why this sink cannot take a caption of the item, if it cannot."""

    def kept(self, item: Item) -> Kept | None:
        """What an earlier run made of the item, if it came to it.

        Asked for every item in order, after `refuse`.
        """

    def write(self, item: Item, result: Result) -> None:
        """Take a result."""

    def close(self, complete: bool) -> None:
        """Finish; ``complete`` if the run reached its end."""


def open_sink(
    output: str | None,
    form: str | None = None,
    *,
    mode: Mode = "new",
    captions: int = 1,
    attention: bool = False,
    bare: bool = False,
) -> Sink:
    """The sink that the user asked for.

    Args:
        output: A file; None writes to standard output.
        form: One of `FORMATS`; None takes it from the file's ending, or text.
        mode: What to do if the output is there already.
        captions: Captions a photo.
        attention: JSON formats: add the attention maps.
        bare: Without ``output`` and ``form``: print the captions without names.

    Raises:
        ConfigError: The options do not go together.
        CaptionerError: The output cannot be opened.
    """
    if form == "sidecar":
        if output is not None:
            raise ConfigError("sidecars are written beside the photos: leave -o out")
        return SidecarSink(mode)
    if output is None:
        if mode == "resume":
            raise ConfigError("--resume needs a file to go on with: add -o")
        if form is None and bare:
            return StreamSink(BareFormat())
        return _stream(form or "text", captions, attention)
    path = Path(output)
    if form is None:
        form = _SUFFIXES.get(path.suffix.lower())
        if form is None:
            known = ", ".join(_SUFFIXES)
            raise ConfigError(f"-o {output}: end it in one of {known}, or add --format")
    if path.is_dir():
        raise ConfigError(f"-o {output} is a folder: name a file in it")
    if path.exists() and not path.is_file():  # a pipe or a device: nothing to keep or to lock
        return _stream(form, captions, attention, path)
    if form in _ARRAYS:
        return ArraySink(path, mode, attention=attention, coco=form == "coco")
    return RowSink(RowFile(path, _records(form, captions, attention), mode))


def _records(form: str, captions: int, attention: bool) -> Format:
    formats: dict[str, Callable[[], Format]] = {
        "text": TextFormat,
        "jsonl": lambda: JsonLinesFormat(attention),
        "csv": lambda: CsvFormat(captions),
        "json": lambda: JsonLinesFormat(attention),
        "coco": CocoFormat,
    }
    return formats[form]()


def _stream(form: str, captions: int, attention: bool, path: Path | None = None) -> StreamSink:
    return StreamSink(_records(form, captions, attention), array=form in _ARRAYS, path=path)


class StreamSink:
    """Standard output, or a file that is no regular one.

    Args:
        records: How results look.
        array: Make one JSON array of the records.
        path: A pipe or device; None is standard output.
    """

    def __init__(self, records: Format, *, array: bool = False, path: Path | None = None):
        self.records = records
        self.shows_errors = records.has_errors
        self._array = array
        self._written = 0
        self._file: TextIO = sys.stdout
        if path is not None:
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115
        elif hasattr(sys.stdout, "reconfigure"):
            # A terminal keeps its own encoding; what it cannot show comes out escaped.
            encoding = None if sys.stdout.isatty() else "utf-8"
            sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")

    def refuse(self, item: Item) -> str | None:
        """See `Sink.refuse`."""
        return self.records.refuse(item)

    def kept(self, item: Item) -> None:
        """Nothing: there is no earlier run."""

    def write(self, item: Item, result: Result) -> None:
        """See `Sink.write`."""
        record = self.records.encode(item, result)
        if record is None:
            return
        if self._array:
            record = (",\n" if self._written else "[\n") + record.rstrip("\n")
        elif not self._written:
            record = self.records.header + record
        self._written += 1
        self._file.write(record)
        self._file.flush()

    def close(self, complete: bool) -> None:
        """See `Sink.close`."""
        if self._array:
            self._file.write("\n]\n" if self._written else "[]\n")
        self._file.flush()
        if self._file is not sys.stdout:
            self._file.close()


class RowSink:
    """A file of records: text, JSON Lines or CSV.

    Failed photos of an earlier run stay failed: the resumed file is what an uninterrupted run would
    have written. Text has no records of them: those before the last record count as failed, those
    after it are tried again.

    Args:
        file: Where the records go.
    """

    def __init__(self, file: RowFile):
        self.file = file
        self.shows_errors = file.form.has_errors
        self._kept: Iterator[Kept] = file.kept()
        try:
            self._next = next(self._kept, None)
        except CaptionerError:
            file.close(complete=False)
            raise

    def refuse(self, item: Item) -> str | None:
        """See `Sink.refuse`."""
        return self.file.form.refuse(item)

    def kept(self, item: Item) -> Kept | None:
        """See `Sink.kept`.

        Raises:
            CaptionerError: The file is about other photos.
        """
        record = self._next
        if record is None:
            return None
        if record.name != self.file.form.name(item):
            if not self.file.form.has_errors:
                return Kept(item.name, "failed in an earlier run")
            raise CaptionerError(
                f"{self.file.path} has a result for {record.name!r} where {item.name!r} is due: "
                "resume with the same photos in the same order, or add --overwrite"
            )
        self._next = next(self._kept, None)
        return record

    def write(self, item: Item, result: Result) -> None:
        """See `Sink.write`."""
        record = self.file.form.encode(item, result)
        if record is not None:
            self.file.write(record)

    def close(self, complete: bool) -> None:
        """See `Sink.close`.

        Raises:
            CaptionerError: The file holds results of photos that this run does not have.
        """
        strange, self._next = self._next, None
        self.file.close(complete and strange is None)
        if complete and strange is not None:
            raise CaptionerError(
                f"{self.file.path} has a result for {strange.name!r}, which is not among these "
                "photos: resume with the same photos in the same order, or add --overwrite"
            )


class ArraySink(RowSink):
    """One JSON array: results are kept in ``FILE.partial`` and become the array at the end.

    Args:
        path: The file.
        mode: What to do if it or its ``.partial`` is there.
        attention: Add the attention maps.
        coco: Write COCO results, ``{"image_id", "caption"}``, without failed photos.

    Raises:
        CaptionerError: The file is there already, or cannot be written.
    """

    def __init__(self, path: Path, mode: Mode, *, attention: bool = False, coco: bool = False):
        self.path = path
        self.coco = coco
        partial = path.with_name(path.name + ".partial")
        going_on = mode == "overwrite" or (mode == "resume" and partial.exists())
        if not going_on and path.exists() and path.stat().st_size:
            hint = "is complete" if mode == "resume" else "exists already"
            raise CaptionerError(f"{path} {hint}: --overwrite writes it anew")
        super().__init__(RowFile(partial, JsonLinesFormat(attention), mode))
        self.shows_errors = not coco

    def refuse(self, item: Item) -> str | None:
        """See `Sink.refuse`."""
        return CocoFormat().refuse(item) if self.coco else None

    def write(self, item: Item, result: Result) -> None:
        """See `Sink.write`."""
        number = coco_id(item) if self.coco else item.id
        super().write(Item(item.name, id=number), result)

    def close(self, complete: bool) -> None:
        """See `Sink.close`."""
        if complete and self._next is None:
            self.file.flush()
            try:
                with replacing(self.path) as temporary:
                    self._write_array(temporary)
            except OSError as error:
                self.file.close(complete=False)
                raise CaptionerError(
                    f"cannot write {self.path}: {error.strerror}; "
                    f"the results are kept in {self.file.path}: --resume goes on"
                ) from None
            self.file.path.unlink(missing_ok=True)
        super().close(complete)

    def _write_array(self, path: Path) -> None:
        separator = "[\n"
        with open(path, "w", encoding="utf-8") as file:
            with open(self.file.path, encoding="utf-8", newline="\n") as rows:
                for line in rows:
                    row = json.loads(line)
                    if self.coco and "caption" not in row:
                        continue
                    if self.coco:
                        row = {"image_id": row["id"], "caption": row["caption"]}
                    file.write(separator + to_json(row))
                    separator = ",\n"
            file.write("[]\n" if separator == "[\n" else "\n]\n")
