"""The attention viewer: photo, caption as words, candidates. A ``gr.HTML`` with its own assets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from captioner.demo.payload import encode_ramp

ASSETS = Path(__file__).parent / "assets"


def read_asset(name: str) -> str:
    """The text of a file of ``assets/``."""
    return (ASSETS / name).read_text(encoding="utf-8")


def attention_viewer(value: dict[str, Any] | None = None, **options: Any) -> gr.HTML:
    """A component that shows what :func:`captioner.demo.payload.view_payload` gives.

    Its ``select`` event carries ``index``, the sentence that was chosen. Several may stand on one
    page.

    Args:
        value: The payload, or None for an empty stage.
        **options: As for ``gr.HTML``: ``elem_id``, ...
    """
    return gr.HTML(
        value,
        html_template=read_asset("viewer.html"),
        css_template=read_asset("viewer.css"),
        js_on_load=read_asset("overlay.js") + read_asset("viewer.js"),
        apply_default_css=False,
        ramp=encode_ramp(),
        **options,
    )
