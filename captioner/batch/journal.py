"""A file that records are appended to durably, by one process at a time, and resumed after a crash.

A lock file beside it is held while it is open; the lock ends with the process, so none is ever
stale. Each record goes to the operating system as it is written, and to the disk every few
seconds. A write that fails half-way is taken back, so the file holds whole records.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from captioner.batch.formats import Format, Kept
from captioner.errors import CaptionerError
from captioner.utils.files import LockHeldError, exclusive_lock

Mode = Literal["new", "resume", "overwrite"]
"""What to do with a file that is there: refuse, go on from it, or start again."""

_SYNC_SECONDS = 5.0


class RowFile:
    """An open file of records.

    Args:
        path: The file; its folder is made if it is absent.
        form: Of its records.
        mode: What to do if it holds something already.

    Raises:
        CaptionerError: It cannot be written, another process writes to it, or ``mode`` is ``new``
            and it is not empty.
    """

    def __init__(self, path: Path, form: Format, mode: Mode = "new"):
        self.path = path
        self.form = form
        self.rows = 0
        """Records written or kept."""
        created = not os.path.lexists(path)
        self._lock = contextlib.ExitStack()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
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

    def kept(self) -> Iterator[Kept]:
        """The records of an earlier run, read from the file as they are asked for.

        Raises:
            CaptionerError: The file was not written by such a run.
        """
        if not self._resumed_at:
            return
        header = self.form.header.encode()
        with open(self.path, "rb") as file:
            left = self._resumed_at
            for number, record in enumerate(self.form.split(file)):
                left -= len(record)
                if number == 0 and header:
                    if record != header:
                        raise CaptionerError(
                            f"{self.path} does not start like a result of this command: "
                            "resume with the same options, or add --overwrite"
                        )
                else:
                    self.rows += 1
                    yield self._decode(record, number)
                if not left:
                    return

    def write(self, record: str) -> None:
        """Append one record.

        Raises:
            CaptionerError: The disk is full or gone; the file holds the records before.
        """
        try:
            if not self._started:
                self._start()
            self._append(record.encode())
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise CaptionerError(
                f"cannot write {self.path}: {error.strerror}; {self.rows:,} results are kept"
            ) from None
        self.rows += 1

    def flush(self) -> None:
        """Bring all records to the disk and cut what is torn.

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
        """Bring everything to the disk and let go of the file.

        Args:
            complete: The run reached its end. If not, a file without records is removed again.

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
        finally:
            self._file.close()
            self._lock.close()

    def _take_lock(self) -> None:
        """Take the file for this process alone, by a lock file beside it."""
        path = self.path.resolve()
        try:
            self._lock.enter_context(exclusive_lock(path.with_name(f".{path.name}.lock")))
        except LockHeldError:
            raise CaptionerError(f"another captioner is writing to {self.path}") from None
        except OSError:  # a file system without locks
            pass

    def _find_end(self, mode: Mode) -> int:
        """Where to go on: behind the last complete record, or at the start."""
        size = os.fstat(self._file.fileno()).st_size
        if not size or mode == "overwrite":
            return 0
        if mode == "new":
            raise CaptionerError(
                f"{self.path} exists already: add --resume to go on with it, or --overwrite"
            )
        with open(self.path, "rb") as file:
            return sum(map(len, self.form.split(file)))

    def _start(self) -> None:
        """Cut what is torn or overwritten, only now that all checks of the run have passed."""
        self._file.truncate(self._end)
        self._file.seek(self._end)
        self._started = True
        if not self._end:
            self._append(self.form.header.encode())

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._end += len(data)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _decode(self, record: bytes, number: int) -> Kept:
        try:
            return self.form.decode(record.decode())
        except (ValueError, IndexError):
            raise CaptionerError(
                f"{self.path}, record {number + 1} is damaged or of another format: "
                "cannot resume; --overwrite starts again"
            ) from None
