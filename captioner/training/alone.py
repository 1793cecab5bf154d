"""One run at a time trains into a folder: two would spoil each other's files unseen."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from captioner.errors import CaptionerError
from captioner.training.distributed import gather, rank
from captioner.utils.locks import lock, unlock

logger = logging.getLogger(__name__)

# Loader workers share the lock of the process that made them, and outlive it by up to five seconds
# if it is killed.
PATIENCE = 10.0


@contextlib.contextmanager
def exclusive_run_dir(folder: Path) -> Iterator[None]:
    """Have a run folder, which is made if it is absent, to this run; all its processes call this.

    Where files cannot be locked (Windows, some network file systems), nothing is held.

    Args:
        folder: Of the run.

    Raises:
        CaptionerError: Another run trains into it, and does not end within ten seconds; or nothing
            can be written there.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        if rank() == 0:
            try:
                stack.enter_context(_held(folder))
            except (CaptionerError, OSError) as error:
                refusal = str(error)
        refusal = gather(refusal)[0]  # nobody reads the folder before it is ours
        if refusal is not None:
            raise CaptionerError(refusal)
        yield


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    # To read: another user's lock in a folder that many may write can be taken, too.
    with open(os.open(folder / ".lock", os.O_RDONLY | os.O_CREAT, 0o666)) as file:
        with contextlib.suppress(OSError):  # files cannot be locked here
            _take(file, folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                unlock(file)


def _take(file: IO[str], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    if not lock(file):
        logger.info("%s: waiting for the run that trains into it", folder)
        while not lock(file):
            if time.monotonic() > deadline:
                raise CaptionerError(
                    f"another run trains into {folder}: wait for its end, or change out="
                )
            time.sleep(0.2)
