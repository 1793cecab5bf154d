"""The gate that every request comes through: what this page needs, while there is room for it.

Gradio limits each file, but neither a request nor what all of them leave on the disk; and it
answers where this page asks nothing, at one place with files that nobody deletes.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from gradio.utils import get_upload_folder
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from captioner.demo import limits

_API = "/gradio_api/"
_OPEN = tuple(
    _API + each for each in ("upload", "queue/join", "run/", "call/", "cancel", "reset", "mcp")
)
_READING = ("GET", "HEAD", "OPTIONS")
_BLOCK = 4096  # bytes that even an empty file costs


class Gate:
    """ASGI middleware in front of Gradio.

    Args:
        app: What lies behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._coming = 0  # bytes of the requests that are being read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before its body is read."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        size = int(headers.get("content-length", 0))  # the server holds a body to it
        refusal = await self._refusal(scope["method"], scope["path"], headers, size)
        if refusal is not None:
            return await refusal(scope, receive, send)
        self._coming += size
        try:
            await self._app(scope, receive, send)
        finally:
            self._coming -= size

    async def _refusal(
        self, method: str, path: str, headers: Headers, size: int
    ) -> PlainTextResponse | None:
        reading = method in _READING
        if path.startswith(_API + "deep_link") or not (reading or path.startswith(_OPEN)):
            return PlainTextResponse("not here", 404)
        if "transfer-encoding" in headers:
            return PlainTextResponse("say how long it is", 411)
        if not path.startswith(_API + "upload") and size > limits.MESSAGE:
            return PlainTextResponse("too long", 413)
        if reading:
            return None
        taken = await asyncio.to_thread(room_taken, get_upload_folder())
        if taken + self._coming + size > limits.ROOM:
            return PlainTextResponse("No room: send less, or come back in an hour.", 507)
        return None


def room_taken(folder: str) -> int:
    """Bytes that the files in a folder take; what broken uploads left long ago is deleted.

    Gradio deletes the uploads that it has finished, which lie in folders of their own.
    """
    taken = 0
    for place, _, names in os.walk(folder):
        for file in (Path(place, name) for name in names):
            try:
                found = file.stat()
                if place == folder and time.time() - found.st_mtime > limits.CACHE[1]:
                    file.unlink()
                else:
                    taken += max(found.st_size, _BLOCK)
            except OSError:
                continue  # deleted just now
    return taken
