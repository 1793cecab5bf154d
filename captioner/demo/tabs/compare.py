"""The tab that puts two models, or two settings of one, side by side on a photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from captioner.demo.components import photo_input
from captioner.demo.limits import MODEL_QUEUE, TEXT
from captioner.demo.models import Models
from captioner.demo.payload import view_payload
from captioner.demo.settings import BEAM, DIVERSE, Settings, overlay_looks, search_options
from captioner.demo.tabs import caption as caption_tab
from captioner.demo.view import caption_photo
from captioner.demo.viewer import attention_viewer, read_asset


@dataclass(frozen=True)
class _Side:
    """One half of the page."""

    title: str
    settings: Settings
    accordion: Any
    viewer: Any
    state: Any


def build(models: Models, examples: Sequence[str]) -> None:
    """Lay out the tab inside the current ``gr.Blocks``.

    Args:
        models: To choose among: the second, if there is one, stands against the first.
        examples: Paths of example photos; the first is shown at the start.
    """
    with gr.Row(elem_classes="compare-tab"):  # laid out by assets/page.css
        with gr.Column(elem_classes="input"):
            photo = photo_input(elem_id="compare-photo")
            if examples:
                gr.Examples([[path] for path in examples], photo, label="Examples")
        with gr.Column(elem_classes="both"):
            own = gr.Textbox(
                label="Ask both about a sentence: how likely is it, and where would they look?",
                placeholder="a cup of coffee on a table",
                submit_btn="Ask",
                max_lines=1,
                max_length=TEXT,
                elem_id="compare-own",
            )
            with gr.Accordion("Overlay", open=False, elem_id="compare-looks"):
                looks = overlay_looks("compare-")
        several = len(models.names) > 1
        sides = [
            _lay_out(models, examples, "A", models.names[0], BEAM),
            _lay_out(models, examples, "B", models.names[several], BEAM if several else DIVERSE),
        ]
    # What is looked at on one side is shown on the other as well.
    gr.HTML("", js_on_load=read_asset("together.js"), elem_classes="nothing")
    for side in sides:
        _wire(models, side, photo, own, looks)


def _lay_out(models: Models, examples: Sequence[str], title: str, model: str, mode: str) -> _Side:
    key = title.lower()
    first = caption_photo(models[model], examples[0], search_options(mode)) if examples else None
    with gr.Column(elem_classes=f"side side-{key}"):
        label = side_label(models, title, model, mode)
        with gr.Accordion(label, open=False, elem_id=f"settings-{key}") as accordion:
            settings = Settings(models, prefix=f"{key}-", model=model, mode=mode, looks=False)
        viewer = attention_viewer(view_payload(first) if first else None, elem_id=f"viewer-{key}")
    return _Side(title, settings, accordion, viewer, gr.State(first, time_to_live=3600))


def _wire(models: Models, side: _Side, photo: Any, own: Any, looks: list[Any]) -> None:
    """The events of one side; those of the first tab, with a viewer and a state of its own."""
    settings, shown = side.settings, [side.viewer, side.state]
    given = [settings.model, *looks, *settings.search]
    photo.change(partial(caption_tab.on_photo, models), [photo, *given], shown, **MODEL_QUEUE)
    gr.on(
        settings.changes,
        partial(on_settings, models, side.title),
        [photo, side.state, *given],
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
    """Caption the photo on show once more, and say in the heading how."""
    _, _, mode, *_ = given  # after the looks
    label = side_label(models, title, model, mode)
    shown = caption_tab.on_settings(models, path, view, model, *given)
    return *shown, gr.update(label=label)


def side_label(models: Models, title: str, model: str, mode: str) -> str:
    """What a side shows, in a line."""
    parts = [model] if len(models.names) > 1 else []
    return f"{title}: " + ", ".join([*parts, mode[0].lower() + mode[1:]])
