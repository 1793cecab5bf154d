"""Where results go: standard output, a file that can be resumed, or sidecars."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
)
from captioner.batch.item import Item, Result
from captioner.batch.journal import Mode, RowFile
from captioner.batch.parquet import import_pyarrow
from captioner.batch.row_sinks import CocoSink, JsonSink, ParquetSink, RowSink
from captioner.batch.sidecars import SidecarSink
from captioner.errors import CaptionerError, ConfigError

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
        form: One of `captioner.batch.FORMATS`; None takes it from the file's ending, or text.
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
        return ParquetSink(path, mode, attention)
    if form == "coco":
        return CocoSink(path, mode)
    if form == "json":
        return JsonSink(path, mode, attention)
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
