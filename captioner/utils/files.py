"""Files that are written whole or not at all, and locks that one process at a time can hold."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from captioner.errors import CaptionerError

_TEMPORARY = re.compile(r"\.captioner-[0-9a-f]{8}-(\d+)-[0-9a-f]{8}\.part")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` if the block succeeds.

    Readers see the old file or the new one, never a part; an error leaves the old one untouched.

    Args:
        path: The file to write; its folder is created if it is absent.
        sync: Wait until the file is on the disk, so that it also survives a power failure. For
            many small files that takes longer than to compute them.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A short name, for targets whose names are as long as names can be.
    temporary = target.parent / f".captioner-{_process(os.getpid())}-{secrets.token_hex(4)}.part"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = temporary.stat().st_mode & 0o777
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors puts a private file in its place
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a small file so that no reader meets a part of it, without waiting for the disk.

    Raises:
        CaptionerError: The file cannot be written.
    """
    try:
        with replacing(path, sync=False) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise CaptionerError(f"cannot write {os.fspath(path)}: {error.strerror}") from None


def remove_leftovers(folder: str, names: Iterable[str]) -> None:
    """Remove the temporary files of processes of this machine that were killed.

    Args:
        folder: Where they may be.
        names: Of the files in it.
    """
    for name in names:
        match = _TEMPORARY.fullmatch(name)
        if match and match[0].startswith(f".captioner-{_process(int(match[1]))}-"):
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))
            except OSError:  # another user's process, which is alive
                pass


def _process(pid: int) -> str:
    """Return the number of a process with what tells it from those of other machines."""
    try:  # containers of one name number their processes apart
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}-{pid}"


class LockHeldError(CaptionerError):
    """Another process, or another part of this one, holds the lock."""


@contextlib.contextmanager
def exclusive_lock(
    path: str | os.PathLike[str],
    *,
    timeout: float = 0.0,
    on_wait: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Hold a lock file while the block runs.

    The operating system frees the lock when the process that holds it ends, however it ends: a
    lock file that a killed process left behind hinders nobody. The file is removed at the end.

    Args:
        path: The lock file; nothing else may use it. Its folder must exist.
        timeout: Seconds to wait for another holder; negative waits without a limit.
        on_wait: Called once before waiting.

    Raises:
        LockHeldError: Another holder has not released the lock in time.
        OSError: The file cannot be created, or its file system has no locks.
    """
    from filelock import FileLock, Timeout

    # Without the fallback, whose locks would outlive a killed process. Mode: for other users.
    lock = FileLock(path, mode=0o666, thread_local=False, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if timeout and on_wait is not None:
                on_wait()
            lock.acquire(timeout=timeout)
    except Timeout:
        raise LockHeldError(f"another process holds {os.fspath(path)}") from None
    try:
        yield
    finally:
        # Whoever waits for a removed file sees that, and creates a new one.
        with contextlib.suppress(OSError):
            os.unlink(path)
        lock.release()
