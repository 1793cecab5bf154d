"""Results in a file that can be resumed: row by row, or made whole of rows at the end."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captioner.batch.formats import CocoFormat, JsonLinesFormat, Kept, coco_id, to_json
from captioner.batch.item import Item, Result
from captioner.batch.journal import Mode, RowFile
from captioner.batch.parquet_sink import read_rows, write_parquet
from captioner.errors import CaptionerError
from captioner.utils.files import replacing


class RowSink:
    """A file of records: text, JSON Lines or CSV.

    Failed photos of an earlier run stay failed: the resumed file is what an uninterrupted run would
    have written. Text has no records of them: those before the last record count as failed, those
    after it are tried again.

    Args:
        file: Where the records go.
        path: The output that messages are about, if it is not the file itself.
    """

    def __init__(self, file: RowFile, path: Path | None = None):
        self.file = file
        self.path = path or file.path
        self.shows_errors = file.form.has_errors
        self._kept: Iterator[Kept] = file.kept()
        try:
            self._next = next(self._kept, None)
        except CaptionerError:
            file.close(complete=False)
            raise

    def refuse(self, item: Item) -> str | None:
        """See `sinks.Sink.refuse`."""
        return self.file.form.refuse(item)

    def kept(self, item: Item) -> Kept | None:
        """See `sinks.Sink.kept`.

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
                f"{self.path} has a result for {record.name!r} where {item.name!r} is due: "
                "resume with the same photos in the same order, or add --overwrite"
            )
        self._next = next(self._kept, None)
        return record

    def write(self, item: Item, result: Result) -> None:
        """See `sinks.Sink.write`."""
        record = self.file.form.encode(item, result)
        if record is not None:
            self.file.write(record)

    def close(self, complete: bool) -> None:
        """See `sinks.Sink.close`.

        Raises:
            CaptionerError: The file holds results of photos that this run does not have.
        """
        strange, self._next = self._next, None
        self.file.close(complete and strange is None)
        if complete and strange is not None:
            raise CaptionerError(
                f"{self.path} has a result for {strange.name!r}, which is not among these "
                "photos: resume with the same photos in the same order, or add --overwrite"
            )


class WholeSink(RowSink, ABC):
    """A file that cannot grow: results are kept in ``FILE.partial`` and become it at the end.

    A finished file can be resumed too, as a file of rows can: it stays as it is unless there are
    more photos now.

    Args:
        path: The file.
        mode: What to do if it or its ``.partial`` is there.
        attention: Add the attention maps.

    Raises:
        CaptionerError: The file is there already, or cannot be written.
    """

    def __init__(self, path: Path, mode: Mode, attention: bool = False):
        self.path = path
        form, partial = JsonLinesFormat(attention), path.with_name(path.name + ".partial")
        there = path.exists() and path.stat().st_size > 0
        if there and mode == "new":
            raise CaptionerError(f"{path} exists already: --overwrite writes it anew")
        self._unchanged = there and mode == "resume" and not partial.exists()
        if self._unchanged:
            self._take_back(RowFile(partial, form))
        super().__init__(RowFile(partial, form, mode), path)

    @abstractmethod
    def convert(self, rows: Path, target: Path) -> None:
        """Make the file of JSON Lines, without holding them all."""

    @abstractmethod
    def revert(self) -> Iterator[str]:
        """The JSON Lines that the file was made of.

        Raises:
            ValueError: It was not made by `convert`.
            CaptionerError: They cannot be told from it.
        """

    def write(self, item: Item, result: Result) -> None:
        """See `sinks.Sink.write`."""
        self._unchanged = False
        super().write(item, result)

    def close(self, complete: bool) -> None:
        """See `sinks.Sink.close`."""
        if self._unchanged:
            self.file.path.unlink(missing_ok=True)
        elif complete and self._next is None:
            self.file.flush()
            try:
                with replacing(self.path) as temporary:
                    self.convert(self.file.path, temporary)
            except OSError as error:
                self.file.close(complete=False)
                raise CaptionerError(
                    f"cannot write {self.path}: {error.strerror or error}; "
                    f"the results are kept in {self.file.path}: --resume goes on"
                ) from None
            self.file.path.unlink(missing_ok=True)
        super().close(complete)

    def _take_back(self, partial: RowFile) -> None:
        """Keep the results of a finished file as an interrupted run would have."""
        try:
            for record in self.revert():
                partial.form.decode(record)
                partial.write(record)
        except (ValueError, CaptionerError) as error:
            partial.path.unlink()
            if isinstance(error, CaptionerError):
                raise
            raise CaptionerError(
                f"{self.path} is no result of this command: --overwrite writes it anew"
            ) from None
        finally:
            partial.close(complete=False)


class JsonSink(WholeSink):
    """One JSON array, an element on each line."""

    def convert(self, rows: Path, target: Path) -> None:
        """See `WholeSink.convert`."""
        _write_array(_read_rows(rows), target)

    def revert(self) -> Iterator[str]:
        """See `WholeSink.revert`."""
        with open(self.path, encoding="utf-8", newline="\n") as lines:
            for line in lines:
                if line not in ("[\n", "]\n", "[]\n"):
                    yield line.rstrip(",\n") + "\n"


class ParquetSink(WholeSink):
    """A Parquet table."""

    def convert(self, rows: Path, target: Path) -> None:
        """See `WholeSink.convert`."""
        write_parquet(rows, target)

    def revert(self) -> Iterator[str]:
        """See `WholeSink.revert`."""
        return read_rows(self.path)


class CocoSink(WholeSink):
    """COCO results, ``[{"image_id", "caption"}]``, without failed photos.

    Args:
        path: The file.
        mode: What to do if it or its ``.partial`` is there.
    """

    def __init__(self, path: Path, mode: Mode):
        super().__init__(path, mode)
        self.shows_errors = False
        self._coco = CocoFormat()

    def refuse(self, item: Item) -> str | None:
        """See `sinks.Sink.refuse`."""
        return self._coco.refuse(item)

    def write(self, item: Item, result: Result) -> None:
        """See `sinks.Sink.write`."""
        super().write(Item(item.name, id=coco_id(item)), result)

    def convert(self, rows: Path, target: Path) -> None:
        """See `WholeSink.convert`."""
        captioned = (row for row in _read_rows(rows) if "caption" in row)
        results = ({"image_id": row["id"], "caption": row["caption"]} for row in captioned)
        _write_array(results, target)

    def revert(self) -> Iterator[str]:
        """See `WholeSink.revert`; nothing tells which photos have failed."""
        raise CaptionerError(f"{self.path} is complete: --overwrite writes it anew")


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


def _write_array(rows: Iterator[dict[str, Any]], path: Path) -> None:
    separator = "[\n"
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(separator + to_json(row))
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
