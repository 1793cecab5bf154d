"""The page: its tabs, and how it is served."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.middleware import Middleware

from captioner.demo import check_start, endpoints, mechanisms, security
from captioner.demo.components import ASSETS, read_asset, theme
from captioner.demo.mechanisms import load_or_log
from captioner.demo.models import Models
from captioner.demo.session import View, caption_image
from captioner.demo.settings import BEAM, decoding_options
from captioner.demo.tabs import about as about_tab
from captioner.demo.tabs import batch as batch_tab
from captioner.demo.tabs import caption as caption_tab
from captioner.demo.tabs import compare as compare_tab
from captioner.demo.tabs import mechanisms as mechanisms_tab
from captioner.errors import ConfigError

if TYPE_CHECKING:
    from captioner.api import Captioner

EXAMPLES = Path(__file__).parents[2] / "examples"  # of the repository; a wheel has none
_ORDER = (  # the first is shown at the start
    *("cat", "coffee", "photographer", "stairs"),
    *("grass", "astronaut", "rocket", "galaxies"),
)
_END_SECONDS = 2  # that the server may take to close


def build(models: Models, examples: Sequence[str] = ()) -> gr.Blocks:
    """Build the page.

    Args:
        models: To choose among; they need not be loaded yet.
        examples: Paths of example images; the first is shown at the start.
    """
    security.prepare_gradio()
    start = caption_example(models, examples[0]) if examples else None
    first = partial(start, models.names[0], BEAM) if start else None
    tabs = {
        "Caption": partial(caption_tab.build, models, examples, first),
        "Compare": partial(compare_tab.build, models, examples, start),
        "Mechanisms": partial(mechanisms_tab.build, models, cache(load_or_log), examples),
        "Batch": partial(batch_tab.build, models),
        "About": partial(about_tab.build, models),
    }
    if not mechanisms.available():
        del tabs["Mechanisms"]
    options: dict[str, Any] = {"analytics_enabled": False, "delete_cache": security.CACHE_SECONDS}
    with gr.Blocks(title="captioner", **options) as blocks:
        gr.HTML(read_asset("header.html"), elem_id="header")
        with gr.Tabs(elem_id="tabs"):
            for title, fill in tabs.items():
                with gr.Tab(title, id=title.lower()):
                    fill()
        endpoints.add(models)
    security.report_errors(blocks)
    return blocks


def caption_example(models: Models, path: str) -> compare_tab.Start:
    """Return a function that gives the first example, captioned once for all visitors.

    It is captioned while the models are loaded: a visitor's own image never comes before it.
    """
    views: dict[tuple[str, str], View] = {}

    def caption(captioners: Mapping[str, Captioner]) -> None:
        for _, model, mode, count in compare_tab.sides(models):
            if (model, mode) not in views:
                options = decoding_options(mode, count)
                views[model, mode] = caption_image(captioners[model], path, options)

    def view(model: str, mode: str) -> View:
        models.wait()
        return views[model, mode]

    models.prepare(caption)
    return view


def serve(
    models: Models,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    queue: int = security.QUEUE_SIZE,
    examples: Sequence[str] | None = None,
    open_browser: bool = False,
    mcp: bool = False,
    root_path: str | None = None,
    auth: tuple[str, str] | None = None,
) -> tuple[gr.Blocks, str]:
    """Serve the page in threads beside the caller's, and load the models behind it.

    Args:
        models: To choose among.
        host: Address to listen on; the default is reachable from this machine alone.
        port: None takes the first free one from 7860.
        queue: Visitors that may wait; more are told to come back.
        examples: Example images; None takes the repository's, if they are there.
        open_browser: Open the page in a browser.
        mcp: Also serve the endpoints as tools, by the Model Context Protocol.
        root_path: Where a proxy serves the page: a path such as `/captioner`, or the full address,
            which is needed if the proxy is asked for by a name.
        auth: Name and password that visitors must give.

    Returns:
        The page, whose `close()` stops the server, and its address.

    Raises:
        ConfigError: A package is missing, or nothing can listen on this host and port.
    """
    check_start(host, port, mcp=mcp)
    if examples is None:
        examples = [str(path) for name in _ORDER if (path := EXAMPLES / f"{name}.jpg").exists()]
    blocks = build(models, examples)
    # Not open: no program runs a model past the queue.
    blocks.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
    security.bound_sessions(blocks)
    public = urlsplit(root_path or "")
    guard = Middleware(
        security.RequestGuard,
        hosts=[host, *filter(None, [public.hostname])],
        origin=f"{public.scheme}://{public.netloc}" if public.netloc else "",
    )
    options: dict[str, Any] = {
        "server_name": host,
        "server_port": port,
        "root_path": root_path,
        "auth": auth,
        "inbrowser": open_browser,
        "share": False,
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": mcp,
        "state_session_capacity": security.MAX_SESSIONS,
        "footer_links": [],
        "theme": theme(),
        "css_paths": [ASSETS / "page.css", ASSETS / "tabs.css"],
        "js": read_asset("page.js"),
        "app_kwargs": {"middleware": [guard]},
        "prevent_thread_lock": True,
        "quiet": True,
    }
    try:
        _, address, _ = blocks.launch(**options)
    except OSError as error:  # Gradio's message speaks of its own options
        at = f"port {port}" if port else "the ports from 7860 on"
        raise ConfigError(f"cannot listen on {host}, {at}: choose another --port") from error
    models.start()
    return blocks, address


def wait(page: gr.Blocks, models: Models) -> None:
    """Keep a served page up until Ctrl-C or SIGTERM, then end the process with status 0.

    The process ends at once: a search in the middle of a batch would keep its threads, and PyTorch
    aborts if Python shuts down beneath them.

    Raises:
        CaptionerError: A model cannot be loaded; the page is then closed.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(0.2):
        models.check()
    closing = threading.Thread(target=partial(page.close, verbose=False), daemon=True)
    closing.start()
    closing.join(_END_SECONDS)
    security.remove_files()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
