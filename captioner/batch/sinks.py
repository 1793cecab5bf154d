"""Where results go: standard output, a file that can be resumed, one array, or sidecars."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

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
from captioner.batch.parquet_sink import write_parquet
from captioner.batch.parquet_source import import_pyarrow
from captioner.batch.rowfile import Mode, RowFile
from captioner.batch.sidecars import SidecarSink
from captioner.errors import CaptionerError, ConfigError
from captioner.files import replacing

FORMATS = ("text", "jsonl", "csv", "json", "coco", "sidecar", "parquet")
_SUFFIXES = {
    ".txt": "text",
    ".tsv": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".json": "json",
    ".parquet": "parquet",
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
        attention: JSON formats and Parquet: add the attention maps.
        bare: Without ``output`` and ``form``: print the captions without names.

    Raises:
        ConfigError: The options do not go together.
        CaptionerError: The output cannot be opened.
    """
    if form == "sidecar":
        if output is not None:
            raise ConfigError("sidecars are written beside the photos: leave -o out")
        return SidecarSink(mode)
    if form == "parquet" and output is None:
        raise ConfigError("Parquet needs a file: add -o")
    if output is None:
        if mode == "resume":
            raise ConfigError("--resume needs a file to go on with: add -o")
        if form is None and bare:
            return StreamSink(BareFormat())
        return _stream(form or "text", captions, attention)
    path, form = Path(output), format_of(output, form)
    if path.is_dir():
        raise ConfigError(f"-o {output} is a folder: name a file in it")
    if path.exists() and not path.is_file():  # a pipe or a device: nothing to keep or to lock
        if form == "parquet":
            raise ConfigError(f"-o {output}: Parquet needs a regular file")
        return _stream(form, captions, attention, path)
    if form == "parquet":
        import_pyarrow()  # its absence should be told before the work
        return WholeSink(path, mode, write_parquet, attention=attention)
    if form == "coco":
        return CocoSink(path, mode)
    if form == "json":
        return WholeSink(path, mode, _write_array, attention=attention)
    return RowSink(RowFile(path, _records(form, captions, attention), mode))


def format_of(output: str, form: str | None = None) -> str:
    """The format of a file: the one asked for, or else by its ending.

    Raises:
        ConfigError: Its ending says nothing.
    """
    form = form or _SUFFIXES.get(Path(output).suffix.lower())
    if form is None:
        known = ", ".join(_SUFFIXES)
        raise ConfigError(f"-o {output}: end it in one of {known}, or add --format")
    return form


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
        self._name = path or "standard output"
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
        self._write(record)

    def close(self, complete: bool) -> None:
        """See `Sink.close`."""
        self._write(("\n]\n" if self._written else "[]\n") if self._array else "")
        if self._file is not sys.stdout:
            self._file.close()

    def _write(self, text: str) -> None:
        try:
            if text:  # a closed pipe is none of our business while there is nothing to say
                self._file.write(text)
            self._file.flush()
        except BrokenPipeError:  # its reader has seen enough
            raise
        except OSError as error:
            raise CaptionerError(f"cannot write {self._name}: {error.strerror}") from None


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


class WholeSink(RowSink):
    """A file that cannot grow: results are kept in ``FILE.partial`` and become it at the end.

    Args:
        path: The file.
        mode: What to do if it or its ``.partial`` is there.
        convert: Makes the file (second argument) of JSON Lines (first), without holding them all.
        attention: Add the attention maps.

    Raises:
        CaptionerError: The file is there already, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        mode: Mode,
        convert: Callable[[Path, Path], None],
        *,
        attention: bool = False,
    ):
        self.path = path
        self._convert = convert
        partial = path.with_name(path.name + ".partial")
        going_on = mode == "overwrite" or (mode == "resume" and partial.exists())
        if not going_on and path.exists() and path.stat().st_size:
            hint = "is complete" if mode == "resume" else "exists already"
            raise CaptionerError(f"{path} {hint}: --overwrite writes it anew")
        super().__init__(RowFile(partial, JsonLinesFormat(attention), mode))

    def close(self, complete: bool) -> None:
        """See `Sink.close`."""
        if complete and self._next is None:
            self.file.flush()
            try:
                with replacing(self.path) as temporary:
                    self._convert(self.file.path, temporary)
            except OSError as error:
                self.file.close(complete=False)
                raise CaptionerError(
                    f"cannot write {self.path}: {error.strerror or error}; "
                    f"the results are kept in {self.file.path}: --resume goes on"
                ) from None
            self.file.path.unlink(missing_ok=True)
        super().close(complete)


class CocoSink(WholeSink):
    """COCO results, ``[{"image_id", "caption"}]``, without failed photos.

    Args:
        path: The file.
        mode: What to do if it or its ``.partial`` is there.

    Raises:
        CaptionerError: The file is there already, or cannot be written.
    """

    def __init__(self, path: Path, mode: Mode):
        super().__init__(path, mode, _write_coco)
        self.shows_errors = False

    def refuse(self, item: Item) -> str | None:
        """See `Sink.refuse`."""
        return CocoFormat().refuse(item)

    def write(self, item: Item, result: Result) -> None:
        """See `Sink.write`."""
        super().write(Item(item.name, id=coco_id(item)), result)


def _write_array(rows: Path, target: Path) -> None:
    """Make one JSON array of JSON Lines."""
    _write_json(_read_rows(rows), target)


def _write_coco(rows: Path, target: Path) -> None:
    """Make COCO results of JSON Lines."""
    captioned = (row for row in _read_rows(rows) if "caption" in row)
    _write_json(({"image_id": row["id"], "caption": row["caption"]} for row in captioned), target)


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


def _write_json(rows: Iterator[dict[str, Any]], path: Path) -> None:
    separator = "[\n"
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(separator + to_json(row))
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
