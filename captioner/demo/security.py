"""What the demo allows its visitors: limits, checks of every request, and a folder of its own.

Gradio limits each file, but neither a request nor what all of them leave on the disk. It serves
every file of its cache, answers at addresses that this page does not use, and fetches files from
addresses that a program gives: all of this is closed here.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import html
import ipaddress
import logging
import os
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio import mcp, processing_utils, route_utils, routes
from gradio.utils import LRUCache, get_upload_folder
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.errors import CaptionerError, ConfigError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 20 << 20  # of an upload, and of an image inside a zip
MAX_UPLOAD_BYTES = 500 << 20  # of all files of a request
MAX_MESSAGE_BYTES = 2 * MAX_FILE_BYTES  # of any other request; a program may put an image into it
MAX_DISK_BYTES = 2 << 30  # of the files of all visitors
MAX_UNZIPPED_BYTES = 500 << 20  # of all images of a zip
MAX_PIXELS = 64_000_000  # of an image: more than a phone's camera has; 192 MB when decoded
MAX_IMAGES = 200  # captioned at a time
MAX_TEXT = 300  # characters of a sentence, or of a list of words
MAX_SESSIONS = 200  # whose image is remembered
QUEUE_SIZE = 32  # visitors that may wait, unless --queue says otherwise
STALL_SECONDS = 30  # that a request may send nothing before its body is complete
BODY_SECONDS = 1800  # that a request's body may take
CACHE_SECONDS = (600, 3600)  # how often old files are looked for; the age at which they are deleted

_API = "/gradio_api/"
_OPEN = tuple(
    _API + each for each in ("upload", "queue/join", "run/", "call/", "cancel", "reset", "mcp")
)
_READING = ("GET", "HEAD", "OPTIONS")
_BLOCK = 4096  # bytes that even an empty file takes on a disk
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
_NO_ROOM = "No room on this server's disk: send less, or come back in an hour."
# Gradio builds its page from inline scripts and styles and compiles the scripts of `gr.HTML`.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'self'",
            "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "media-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self' data: blob:",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'self'",
        )
    ),
}


# ---------------------------------------------------------------------------------- every request


class _RefusedError(Exception):
    """The answer to a request whose body breaks a limit while it is read."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.response = PlainTextResponse(text, status)


class RequestGuard:
    """ASGI middleware: let pass what this page needs, within the limits.

    Bytes count when they arrive, not when a request promises them, so that a silent connection
    takes no room from others.

    Args:
        app: The application behind it.
        hosts: Host names that the page may be asked for by, beside this machine's own.
        origin: Scheme and host of the page behind a proxy, such as `https://example.com`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = (), origin: str = "") -> None:
        self._app = app
        self._hosts = {"localhost", socket.gethostname().lower(), *map(str.lower, hosts)}
        self._origin = origin
        self._on_disk = 0  # bytes, when last measured
        self._since = 0  # bytes that have arrived since then

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it before or while its body is read."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no web socket: this page opens none
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            await self._check(scope)
            await self._app(scope, self._limit(scope, receive), send_with_headers)
        except _RefusedError as refused:
            if not started:
                await refused.response(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # in the middle of an upload; nobody is left to be told
        except OSError as error:
            if error.errno not in _DISK_ERRORS or started:
                raise
            logger.error("an upload could not be kept: %s", error)
            await PlainTextResponse(_NO_ROOM, 507)(scope, receive, send_with_headers)

    async def _check(self, scope: Scope) -> None:
        """Check all of a request but its body.

        Raises:
            _RefusedError: It is not for this page.
        """
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        self._check_host(headers)
        opened = method in _READING or path.startswith(_OPEN) or path.rstrip("/") == "/login"
        if path.startswith(_API + "deep_link") or not opened:
            raise _RefusedError("not here", 404)
        if "transfer-encoding" in headers:
            raise _RefusedError("say how long it is", 411)
        upload = path.startswith(_API + "upload")
        size = int(headers.get("content-length", 0))  # the server holds a body to it
        if size > (MAX_UPLOAD_BYTES if upload else MAX_MESSAGE_BYTES):
            raise _RefusedError(f"Too much at once: send at most {MAX_UPLOAD_BYTES >> 20} MB.", 413)
        if upload:
            await self._measure()
        if method not in _READING:
            await self._check_room()

    def _check_host(self, headers: Headers) -> None:
        """Refuse requests of other sites' pages (by Origin) and unknown host names (by Host).

        Unknown names may be DNS rebinding. That needs a name, so plain addresses pass.
        """
        host = headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname or "").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            if name not in self._hosts:
                known = "start the demo with --root-path and its full address"
                raise _RefusedError(f"This page is not known as {name!r}: {known}.", 403) from None
        origin = headers.get("origin")
        if origin is not None and origin != self._origin and urlsplit(origin).netloc != host:
            raise _RefusedError("This page takes nothing from other sites.", 403)

    def _limit(self, scope: Scope, receive: Receive) -> Receive:
        """Return a `receive` that counts a request's body and does not wait for it without end."""
        deadline = time.monotonic() + BODY_SECONDS
        complete = False

        async def limited() -> Message:
            nonlocal complete
            if complete:
                return await receive()  # that waits for the end of the connection
            patience = min(STALL_SECONDS, deadline - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), patience)
            except asyncio.TimeoutError:
                raise _RefusedError("This took too long: send it once more.", 408) from None
            complete = not message.get("more_body", False)
            size = len(message.get("body", b""))
            self._since += size
            await self._check_room(size)
            return message

        return limited if scope["method"] not in _READING else receive

    async def _measure(self, unwritten: int = 0) -> None:
        since = self._since - unwritten  # what arrives meanwhile is counted beside the disk, too
        self._on_disk = await asyncio.to_thread(disk_usage, get_upload_folder())
        self._since -= since

    async def _check_room(self, unwritten: int = 0) -> None:
        if self._on_disk + self._since > MAX_DISK_BYTES:
            await self._measure(unwritten)  # other files may have been deleted
            if self._on_disk + self._since > MAX_DISK_BYTES:
                raise _RefusedError(_NO_ROOM, 507)


def disk_usage(folder: str) -> int:
    """Return the bytes that the files in a folder take; delete what broken uploads left long ago.

    Gradio deletes complete uploads, which lie in folders of their own.
    """
    used = 0
    for place, _, names in os.walk(folder):
        for file in (Path(place, name) for name in names):
            try:
                found = file.stat()
                if place == folder and time.time() - found.st_mtime > CACHE_SECONDS[1]:
                    file.unlink()
                else:
                    used += max(found.st_size, _BLOCK)
            except OSError:
                continue  # deleted just now
    return used


# ---------------------------------------------------------------------------------- Gradio itself


class _Folder:
    """A temporary folder that goes with the process."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(
            prefix="captioner-demo-", dir=os.environ.get("GRADIO_TEMP_DIR")
        )
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@functools.cache
def _folder() -> _Folder:
    return _Folder()


class _Parser(route_utils.GradioMultiPartParser):
    """Gradio's reader of uploads, which removes its half-written files whatever goes wrong."""

    async def parse(self) -> Any:
        """Read the request."""
        try:
            return await super().parse()
        except BaseException:
            for file in self._files_to_close_on_error:
                Path(file.name).unlink(missing_ok=True)
                file.close()
            raise


def prepare_gradio() -> None:
    """Confine Gradio to this demo; called before a page is built.

    By default all Gradio apps of a machine share one cache: this one gets its own, which
    `remove_files` or the end of the process deletes. Where a program gives an address instead of a
    file, Gradio would fetch it: here it refuses.

    Raises:
        ConfigError: There is no place for temporary files.
    """
    try:
        os.environ["GRADIO_TEMP_DIR"] = _folder().path
    except OSError as error:
        place = os.environ.get("GRADIO_TEMP_DIR") or "the folder for temporary files"
        reason = error.strerror or error
        raise ConfigError(f"cannot write to {place} ({reason}): set TMPDIR to another") from error
    mcp.DEFAULT_TEMP_DIR = routes.DEFAULT_TEMP_DIR = get_upload_folder()  # read at their import
    setattr(route_utils, "GradioMultiPartParser", _Parser)  # noqa: B010
    if not hasattr(processing_utils, "async_ssrf_protected_download"):
        raise RuntimeError("this version of Gradio downloads in another way: cannot stay offline")
    processing_utils.async_ssrf_protected_download = _refuse_download


def remove_files() -> None:
    """Delete all that visitors have sent."""
    if _folder.cache_info().currsize:
        _folder().remove()


async def _refuse_download(url: str, *_: object, **__: object) -> str:
    raise gr.Error("Upload the file: this page fetches nothing.", print_exception=False)


def uploaded(path: str) -> str:
    """Return the path if it is that of an upload or of an example.

    Gradio itself checks only the paths of files that a program marks as such: every handler that
    gets a path from a browser calls this.

    Raises:
        gradio.Error: It is any other file of this machine.
    """
    if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error("Upload the file first.", print_exception=False)
    return path


def report_errors(blocks: gr.Blocks) -> None:
    """Let the events of a page answer a visitor's mistake in one line, without a traceback.

    Mistakes are a `CaptionerError`, and values that the page cannot send. A full disk is one line
    too. What is left is a fault of ours: Gradio prints its traceback.
    """
    preprocess_data, process_api = blocks.preprocess_data, blocks.process_api

    async def preprocess(*args: Any, **kwargs: Any) -> Any:
        try:
            return await preprocess_data(*args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except (OSError, CaptionerError):
            raise
        except Exception as error:
            logger.debug("refused a value", exc_info=error)
            raise _told("The page cannot send such a value.") from None

    async def process(*args: Any, **kwargs: Any) -> Any:
        try:
            return await process_api(*args, **kwargs)
        except CaptionerError as error:
            raise _told(str(error)) from None
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            logger.error("a file could not be written: %s", error)
            raise _told(_NO_ROOM) from None

    setattr(blocks, "preprocess_data", preprocess)  # noqa: B010
    setattr(blocks, "process_api", process)  # noqa: B010


def bound_sessions(blocks: gr.Blocks) -> None:
    """Let Gradio's queue forget the oldest sessions; called after `blocks.queue`.

    It keeps a queue of messages for each of the last 2,000 visitors, with the images in those that
    nobody has fetched, and a set of events for every visitor that has ever been there.
    """
    for name in ("pending_messages_per_session", "pending_event_ids_session"):
        setattr(blocks._queue, name, LRUCache(2 * MAX_SESSIONS))


def _told(message: str) -> gr.Error:
    """Return an error for the page, which shows its text as HTML."""
    return gr.Error(html.escape(message, quote=False), print_exception=False)
