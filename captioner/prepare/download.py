"""Download one file over HTTP: resumed after a break, checked at the end, whole or not at all.

Bytes go to `NAME.part`, which survives any interruption. `NAME.part.tag` records where they come
from (address, and ETag or date), so that two versions of a file are never mixed.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from captioner import __version__
from captioner.errors import DataError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the number of bytes so far and the total, if known."""

_BLOCK = 1 << 20
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses worth another attempt
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}  # of our own disk


class _BrokenError(Exception):
    """A transfer that another attempt may finish."""


class Stopped(Exception):  # noqa: N818  a request, not an error
    """The work was asked to stop (Ctrl-C in another thread)."""


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    digest: str | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: float = 60.0,
) -> None:
    """Download a file, continuing a partial download where there is one.

    Args:
        url: An http or https address; redirects are followed.
        target: The file to make.
        size: Bytes it must have, if known.
        digest: `md5:` or `sha256:` checksum that it must have, if known.
        progress: Called as bytes arrive.
        stop: Set it to end the download; the part received is kept.
        attempts: Attempts in a row without a new byte after which to give up.
        pause: Seconds before the second attempt, doubled for each further one.
        timeout: Seconds without a byte that count as a break.

    Raises:
        DataError: The address does not answer with this file, or the connection keeps breaking.
        OSError: The disk is full or cannot be written.
        Stopped: `stop` was set.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    stop = stop or threading.Event()
    failures = 0
    while True:
        before = _length(part)
        try:
            _transfer(url, part, size, digest is not None, progress, stop, timeout)
            break
        except (_BrokenError, OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in _LOCAL:
                raise
            reason = _explain(error)
            failures = 1 if _length(part) > before else failures + 1
            if failures >= attempts:
                raise DataError(f"{url}: {reason}, {attempts} times in a row") from error
            logger.info("%s: %s; trying again", target.name, reason)
            if stop.wait(pause * 2 ** (failures - 1)):
                raise Stopped from None
    verify(part, size, digest, stop=stop, remove=True)
    os.replace(part, target)
    _tag(part).unlink(missing_ok=True)


def verify(
    path: Path,
    size: int | None,
    digest: str | None,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    remove: bool = False,
) -> None:
    """Compare a file with its known size and checksum.

    Args:
        path: The file.
        size: Its bytes, if known.
        digest: `md5:` or `sha256:` checksum, if known.
        progress: Called as bytes are read.
        stop: Set it to end the check.
        remove: Delete a file that does not match, which resuming could not repair.

    Raises:
        DataError: The file is damaged, or another one.
        Stopped: `stop` was set.
    """
    actual = _length(path)
    wrong = None
    if size is not None and actual != size:
        wrong = f"{actual:,} bytes where {size:,} are expected"
    elif digest is not None:
        kind, _, expected = digest.partition(":")
        found = _checksum(path, kind, actual, progress, stop)
        if found != expected:
            wrong = f"its {kind} is {found}, expected {expected}"
    if wrong:
        if remove:
            path.unlink()
            _tag(path).unlink(missing_ok=True)
        raise DataError(f"{path.name} is damaged or another file: {wrong}")


def _transfer(
    url: str,
    part: Path,
    size: int | None,
    checked: bool,
    progress: Progress | None,
    stop: threading.Event,
    timeout: float,
) -> None:
    """Make one attempt to complete `part`.

    Raises:
        _BrokenError, OSError, http.client.HTTPException: Another attempt may succeed.
        DataError: The address does not have this file.
        Stopped: `stop` was set.
    """
    headers = {"User-Agent": f"captioner/{__version__}", "Accept-Encoding": "identity"}
    have = _length(part)
    if have:
        same_source, validator = _read_tag(part, url)
        known = same_source and bool(validator)
        if known or checked:  # a checksum would reveal a mixture of two versions at the end
            headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = validator  # if the file has changed, the server sends all of it
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing after what we have
            total = _total_of(error.headers.get("Content-Range"))
            if have in (size, total):
                return
            part.unlink()
            raise _BrokenError("the part did not fit") from error
        if error.code in _TRANSIENT:
            raise _BrokenError(f"HTTP {error.code}") from error
        raise DataError(f"{url}: HTTP {error.code} {error.reason}") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise DataError(f"{url}: {error}") from error
    with response:
        if response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        if response.status == 206:
            span = response.headers.get("Content-Range", "")
            total = _total_of(span) or total
            if not span.startswith(f"bytes {have}-"):
                part.unlink()
                raise _BrokenError(f"asked for byte {have}, got {span!r}")
        if size is not None and total is not None and total != size:
            raise DataError(f"{url}: offers {total:,} bytes where {size:,} are expected")
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if validator.startswith("W/"):  # a weak ETag does not promise equal bytes
            validator = response.headers.get("Last-Modified") or ""
        with open(part, "ab" if have else "wb") as file:
            # Written only now: before, the part may have held bytes of another version.
            _tag(part).write_text(f"{url}\n{validator}", encoding="utf-8")
            while block := response.read(_BLOCK):
                file.write(block)
                have += len(block)
                if progress:
                    progress(have, total)
                if stop.is_set():
                    raise Stopped
    total = size if total is None else total
    if total is not None and have < total:  # http.client raises no error for this
        raise _BrokenError(f"the connection broke after {have:,} of {total:,} bytes")


def _checksum(
    path: Path,
    kind: str,
    total: int,
    progress: Progress | None,
    stop: threading.Event | None,
) -> str:
    """Return the hexadecimal checksum of a file."""
    checksum = hashlib.new(kind, usedforsecurity=False)
    done = 0
    with open(path, "rb") as file:
        while block := file.read(8 * _BLOCK):
            checksum.update(block)
            done += len(block)
            if progress:
                progress(done, total)
            if stop is not None and stop.is_set():
                raise Stopped
    return checksum.hexdigest()


def _explain(error: Exception) -> str:
    """Return in a few words why a transfer broke."""
    cause = getattr(error, "reason", error)  # urllib wraps what the socket said
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def _read_tag(part: Path, url: str) -> tuple[bool, str]:
    """Return whether the part comes from this address, and its validator (ETag or date)."""
    try:
        source, _, validator = _tag(part).read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return False, ""
    return source == url, validator


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _total_of(content_range: str | None) -> int | None:
    """Return the total size stated by `bytes 5-9/10` or `bytes */10`."""
    match = re.search(r"/(\d+)\s*$", content_range or "")
    return int(match[1]) if match else None
