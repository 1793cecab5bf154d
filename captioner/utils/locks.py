"""Files that one process at a time may work on.

The system frees a lock when the process that holds it ends, however it ends: none is ever stale.
"""

from __future__ import annotations

import errno
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


def lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Take an open file for this process alone, until it is unlocked or closed.

    Args:
        file: An open file; some network file systems want it open for writing.
        wait: Until the process that holds it lets go.

    Returns:
        False if another process holds it. Windows always says True.

    Raises:
        OSError: The file system knows no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if not wait and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def unlock(file: IO[Any]) -> None:
    """Give a lock back; closing the file is not enough once other processes have inherited it.

    Args:
        file: That :func:`lock` took.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
