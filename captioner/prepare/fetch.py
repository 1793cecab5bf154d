"""Get the archives of a data set: those not unpacked yet are downloaded, checked and unpacked."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from captioner.errors import DataError
from captioner.prepare.download import Progress, Stopped, download, verify
from captioner.prepare.file_index import FileIndex
from captioner.prepare.registry import DOWNLOADS, Archive
from captioner.prepare.unpack import require_space, unpack

logger = logging.getLogger(__name__)


def fetch(
    archives: Sequence[Archive],
    root: Path,
    urls: Mapping[str, str],
    *,
    bars: bool = False,
    pause: float = 1.0,
) -> None:
    """Download and unpack what is not there, several archives at a time.

    An archive that a person has put into ``root/downloads`` is checked and used.

    Args:
        archives: What is wanted.
        root: Folder of the data set.
        urls: Archive name -> address.
        bars: Show a progress bar for each archive.
        pause: Seconds before the second attempt after a break.

    Raises:
        DataError: Some could not be had. The others are there, and running it again goes on.
    """
    root.mkdir(parents=True, exist_ok=True)
    there = FileIndex([root])
    wanted = [item for item in archives if not is_unpacked(item, there)]
    for item in archives:
        if item not in wanted:
            logger.info("%s: unpacked already", item.key)
    stop = threading.Event()

    def get(item: Archive) -> str | None:
        """Why it could not be had; None if it is there."""
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
    """Unpack into `root` those archives that lie among a person's files and are packed still.

    Returns:
        Whether there was one.

    Raises:
        DataError: One is damaged.
    """
    found = False
    for item in archives:
        path = index.find(item.name)
        if path is not None and not is_unpacked(item, index):
            _check_and_unpack(item, Path(path), root, bars, None)
            found = True
    return found


def is_unpacked(archive: Archive, index: FileIndex) -> bool:
    """Whether all files of an archive are there."""
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
    """A progress bar in bytes on standard error."""
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
