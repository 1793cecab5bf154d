"""An HTTP server on 127.0.0.1 that serves files and misbehaves on request."""

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Serves `files` (name -> bytes).

    Attributes:
        url: Its address, without a slash at the end.
        files: What it serves, by name.
        ranges: Whether it honours Range.
        lengths: Whether it tells the length of what it sends.
        shift: By how much the range that it names is wrong.
        drops: For how many more requests it closes the connection after `drop_after` bytes.
        failures: Statuses for the next requests, before anything works.
        requests: (path, Range header or None) of all requests.
    """

    def __init__(self):
        self.files = {}
        self.ranges = True
        self.lengths = True
        self.shift = 0
        self.etag = '"one"'
        self.drops = 0
        self.drop_after = 1000
        self.failures = []
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer._answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _answer(self, request):
        span = request.headers.get("Range")
        self.requests.append((request.path, span))
        if self.failures:
            request.send_error(self.failures.pop(0))
            return
        if request.path.startswith("/moved/"):
            request.send_response(302)
            request.send_header("Location", request.path.removeprefix("/moved"))
            request.end_headers()
            return
        data = self.files.get(request.path.removeprefix("/"))
        if data is None:
            request.send_error(404)
            return
        first = 0
        fresh = request.headers.get("If-Range") in (None, self.etag)
        if span and self.ranges and fresh:
            first = int(re.fullmatch(r"bytes=(\d+)-", span)[1])
            if first >= len(data):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(data)}")
                request.end_headers()
                return
            request.send_response(206)
            told = f"bytes {first + self.shift}-{len(data) - 1}/{len(data)}"
            request.send_header("Content-Range", told)
        else:
            request.send_response(200)
        body = data[first:]
        if self.lengths:
            request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        if self.drops:
            self.drops -= 1
            body = body[: self.drop_after]
            request.close_connection = True
        request.wfile.write(body)
