"""Unpack a zip file safely: nothing leaves the folder, what is there already is skipped."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from captioner.errors import DataError
from captioner.prepare.download import Stopped

_JUNK = ("__MACOSX", ".DS_Store")


def unpack(
    archive: Path,
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Unpack an archive; a run that was interrupted goes on where it was.

    Every file is written under another name and renamed, so that a file of the right size is a
    whole file. All names are checked before the first is written.

    Args:
        archive: The zip file.
        folder: Where to; made if it is absent.
        progress: Called with the bytes that are unpacked and the total.
        stop: Set it to end; what is unpacked is kept.

    Returns:
        How many files were written; those that were there are not counted.

    Raises:
        DataError: No zip file, a damaged one, one with names that lead out of the folder, links or
            encrypted files in it, or the disk is too small.
        Stopped: `stop` was set.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            members = [(info, _target(info, folder, archive)) for info in source.infolist()]
            files = [(info, path) for info, path in members if path is not None]
            todo = [(info, path) for info, path in files if not _is_there(info, path)]
            folder.mkdir(parents=True, exist_ok=True)
            needed = sum(info.file_size for info, _ in todo)
            require_space(folder, needed, f"unpacking {archive.name}")
            total = sum(info.file_size for info, _ in files)
            done = total - needed
            for info, path in todo:
                _extract(source, info, path)
                done += info.file_size
                if progress:
                    progress(done, total)
                if stop is not None and stop.is_set():
                    raise Stopped
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise DataError(f"{archive}: no zip file, or a damaged one ({error})") from error
    return len(todo)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to start what cannot fit.

    Args:
        folder: An existing folder on the disk in question.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        DataError: The disk has less free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {what} needs {needed / 1e9:.1f} GB and the disk has"
            f" {free / 1e9:.1f} GB free"
        )


def _target(info: zipfile.ZipInfo, folder: Path, archive: Path) -> Path | None:
    """Where a member goes; None for folders and for what a Mac added."""
    name = info.filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or "\0" in name:
        raise DataError(f"{archive}: unsafe name {info.filename!r} in it; nothing was unpacked")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"{archive}: {info.filename!r} is no plain file; nothing was unpacked")
    if info.flag_bits & 1:
        raise DataError(f"{archive}: {info.filename!r} is encrypted; nothing was unpacked")
    if info.is_dir() or any(part in _JUNK for part in parts):
        return None
    return folder.joinpath(*parts)


def _is_there(info: zipfile.ZipInfo, path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == info.file_size


def _extract(source: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Write one member; the check sum of the zip file is checked on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    # Not files.replacing: waiting for the disk after each of 100,000 photos would take hours.
    try:
        with source.open(info) as member, open(temporary, "wb") as file:
            shutil.copyfileobj(member, file, 1 << 20)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
