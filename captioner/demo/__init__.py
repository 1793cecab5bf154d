"""The demo: a web page that shows where the model looked for each word (extra `demo`).

This file needs no Gradio, so that `check_start` answers before anything slow is imported. Gradio's
analytics are switched off here, before any module of this package imports Gradio. Gradio also keeps
a record of every event for a page that the demo does not have; a small limit keeps that short.
"""

from __future__ import annotations

import errno
import os
import socket
from importlib.util import find_spec

from captioner.errors import ConfigError

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def check_start(host: str, port: int | None, *, mcp: bool = False) -> None:
    """Check what would otherwise fail only after seconds of imports and loading.

    Args:
        host: Address to listen on.
        port: None if any free port will do.
        mcp: Whether the endpoints are served to agents as well.

    Raises:
        ConfigError: A package is missing, or nothing can listen on this host and port.
    """
    if find_spec("gradio") is None:
        raise ConfigError("the demo needs gradio: pip install 'captioner[demo]'")
    if mcp and find_spec("mcp") is None:
        raise ConfigError("--mcp needs one more package: pip install 'captioner[mcp]'")
    if port is not None and not 1 <= port <= 65535:
        raise ConfigError(f"--port must be from 1 to 65535, not {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except (OSError, UnicodeError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code == errno.EADDRINUSE:
            message = f"port {port} of {host} is in use: choose another --port"
        elif code in (errno.EACCES, errno.EPERM):
            message = f"port {port} needs administrator rights: choose a --port from 1024 on"
        else:
            message = f"cannot listen on --host {host}: it is no address of this machine"
        raise ConfigError(message) from error
