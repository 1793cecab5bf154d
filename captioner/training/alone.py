"""One run at a time trains into a folder: two would spoil each other's files unseen."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.training.distributed import gather, rank
from captioner.utils.files import LockHeldError, exclusive_lock

logger = logging.getLogger(__name__)

# Loader workers share the lock of the process that made them, and outlive it by up to five seconds
# if it is killed.
PATIENCE = 10.0


@contextlib.contextmanager
def exclusive_run_dir(folder: Path) -> Iterator[None]:
    """Have a run folder, which is made if it is absent, to this run; all its processes call this.

    Where files cannot be locked (some network file systems), nothing is held.

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
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                exclusive_lock(
                    folder / ".lock",
                    timeout=PATIENCE,
                    on_wait=lambda: logger.info(
                        "%s: waiting for the run that trains into it", folder
                    ),
                )
            )
        except LockHeldError:
            raise CaptionerError(
                f"another run trains into {folder}: wait for its end, or change out="
            ) from None
        except OSError:  # files cannot be locked here
            pass
        yield
