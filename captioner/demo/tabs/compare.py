"""The tab that shows two models, or two settings of one, side by side on an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import gradio as gr

from captioner.demo.components import (
    MODEL_QUEUE,
    START_QUEUE,
    attention_viewer,
    image_input,
    read_asset,
)
from captioner.demo.models import Models
from captioner.demo.security import MAX_TEXT
from captioner.demo.session import View, notice_payload
from captioner.demo.settings import BEAM, DIVERSE, Settings, overlay_looks
from captioner.demo.tabs import caption as caption_tab

Start: TypeAlias = "Callable[[str, str], View]"
"""Takes the name of a model and the kind of a search; returns what a side shows at first."""


@dataclass(frozen=True)
class _Side:
    """One half of the page."""

    title: str
    settings: Settings
    accordion: Any
    viewer: Any
    state: Any


def build(models: Models, examples: Sequence[str], start: Start | None) -> None:
    """Lay out the tab inside the current `gr.Blocks`.

    Args:
        models: To choose among; side B starts with the second, if there is one.
        examples: Paths of example images; may be empty.
        start: What is shown before an image is given; None shows nothing.
    """
    with gr.Row(elem_classes="compare-tab"):  # laid out by assets/page.css
        with gr.Column(elem_classes="input"):
            image = image_input(elem_id="compare-photo")
            if examples:
                gr.Examples([[path] for path in examples], image, label="Examples")
        with gr.Column(elem_classes="both"):
            own = gr.Textbox(
                label="Ask both about a sentence: how likely is it, and where would they look?",
                placeholder="a cup of coffee on a table",
                submit_btn="Ask",
                max_lines=1,
                max_length=MAX_TEXT,
                elem_id="compare-own",
            )
            with gr.Accordion("Overlay", open=False, elem_id="compare-looks"):
                looks = overlay_looks("compare-")
        both = [_lay_out(models, start, *side) for side in sides(models)]
    # The word on show on one side is shown on the other as well.
    gr.HTML("", js_on_load=read_asset("together.js"), elem_classes="nothing")
    for side in both:
        _wire(models, side, image, own, looks)


def sides(models: Models) -> list[tuple[str, str, str]]:
    """Return title, model and kind of search of each side at the start."""
    several = len(models.names) > 1
    second = (models.names[1], BEAM) if several else (models.names[0], DIVERSE)
    return [("A", models.names[0], BEAM), ("B", *second)]


def _lay_out(models: Models, start: Start | None, title: str, model: str, mode: str) -> _Side:
    key = title.lower()
    with gr.Column(elem_classes=f"side side-{key}"):
        label = side_label(models, title, model, mode)
        with gr.Accordion(label, open=False, elem_id=f"settings-{key}") as accordion:
            settings = Settings(models, prefix=f"{key}-", model=model, mode=mode, looks=False)
        viewer = attention_viewer(notice_payload() if start else None, elem_id=f"viewer-{key}")
    state = gr.State(None, time_to_live=3600)
    if start:
        show = partial(caption_tab.on_start, partial(start, model, mode))
        gr.on(None, show, None, [viewer, state], **START_QUEUE)
    return _Side(title, settings, accordion, viewer, state)


def _wire(models: Models, side: _Side, image: Any, own: Any, looks: list[Any]) -> None:
    """Attach the events of one side: those of the first tab, with its own viewer and state."""
    settings, shown = side.settings, [side.viewer, side.state]
    given = [settings.model, *looks, *settings.search]
    image.change(
        partial(caption_tab.on_image, models),
        [image, *given],
        shown,
        **MODEL_QUEUE,
    )
    gr.on(
        settings.changes,
        partial(on_settings, models, side.title),
        [image, side.state, *given],
        [*shown, side.accordion],
        trigger_mode="always_last",
        **MODEL_QUEUE,
    )
    own.submit(
        partial(caption_tab.on_sentence, models),
        [own, side.state, settings.model, *looks],
        shown,
        **MODEL_QUEUE,
    )
    side.viewer.select(
        caption_tab.on_choice, side.state, side.state, queue=False, api_visibility="private"
    )
    gr.on(
        [each.change for each in looks],
        None,
        [side.viewer, *looks],
        side.viewer,
        js=read_asset("restyle.js"),
    )


def on_settings(
    models: Models, title: str, path: str | None, view: Any, model: str, *given: Any
) -> tuple[Any, ...]:
    """Caption the image on show once more, and say in the heading how."""
    _, _, mode, *_ = given  # after the looks
    label = side_label(models, title, model, mode)
    shown = caption_tab.on_settings(models, path, view, model, *given)
    return *shown, gr.update(label=label)


def side_label(models: Models, title: str, model: str, mode: str) -> str:
    """Return the heading of a side: its model and its kind of search."""
    parts = [model] if len(models.names) > 1 else []
    return f"{title}: " + ", ".join([*parts, mode[0].lower() + mode[1:]])
