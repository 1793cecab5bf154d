"""Small files that are written whole or not at all, one per photo."""

from __future__ import annotations

import contextlib
import os

from captioner.errors import CaptionerError


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that no reader ever meets a part of it, even if the process is killed.

    Unlike `files.replacing` this does not wait for the disk: that takes longer than to caption a
    photo. The temporary name is short, for photos whose names are as long as names can be.

    Raises:
        CaptionerError: It cannot be written.
    """
    temporary = os.path.join(os.path.dirname(path), f".captioner-{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        name = os.fspath(path)
        raise CaptionerError(f"cannot write {name}: {error.strerror}") from None
