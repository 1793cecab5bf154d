"""Outputs that one process at a time writes to, and that a run can continue after a crash.

A `Journal` is a file of records, a `PartFolder` a folder of files that are each written whole. A
lock file is held while the output is open; the system frees the lock when the process ends, so no
lock is ever stale. Each record of a journal is handed to the operating system as it is written, and
to the disk every few seconds. A write that fails half-way is undone, so that the file always holds
whole records.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from captioner.batch.formats import Format, JsonLinesFormat, PreviousResult
from captioner.batch.parquet import import_pyarrow, write_parquet
from captioner.errors import CaptionerError, ConfigError
from captioner.utils.files import LockHeldError, exclusive_lock, replacing, write_atomically

Mode = Literal["new", "resume", "overwrite"]
"""What to do with an output that exists: refuse to touch it, continue it, or replace it."""

_SYNC_SECONDS = 5.0
_PART = re.compile(r"part-\d{6,}-[0-9a-f]{8}\.(jsonl|parquet)")


class Journal:
    """An open file of records.

    Args:
        path: The file; its folder is created if needed.
        format: The format of its records.
        mode: What to do if the file is not empty.

    Attributes:
        records: Number of records written, and read back from an earlier run.

    Raises:
        CaptionerError: The file cannot be written, another process is writing to it, or `mode` is
            `new` and it is not empty.
    """

    def __init__(self, path: Path, format: Format, mode: Mode = "new"):
        self.path = path
        self.format = format
        self.records = 0
        self._crlf = False
        self._settings = path.with_name(f".{path.name}.settings")
        created = not os.path.lexists(path)
        self._lock = contextlib.ExitStack()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _take_lock(self._lock, path)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        except FileExistsError:  # from mkdir
            raise CaptionerError(f"cannot write {path}: {path.parent} is no folder") from None
        except OSError as error:
            self._lock.close()
            raise CaptionerError(f"cannot write {path}: {error.strerror}") from None
        try:
            self._end = self._find_end(mode)
        except BaseException:
            self._file.close()
            self._lock.close()
            raise
        self._resumed_at = self._end
        self._started = False
        self._created = created
        self._synced = time.monotonic()

    def previous(self) -> Iterator[PreviousResult]:
        """Yield the results of an earlier run, read from the file one by one.

        Raises:
            CaptionerError: The file was not written in this format.
        """
        if not self._resumed_at:
            return
        header = self.format.header.encode()
        with open(self.path, "rb") as file:
            left = self._resumed_at
            for number, record in enumerate(self.format.split(file)):
                left -= len(record)
                if number == 0:
                    record = record.removeprefix(b"\xef\xbb\xbf")
                if number == 0 and header:
                    if record.replace(b"\r\n", b"\n") != header:
                        raise CaptionerError(
                            f"{self.path} does not start like a result of this command: "
                            "resume with the same options, or add --overwrite"
                        )
                else:
                    self.records += 1
                    yield self._decode(record, number)
                if not left:
                    return

    def write(self, record: str) -> None:
        """Append one record.

        Raises:
            CaptionerError: The disk is full or gone; the earlier records are kept.
        """
        try:
            if not self._started:
                self._start()
            if self._crlf:
                record = record.removesuffix("\n") + "\r\n"
            self._append(record.encode())
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise CaptionerError(
                f"cannot write {self.path}: {error.strerror}; {self.records:,} results are kept"
            ) from None
        self.records += 1

    def record_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings of the run in a hidden file until it is complete.

        Args:
            settings: JSON values; a run that goes on with this file must have the same.

        Raises:
            CaptionerError: The interrupted run had others.
        """
        if self._resumed_at:
            with contextlib.suppress(OSError, ValueError):  # absent: of a run that is complete
                earlier = json.loads(self._settings.read_text(encoding="utf-8"))
                names = sorted(earlier.keys() | settings.keys())
                if differing := [name for name in names if earlier.get(name) != settings.get(name)]:
                    raise CaptionerError(
                        f"{self.path} was begun with other settings ({', '.join(differing)}): "
                        "resume with the same, or add --overwrite"
                    )
        with contextlib.suppress(CaptionerError):  # a folder in which only the file is writable
            write_atomically(self._settings, json.dumps(dict(settings)).encode())

    def flush(self) -> None:
        """Write all records to the disk and cut off an incomplete record.

        Raises:
            CaptionerError: The disk is full or gone.
        """
        try:
            if not self._started:
                self._start()
            self._sync()
        except OSError as error:
            raise CaptionerError(f"cannot write {self.path}: {error.strerror}") from None

    def close(self, complete: bool = True) -> None:
        """Write everything to the disk and release the file.

        Args:
            complete: The run reached its end. If not, a file without records is removed.

        Raises:
            CaptionerError: The disk is full or gone.
        """
        if self._file.closed:
            return
        try:
            if complete or self._started:
                self.flush()
            elif self._created and not self._end:
                self.path.unlink(missing_ok=True)
            if complete or not self._end:
                with contextlib.suppress(OSError):
                    self._settings.unlink()
        finally:
            self._file.close()
            self._lock.close()

    def _find_end(self, mode: Mode) -> int:
        """Return where to append: after the last complete record, or at the start."""
        size = os.fstat(self._file.fileno()).st_size
        if not size or mode == "overwrite":
            return 0
        if mode == "new":
            raise CaptionerError(
                f"{self.path} exists already: add --resume to go on with it, or --overwrite"
            )
        with open(self.path, "rb") as file:
            self._crlf = file.readline().endswith(b"\r\n")  # as a Windows program has saved it
            file.seek(0)
            return sum(map(len, self.format.split(file)))

    def _start(self) -> None:
        """Cut off an incomplete record or the old content.

        The first write does this, not the constructor: by then all checks of the run have passed.
        """
        self._file.truncate(self._end)
        self._file.seek(self._end)
        self._started = True
        if not self._end:
            self._append(self.format.header.encode())

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._end += len(data)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _decode(self, record: bytes, number: int) -> PreviousResult:
        try:
            return self.format.decode(record.decode())
        except (ValueError, IndexError):
            raise CaptionerError(
                f"{self.path}, record {number + 1} is damaged or of another format: "
                "cannot resume; --overwrite starts again"
            ) from None


def part_name(number: int, contents: Iterable[str]) -> str:
    """Return the name of a part file, without its ending, such as `part-000012-9f3a5c21`.

    Args:
        number: Of the unit; part files sort in the order of the images.
        contents: The settings of the run, the names of the images, ...; hashed, so that a part of
            other images or settings is noticed.
    """
    digest = hashlib.sha256()
    for text in contents:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return f"part-{number:06}-{digest.hexdigest()[:8]}"


class PartFolder:
    """A folder of part files, locked by one process at a time.

    Args:
        folder: Created if needed.
        form: `jsonl` or `parquet`.
        mode: What to do with part files that exist.

    Raises:
        ConfigError: The output is a file, or the format needs a package.
        CaptionerError: The folder cannot be written, is in use, or has part files and `mode` is
            `new`.
    """

    def __init__(self, folder: Path, form: str, mode: Mode):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"-o {folder} is a file: --engine ray writes a folder of part files")
        if form == "parquet":
            import_pyarrow()  # complain before the work starts
        self.folder, self.form, self.mode = folder, form, mode
        if mode == "new" and (found := self._found()):
            raise CaptionerError(
                f"{folder} has {len(found):,} part files already: add --resume to go on with them, "
                "or --overwrite"
            )
        self._lock = contextlib.ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _take_lock(self._lock, folder)
        except OSError as error:
            raise CaptionerError(f"cannot write {folder}: {error.strerror}") from None

    def begin(self, names: Sequence[str]) -> set[str]:
        """Announce the names of all parts; return those that an earlier run has finished.

        Raises:
            CaptionerError: There are parts of other images or settings.
        """
        found = self._found()
        if self.mode != "resume":
            for path in found.values():
                path.unlink()
            return set()
        expected = {f"{name}.{self.form}" for name in names}
        if strange := sorted(found.keys() - expected):
            raise CaptionerError(
                f"{self.folder / strange[0]} is not a part of these results: resume with the same "
                "photos in the same order and the same options, or add --overwrite"
            )
        return {name for name in names if f"{name}.{self.form}" in found}

    def previous_errors(self, name: str) -> Iterator[str | None]:
        """Yield the errors in a finished part, None for each image that has a caption.

        Raises:
            CaptionerError: The part cannot be read.
        """
        path = self._path(name)
        try:
            if self.form == "parquet":
                with open(path, "rb") as table:
                    yield from import_pyarrow()[1].read_table(table)["error"].to_pylist()
            else:
                with open(path, encoding="utf-8", newline="\n") as rows:
                    yield from (JsonLinesFormat().decode(row).error for row in rows)
        except (OSError, ValueError) as error:  # pyarrow's errors are among these
            raise CaptionerError(
                f"cannot read {path} ({error}): delete it, and --resume makes it anew"
            ) from None

    def write(self, name: str, rows: Iterable[str]) -> None:
        """Write a part of JSON rows.

        Raises:
            CaptionerError: The disk is full or gone.
        """
        try:
            with replacing(self._path(name)) as temporary:
                lines = temporary if self.form == "jsonl" else temporary.with_suffix(".jsonl")
                try:
                    with open(lines, "w", encoding="utf-8", newline="\n") as file:
                        file.writelines(row + "\n" for row in rows)
                    if self.form == "parquet":
                        write_parquet(lines, temporary)
                finally:
                    if lines != temporary:
                        lines.unlink(missing_ok=True)
        except OSError as error:
            raise CaptionerError(
                f"cannot write {self._path(name)}: {error.strerror or error}; "
                "the parts before it are kept"
            ) from None

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.{self.form}"

    def _found(self) -> dict[str, Path]:
        """Return the parts that exist, of any format; other programs name their files alike."""
        found = sorted(self.folder.glob("part-*"))
        return {path.name: path for path in found if _PART.fullmatch(path.name)}


def _take_lock(stack: contextlib.ExitStack, path: Path) -> None:
    """Hold the lock file beside an output until the stack is closed.

    Raises:
        CaptionerError: Another process holds it.
    """
    whole = path.resolve()
    try:
        stack.enter_context(exclusive_lock(whole.with_name(f".{whole.name}.lock")))
    except LockHeldError:
        raise CaptionerError(f"another captioner is writing to {path}") from None
    except OSError:  # a file system without locks
        pass
