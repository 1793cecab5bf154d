"""Download, check and unpack the archives of a data set that are not unpacked yet."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from captioner.errors import DataError
from captioner.prepare.download import Progress, Stopped, download, verify
from captioner.prepare.registry import DOWNLOADS, Archive, FileIndex

logger = logging.getLogger(__name__)

_JUNK = ("__MACOSX", ".DS_Store")  # added to archives by macOS


def fetch(
    archives: Sequence[Archive],
    root: Path,
    urls: Mapping[str, str],
    *,
    bars: bool = False,
    pause: float = 1.0,
) -> None:
    """Download and unpack what is missing, several archives at a time.

    An archive that is already in `root/downloads` is checked and used.

    Args:
        archives: The archives of the data set.
        root: Folder of the data set.
        urls: Archive name -> address.
        bars: Show a progress bar for each archive.
        pause: Seconds before the second attempt after a break.

    Raises:
        DataError: Some archives could not be downloaded or unpacked. What came is kept, and a
            second call continues.
    """
    root.mkdir(parents=True, exist_ok=True)
    there = FileIndex([root])
    wanted = [item for item in archives if not is_unpacked(item, there)]
    for item in archives:
        if item not in wanted:
            logger.info("%s: unpacked already", item.key)
    stop = threading.Event()

    def get(item: Archive) -> str | None:
        """Obtain an archive; return the reason for a failure, None on success."""
        try:
            _obtain(item, root, urls[item.name], bars, stop, pause)
        except Stopped:
            return "stopped"
        except DataError as error:
            return " ".join(str(error).split())
        except OSError as error:
            return f"{item.name}: cannot write into {root} ({error.strerror}); run it again"
        return None

    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="fetch") as pool:
        try:
            reasons = list(pool.map(get, wanted))
        except BaseException:
            stop.set()
            raise
    failed = [text for text in reasons if text is not None]
    if len(failed) == 1:
        raise DataError(failed[0])
    if failed:
        for text in failed:
            logger.error("%s", text)
        raise DataError(
            f"{len(failed)} of {len(archives)} archives are missing (see above); what came is kept,"
            " the same command goes on"
        )


def unpack_found(archives: Sequence[Archive], index: FileIndex, root: Path, bars: bool) -> bool:
    """Unpack into `root` the indexed archives that are not unpacked yet.

    Returns:
        Whether there was one.

    Raises:
        DataError: An archive is damaged.
    """
    found = False
    for item in archives:
        path = index.find(item.name)
        if path is not None and not is_unpacked(item, index):
            _check_and_unpack(item, Path(path), root, bars, None)
            found = True
    return found


def is_unpacked(archive: Archive, index: FileIndex) -> bool:
    """Return whether all files of an archive are there."""
    return len(index.match(archive.pattern)) >= archive.count


def _obtain(
    item: Archive, root: Path, url: str, bars: bool, stop: threading.Event, pause: float
) -> None:
    path = root / DOWNLOADS / item.name
    checked = False
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        have = part.stat().st_size if part.exists() else 0
        if item.size is not None:
            require_space(path.parent, item.size - have, f"downloading {item.name}")
        logger.info("%s: %s %s", item.name, "going on with" if have else "downloading", url)
        try:
            with _bar(f"{item.name} download", bars) as progress:
                download(
                    url,
                    path,
                    size=item.size,
                    digest=item.digest,
                    progress=progress,
                    stop=stop,
                    pause=pause,
                )
        except DataError as error:
            raise DataError(
                f"cannot download {item.name}: {error}. Get it elsewhere ({item.describe()})"
                f" and put it into {path.parent}, or name another address: --url {item.key}=URL"
            ) from error
        checked = True
    _check_and_unpack(item, path, root, bars, stop, checked)
    count = len(FileIndex([root]).match(item.pattern))
    if count < item.count:
        raise DataError(f"{path}: gave {count:,} files {item.pattern}, expected {item.count:,}")


def _check_and_unpack(
    item: Archive,
    path: Path,
    root: Path,
    bars: bool,
    stop: threading.Event | None,
    checked: bool = False,
) -> None:
    if not checked:
        try:
            with _bar(f"{item.name} check", bars) as progress:
                verify(path, item.size, item.digest, progress=progress, stop=stop)
        except DataError as error:
            raise DataError(f"{path}: {error}; delete it to get it anew") from error
    with _bar(f"{item.name} unpack", bars) as progress:
        written = unpack(path, root / item.into, progress=progress, stop=stop)
    logger.info("%s: %d files unpacked", item.name, written)


@contextmanager
def _bar(text: str, enabled: bool) -> Iterator[Progress]:
    """Show a progress bar in bytes on standard error."""
    with tqdm(
        desc=text,
        unit="B",
        unit_scale=True,
        disable=not enabled,
        file=sys.stderr,
        dynamic_ncols=True,
        leave=False,
    ) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            if not bar.n:
                bar.initial = done  # an earlier run's bytes must not count for the rate
            bar.update(done - bar.n)

        yield show


def unpack(
    archive: Path,
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Unpack an archive, continuing where an interrupted run stopped.

    Every file is written under another name and then renamed, so that a file of the right size is
    complete. All names are checked before the first file is written.

    Args:
        archive: The zip file.
        folder: Folder to unpack into, created if needed.
        progress: Called with the number of bytes unpacked and the total.
        stop: Set it to end; what is unpacked is kept.

    Returns:
        Number of files written, those that existed already excluded.

    Raises:
        DataError: It is no zip file or a damaged one; it holds links, encrypted files, or names
            that lead out of the folder; or the disk is too small.
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
    """Check that a disk has room.

    Args:
        folder: An existing folder on that disk.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        DataError: It has less free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {what} needs {needed / 1e9:.1f} GB and the disk has"
            f" {free / 1e9:.1f} GB free"
        )


def _target(info: zipfile.ZipInfo, folder: Path, archive: Path) -> Path | None:
    """Return where to write a member; None for folders and for what macOS added."""
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
    """Write one member; `zipfile` compares its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    # Not files.replacing: waiting for the disk after each of 100,000 images would take hours.
    try:
        with source.open(info) as member, open(temporary, "wb") as file:
            shutil.copyfileobj(member, file, 1 << 20)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
