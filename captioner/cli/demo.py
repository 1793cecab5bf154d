"""The command `captioner demo`: check everything that can fail, then serve the page."""

from __future__ import annotations

import argparse
import os
import sys

from captioner.demo import check_start
from captioner.errors import ConfigError

_LOCAL = ("127.0.0.1", "::1", "localhost")


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `captioner demo`."""
    add = parser.add_argument
    text = "default: the shipped model; given several times, the page lets you choose"
    add("-m", "--model", action="append", default=[], metavar="FILE", help=text)
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (%(default)s, for this machine alone)",
    )
    add("--port", type=int, metavar="N", help="default: the first free one from 7860")
    text = "ask visitors for it; also read from the environment: CAPTIONER_DEMO_AUTH"
    add("--auth", metavar="NAME:PASSWORD", help=text)
    text = "where a proxy serves the page: its full address, https://example.com/captioner"
    add("--root-path", metavar="URL", help=text)
    add("--queue", type=int, default=32, metavar="N", help="visitors that may wait (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--open", action="store_true", help="open the page in a browser")
    add("--mcp", action="store_true", help="also serve the endpoints as tools for agents (MCP)")


def demo(arguments: argparse.Namespace) -> int:
    """Serve the demo page until Ctrl-C or SIGTERM.

    Raises:
        CaptionerError: A package, the port, the host or a model cannot be had.
    """
    if arguments.queue < 1:
        raise ConfigError(f"--queue must be at least 1, not {arguments.queue}")
    auth = _auth(arguments.auth or os.environ.get("CAPTIONER_DEMO_AUTH"))
    check_start(arguments.host, arguments.port, mcp=arguments.mcp)
    print("captioner: starting the demo ...", file=sys.stderr, flush=True)
    if arguments.host not in _LOCAL and auth is None:
        warning = "everybody who reaches this machine can use it: see --auth"
        print(f"captioner: warning: {warning}", file=sys.stderr, flush=True)

    from captioner.demo.app import serve, wait
    from captioner.demo.models import Models

    models = Models.from_files(arguments.model, device=arguments.device)
    page, address = serve(
        models,
        host=arguments.host,
        port=arguments.port,
        queue=arguments.queue,
        open_browser=arguments.open,
        mcp=arguments.mcp,
        root_path=arguments.root_path,
        auth=auth,
    )
    print(f"The demo is at {address} (Ctrl-C stops it)", flush=True)
    wait(page, models)
    return 0


def _auth(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise ConfigError("--auth takes a name and a password with a colon between them")
    return name, password
