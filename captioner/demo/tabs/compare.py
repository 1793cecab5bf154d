"""The tab that shows two models, or two settings of one, side by side on an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import gradio as gr

from captioner.demo.components import attention_viewer, image_input, read_asset
from captioner.demo.models import Models
from captioner.demo.payload import notice_payload
from captioner.demo.session import View
from captioner.demo.settings import BEAM, SAMPLE, Settings, overlay_looks
from captioner.demo.tabs import caption as caption_tab

Start: TypeAlias = "Callable[[str, str], View]"
"""Takes the name of a model and the kind of a search; returns what a side shows at first."""


def build(models: Models, examples: Sequence[str], start: Start | None) -> None:
    """Lay out the tab inside the current `gr.Blocks`.

    Args:
        models: To choose among; side B starts with the second, if there is one.
        examples: Paths of example images; may be empty.
        start: What is shown before an image is given; None shows nothing.
    """
    with gr.Row(elem_classes="compare-tab"):  # laid out by assets/tabs.css
        with gr.Column(elem_classes="input"):
            image = image_input(examples, elem_id="compare-photo")
        with gr.Column(elem_classes="both"):
            own = caption_tab.sentence_input(
                "Ask both about a sentence: how likely is it, and where would they look?",
                elem_id="compare-own",
            )
            with gr.Accordion("Overlay", open=False, elem_id="compare-looks"):
                looks = overlay_looks("compare-")
        for side in sides(models):
            _add_side(models, image, own, looks, start, *side)
    # The word on show on one side is shown on the other as well.
    gr.HTML("", js_on_load=read_asset("together.js"), elem_classes="nothing")


def sides(models: Models) -> list[tuple[str, str, str, int]]:
    """Return title, model, kind of search and number of sentences of each side at the start."""
    first, *others = models.names
    # Beams of another kind find the same sentence for nearly every photo; a draw differs.
    second = (others[0], BEAM, 3) if others else (first, SAMPLE, 1)
    return [("A", first, BEAM, 3), ("B", *second)]


def _add_side(
    models: Models,
    image: Any,
    own: Any,
    looks: list[Any],
    start: Start | None,
    title: str,
    model: str,
    mode: str,
    captions: int,
) -> None:
    """Lay out one half of the page: settings and a viewer, with the events of the first tab."""
    key = title.lower()
    with gr.Column(elem_classes=f"side side-{key}"):
        label = side_label(models, title, model, mode)
        with gr.Accordion(label, open=False, elem_id=f"settings-{key}") as accordion:
            settings = Settings(
                models,
                prefix=f"{key}-",
                model=model,
                mode=mode,
                captions=captions,
                looks=False,
            )
        viewer = attention_viewer(notice_payload() if start else None, elem_id=f"viewer-{key}")
    show = partial(start, model, mode) if start else None
    again = partial(on_settings, models, title)
    caption_tab.connect(models, image, own, viewer, settings, looks, show, again, accordion)


def on_settings(
    models: Models, title: str, path: str | None, view: Any, model: str, *given: Any
) -> tuple[Any, ...]:
    """Caption the shown image again, and set the heading to the model and kind of search."""
    _, _, mode, *_ = given  # after the looks
    label = side_label(models, title, model, mode)
    shown = caption_tab.on_settings(models, path, view, model, *given)
    return *shown, gr.update(label=label)


def side_label(models: Models, title: str, model: str, mode: str) -> str:
    """Return the heading of a side: its model and its kind of search."""
    parts = [model] if len(models.names) > 1 else []
    return f"{title}: " + ", ".join([*parts, mode[0].lower() + mode[1:]])
