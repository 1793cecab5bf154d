"""The photo input: hands on the file as it came, so that only captioner's own reader opens it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from captioner.demo.private import uploaded


def photo_input(**options: Any) -> gr.Image:
    """A ``gr.Image`` whose value in Python is the path of the uploaded file, unopened.

    Gradio's own preprocessing would open the file first, and answer bombs and non-images with
    messages of its own.

    Args:
        **options: As for ``gr.Image``: ``elem_id``, ...
    """
    usual: dict[str, Any] = {
        "sources": ["upload", "webcam", "clipboard"],
        "label": "Photo",
        "show_label": False,
        "placeholder": "Drop a photo\nor click to choose",
        "buttons": [],
        "height": 190,
    }
    image: Any = gr.Image(type="filepath", image_mode=None, **(usual | options))
    # On the instance: beside the module of a subclass, Gradio writes a .pyi file at import.
    image.preprocess = _path
    return image


def _path(payload: Any) -> str | None:
    return None if payload is None else uploaded(payload.path)
