"""One process at a time trains into a run folder: two would spoil each other's files unseen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from captioner.errors import CaptionerError
from captioner.locks import lock, unlock

# Loader workers share the lock of the process that made them, and outlive it by up to five seconds
# if it is killed.
PATIENCE = 10.0


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Have a run folder, which is made if it is absent, to this process.

    Args:
        folder: Of the run.

    Raises:
        CaptionerError: Another process trains into it, and does not end within ten seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            _take(file, folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                unlock(file)


def _take(file: IO[str], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not lock(file):
        if time.monotonic() > deadline:
            raise CaptionerError(
                f"another process trains into {folder}: wait for its end, or change out="
            )
        time.sleep(0.2)
