"""Room on the disk for uploads: what counts, and what goes."""

import asyncio
import os
import tempfile

import pytest

pytest.importorskip("gradio", reason="the extra demo is not installed")

from starlette.responses import PlainTextResponse

from captioner.demo import security
from captioner.demo.security import RequestGuard, disk_usage


def test_what_broken_uploads_leave_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(security, "CACHE_SECONDS", (600, 3600))
    kept = [tmp_path / "fresh", tmp_path / "upload" / "photo.png"]
    kept[1].parent.mkdir()
    for path in (*kept, tmp_path / "left"):
        path.write_bytes(bytes(10_000))
    for path in (kept[1], tmp_path / "left"):  # Gradio itself deletes whole uploads
        os.utime(path, (0, 0))
    assert disk_usage(str(tmp_path)) == 20_000
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_uploads_at_the_same_time_share_the_room(tmp_path, monkeypatch):
    """Each alone would fit; bytes count as they arrive."""
    monkeypatch.setattr(security, "MAX_DISK_BYTES", 10_000)
    monkeypatch.setattr(security, "get_upload_folder", lambda: str(tmp_path))
    statuses = {}

    async def app(scope, receive, send):
        with tempfile.NamedTemporaryFile(dir=tmp_path, buffering=0) as file:
            more = True
            while more:
                message = await receive()
                more = message["more_body"]
                file.write(message["body"])
            await PlainTextResponse("read")(scope, receive, send)

    guard = RequestGuard(app)

    async def upload(name, pieces, may_end):
        left = list(pieces)

        async def receive():
            await asyncio.sleep(0.01)
            if len(left) == 1:
                await may_end.wait()
            body = left.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(left)}

        async def send(message):
            statuses.setdefault(name, message.get("status"))

        headers = [(b"host", b"127.0.0.1"), (b"content-length", b"6000")]
        scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload"}
        await guard({**scope, "headers": headers}, receive, send)

    async def both():
        may_end = asyncio.Event()
        first = asyncio.create_task(upload("first", [bytes(3000), bytes(3000), b""], may_end))
        await asyncio.sleep(0.5)  # it has sent all and waits for its end
        await upload("second", [bytes(3000), bytes(3000), b""], may_end)
        may_end.set()
        await first
        await upload("third", [bytes(6000), b""], may_end)  # the first has gone by now

    asyncio.run(both())
    assert statuses == {"first": 200, "second": 507, "third": 200}
