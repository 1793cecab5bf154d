"""Where results go: standard output, or a file that an interrupted run can continue.

`open_writer` makes the writer that the user asked for.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from captioner.batch.formats import (
    BareFormat,
    Format,
    JsonLinesFormat,
    PreviousResult,
    format_named,
    format_of,
    to_row,
)
from captioner.batch.item import Item, Result
from captioner.batch.journal import Journal, Mode
from captioner.batch.parquet import import_pyarrow, write_parquet
from captioner.batch.sidecars import SidecarWriter
from captioner.errors import CaptionerError, ConfigError
from captioner.utils.files import replacing

logger = logging.getLogger(__name__)

_ARRAYS = ("json", "coco")


class Writer(Protocol):
    """Takes the results of a run one by one, in the order of the items.

    Attributes:
        shows_errors: Whether failures appear in the output; if not, the run logs them.
    """

    shows_errors: bool

    def refuse(self, item: Item) -> str | None:
        """Return why no caption of this item can be written; None if it can."""

    def previous(self, item: Item) -> PreviousResult | None:
        """Return the result of an earlier run for this item, if there is one.

        The run asks for every item in order, after `refuse`.
        """

    def late(self, items: Sequence[Item]) -> list[PreviousResult | None]:
        """Look once more for results of items whose record was missing in its place.

        Called once, when the run has asked for all items, if there are such items.
        """

    def write(self, item: Item, result: Result) -> None:
        """Write a result."""

    def close(self, complete: bool) -> None:
        """Finish the output; `complete` tells whether the run reached its end."""


def open_writer(
    output: str | None,
    form: str | None = None,
    *,
    mode: Mode = "new",
    captions: int = 1,
    attention: bool = False,
    bare: bool = False,
) -> Writer:
    """Open the output that the user asked for.

    Args:
        output: A file; None writes to standard output.
        form: One of `captioner.batch.FORMATS`; None takes it from the file's ending, or text.
        mode: What to do if the output exists.
        captions: Captions per image.
        attention: Add the attention maps to JSON and Parquet.
        bare: Print captions without names, if neither `output` nor `form` is given.

    Raises:
        ConfigError: The options contradict each other.
        CaptionerError: The output cannot be opened.
    """
    if form == "sidecar":
        if output is not None:
            raise ConfigError("sidecars are written beside the photos: leave -o out")
        return SidecarWriter(mode)
    if form == "parquet" and output is None:
        raise ConfigError("Parquet needs a file: add -o")
    if output is None:
        if mode == "resume":
            raise ConfigError("--resume needs a file to go on with: add -o")
        if form is None and bare:
            return StreamWriter(BareFormat())
        return _open_stream(form or "text", captions, attention)
    path, form = Path(output), format_of(output, form)
    if path.is_dir():
        raise ConfigError(f"-o {output} is a folder: name a file in it")
    if path.exists() and not path.is_file():  # a pipe or a device cannot be locked or resumed
        if form == "parquet":
            raise ConfigError(f"-o {output}: Parquet needs a regular file")
        return _open_stream(form, captions, attention, path)
    return open_file(path, form, mode=mode, captions=captions, attention=attention)


def open_file(
    path: Path, form: str, *, mode: Mode, captions: int = 1, attention: bool = False
) -> RowWriter:
    """Open a regular file; see `open_writer`."""
    if form == "parquet":
        import_pyarrow()  # complain before the work starts
        return WholeWriter(path, None, mode, attention)
    format = format_named(form, captions)
    if form in _ARRAYS:
        return WholeWriter(path, format, mode, attention)
    return RowWriter(Journal(path, format, mode), attention)


def is_finished(output: str | None, form: str | None = None) -> bool:
    """Return whether an output is complete, so that there is nothing to resume.

    Only a file that is made at the end of a run (JSON, COCO, Parquet) can tell.
    """
    if output is None or form == "sidecar" or format_of(output, form) not in (*_ARRAYS, "parquet"):
        return False
    path = Path(output)
    return path.is_file() and path.stat().st_size > 0 and not _partial(path).exists()


def _open_stream(
    form: str, captions: int, attention: bool, path: Path | None = None
) -> StreamWriter:
    return StreamWriter(
        format_named(form, captions), attention=attention, array=form in _ARRAYS, path=path
    )


class StreamWriter:
    """Standard output, a pipe or a device.

    Args:
        format: The format of the records.
        attention: Add the attention maps.
        array: Join the records into one JSON array.
        path: A pipe or device; None is standard output.
    """

    def __init__(
        self,
        format: Format,
        *,
        attention: bool = False,
        array: bool = False,
        path: Path | None = None,
    ):
        self.format = format
        self.shows_errors = format.has_errors
        self._attention = attention
        self._array = array
        self._written = 0
        self._file: TextIO = sys.stdout
        self._name = path or "standard output"
        if path is not None:
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115
        elif hasattr(sys.stdout, "reconfigure"):
            # A terminal keeps its own encoding; characters that it lacks are escaped.
            encoding = None if sys.stdout.isatty() else "utf-8"
            sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")

    def refuse(self, item: Item) -> str | None:
        """See `Writer.refuse`."""
        return self.format.refuse(item)

    def previous(self, item: Item) -> None:
        """Return None: a stream holds no earlier results."""

    def late(self, items: Sequence[Item]) -> list[PreviousResult | None]:
        """See `Writer.late`."""
        return [None] * len(items)

    def write(self, item: Item, result: Result) -> None:
        """See `Writer.write`."""
        record = self.format.encode(to_row(item, result, attention=self._attention))
        if record is None:
            return
        if self._array:
            record = (",\n" if self._written else "[\n") + record.rstrip("\n")
        elif not self._written:
            record = self.format.header + record
        self._written += 1
        self._write(record)

    def close(self, complete: bool) -> None:
        """See `Writer.close`."""
        self._write(("\n]\n" if self._written else "[]\n") if self._array else "")
        if self._file is not sys.stdout:
            self._file.close()

    def _write(self, text: str) -> None:
        try:
            if text:  # a closed pipe does not matter while there is nothing to write
                self._file.write(text)
            self._file.flush()
        except BrokenPipeError:  # the reader has stopped reading
            raise
        except OSError as error:
            raise CaptionerError(f"cannot write {self._name}: {error.strerror}") from None


class RowWriter:
    """A file of records: text, JSON Lines or CSV.

    Images that failed in an earlier run stay failed: the resumed file is what an uninterrupted run
    would have written. Text has no records of failures: such images are tried again. Images that
    were not there in the earlier run are captioned when all others are done, and come last.

    Args:
        journal: The file.
        attention: Add the attention maps.
        path: The output to name in messages, if it is not the journal itself.
    """

    def __init__(self, journal: Journal, attention: bool = False, path: Path | None = None):
        self.journal = journal
        self.path = path or journal.path
        self.shows_errors = journal.format.has_errors
        self._attention = attention
        self._previous: Iterator[PreviousResult] = journal.previous()
        try:
            self._next = next(self._previous, None)
        except CaptionerError:
            journal.close(complete=False)
            raise

    def refuse(self, item: Item) -> str | None:
        """See `Writer.refuse`."""
        return self.journal.format.refuse(item)

    def previous(self, item: Item) -> PreviousResult | None:
        """See `Writer.previous`.

        Raises:
            CaptionerError: The file holds results of other images.
        """
        result = self._next
        if result is None:
            return None
        if result.name == self.journal.format.name(item):
            self._next = next(self._previous, None)
            return result
        failed = None if self.journal.format.has_errors else "failed in an earlier run"
        if item.error is not None or isinstance(item.source, (str, os.PathLike)):
            return PreviousResult(item.name, failed, missing=True)
        if failed:
            return PreviousResult(item.name, failed)
        raise CaptionerError(  # an image in an archive, which is not kept in memory until the end
            f"{self.path} has a result for {result.name!r} where {item.name!r} is due: resume with "
            "the same photos in the same order, or add --overwrite"
        )

    def late(self, items: Sequence[Item]) -> list[PreviousResult | None]:
        """See `Writer.late`.

        Raises:
            CaptionerError: The file holds results of images that this run does not have.
        """
        left: dict[str, list[PreviousResult]] = {}
        if self._next is not None:
            for result in (self._next, *self._previous):
                left.setdefault(result.name, []).insert(0, result)
        found = []
        for item in items:
            results = left.get(self.journal.format.name(item))
            found.append(results.pop() if results else None)
        self._next = next((results[-1] for results in left.values() if results), None)
        self._check_all_known()
        if new := found.count(None):
            logger.info("%s: the results of %d other image(s) come last", self.path, new)
        return found

    def write(self, item: Item, result: Result) -> None:
        """See `Writer.write`."""
        self.write_row(to_row(item, result, attention=self._attention))

    def write_row(self, row: dict[str, Any]) -> None:
        """Write a result in the form that `to_row` gives it."""
        record = self.journal.format.encode(row)
        if record is not None:
            self.journal.write(record)

    def close(self, complete: bool) -> None:
        """See `Writer.close`.

        Raises:
            CaptionerError: The file holds results of images that this run does not have.
        """
        try:
            if complete:
                self._check_all_known()
        except CaptionerError:
            self.journal.close(complete=False)
            raise
        self.journal.close(complete)

    def _check_all_known(self) -> None:
        strange, self._next = self._next, None
        if strange is not None:
            raise CaptionerError(
                f"{self.path} has a result for {strange.name!r}, which is not among these "
                "photos: resume with all of them, or add --overwrite"
            )


class WholeWriter(RowWriter):
    """A file that cannot grow: rows are collected in `FILE.partial` and converted at the end.

    Args:
        path: The file.
        format: The format of an array's elements; None makes a Parquet table.
        mode: What to do if the file or its `.partial` exists.
        attention: Add the attention maps.

    Raises:
        CaptionerError: The file exists, or cannot be written.
    """

    def __init__(self, path: Path, format: Format | None, mode: Mode, attention: bool = False):
        exists = path.exists() and path.stat().st_size > 0
        if exists and (mode == "new" or (mode == "resume" and not _partial(path).exists())):
            raise CaptionerError(f"{path} exists already: --overwrite writes it anew")
        super().__init__(Journal(_partial(path), JsonLinesFormat(), mode), attention, path)
        self._format = format
        self.shows_errors = format is None or format.has_errors

    def refuse(self, item: Item) -> str | None:
        """See `Writer.refuse`."""
        return None if self._format is None else self._format.refuse(item)

    def close(self, complete: bool) -> None:
        """See `Writer.close`."""
        if complete and self._next is None:
            self.journal.flush()
            try:
                with replacing(self.path) as temporary:
                    if self._format is None:
                        write_parquet(self.journal.path, temporary)
                    else:
                        _write_array(self._format, self.journal.path, temporary)
            except OSError as error:
                self.journal.close(complete=False)
                raise CaptionerError(
                    f"cannot write {self.path}: {error.strerror or error}; "
                    f"the results are kept in {self.journal.path}: --resume goes on"
                ) from None
            self.journal.path.unlink(missing_ok=True)
        super().close(complete)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _write_array(format: Format, rows: Path, target: Path) -> None:
    """Make a JSON array of a file of JSON Lines."""
    separator = "[\n"
    with (
        open(rows, encoding="utf-8", newline="\n") as lines,
        open(target, "w", encoding="utf-8") as file,
    ):
        for line in lines:
            record = format.encode(json.loads(line))
            if record is not None:
                file.write(separator + record.rstrip("\n"))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
