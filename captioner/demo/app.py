"""The page: its tabs, and how it is served."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from captioner.demo import endpoints, limits
from captioner.demo.models import Models
from captioner.demo.private import keep_private
from captioner.demo.security import Gate
from captioner.demo.settings import search_options
from captioner.demo.tabs import about as about_tab
from captioner.demo.tabs import batch as batch_tab
from captioner.demo.tabs import caption as caption_tab
from captioner.demo.tabs import compare as compare_tab
from captioner.demo.theme import theme
from captioner.demo.view import View, caption_photo
from captioner.demo.viewer import ASSETS, read_asset
from captioner.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"  # of the repository; a wheel has none
_ORDER = ("coffee", "cat", "rocket", "astronaut")  # the first is shown at the start


def build(models: Models, examples: Sequence[str] = ()) -> gr.Blocks:
    """Build the page.

    Args:
        models: To choose among.
        examples: Paths of example photos; the first is shown at the start.
    """
    keep_private()
    tabs = {
        "Caption": partial(caption_tab.build, models, examples, _first(models, examples)),
        "Compare": partial(compare_tab.build, models, examples),
        "Batch": partial(batch_tab.build, models),
        "About": partial(about_tab.build, models),
    }
    with gr.Blocks(title="captioner", analytics_enabled=False, delete_cache=limits.CACHE) as blocks:
        gr.HTML(read_asset("header.html"), elem_id="header")
        with gr.Tabs(elem_id="tabs"):
            for title, fill in tabs.items():
                with gr.Tab(title, id=title.lower()):
                    fill()
        endpoints.add(models)
    return blocks


def _first(models: Models, examples: Sequence[str]) -> View | None:
    if not examples:
        return None
    return caption_photo(models[models.names[0]], examples[0], search_options())


def serve(
    models: Models,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    queue: int = limits.QUEUE,
    examples: Sequence[str] | None = None,
    open_browser: bool = False,
    mcp: bool = False,
) -> tuple[gr.Blocks, str]:
    """Serve the page on this machine, in threads beside the caller's.

    Args:
        models: To choose among.
        host: Address to listen on; the default is reachable from this machine alone.
        port: None takes the first free one from 7860.
        queue: Visitors that may wait; more are told to come back.
        examples: Example photos; None takes the repository's, if they are there.
        open_browser: Open the page in a browser.
        mcp: Also serve the endpoints as tools, by the Model Context Protocol.

    Returns:
        The page, whose ``close()`` stops the server, and its address.

    Raises:
        ConfigError: The port is taken, or cannot be had; or ``mcp`` is not installed.
    """
    if mcp and find_spec("mcp") is None:
        raise ConfigError("--mcp needs one more package: pip install 'captioner[mcp]'")
    if examples is None:
        examples = [str(path) for name in _ORDER if (path := EXAMPLES / f"{name}.jpg").exists()]
    models.warm_up()
    blocks = build(models, examples)
    # Not open: no program runs a model past the queue.
    blocks.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
    options: dict[str, Any] = {
        "server_name": host,
        "server_port": port,
        "inbrowser": open_browser,
        "share": False,
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": mcp,
        "max_file_size": limits.UPLOAD,
        "state_session_capacity": limits.SESSIONS,
        "footer_links": [],
        "theme": theme(),
        "css_paths": [ASSETS / "page.css"],
        "js": read_asset("page.js"),
        "app_kwargs": {"middleware": [Middleware(Gate)]},
        "prevent_thread_lock": True,
        "quiet": True,
    }
    try:
        _, address, _ = blocks.launch(**options)
    except OSError as error:  # Gradio's message speaks of its own options
        at = f"port {port}" if port else "the ports from 7860 on"
        raise ConfigError(f"cannot listen on {host}, {at}: choose another --port") from error
    return blocks, address


def wait(page: gr.Blocks) -> None:
    """Keep a served page up until Ctrl-C, or the signal that asks a process to end."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt  # so that what was uploaded is deleted in either case

    signal.signal(signal.SIGTERM, stop)
    page.block_thread()
