"""The first tab: an image in, its caption out, and where the model looked for each word."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from captioner.demo.components import (
    MODEL_QUEUE,
    START_QUEUE,
    attention_viewer,
    image_input,
    read_asset,
)
from captioner.demo.downloads import KINDS, make_file
from captioner.demo.models import Models
from captioner.demo.security import MAX_TEXT
from captioner.demo.session import (
    View,
    caption_image,
    error_payload,
    notice_payload,
    score_sentence,
    view_payload,
)
from captioner.demo.settings import Settings, decoding_options
from captioner.errors import CaptionerError
from captioner.tokenizer import tokenize

if TYPE_CHECKING:
    from captioner.api import Captioner


def build(models: Models, examples: Sequence[str], start: Callable[[], View] | None) -> None:
    """Lay out the tab inside the current `gr.Blocks`.

    Args:
        models: To choose among.
        examples: Paths of example images; may be empty.
        start: Returns what is shown before an image is given; None shows nothing.
    """
    with gr.Row(elem_classes="caption-tab"):  # laid out by assets/page.css
        with gr.Column(elem_classes="input"):
            image = image_input(examples, elem_id="photo")
        with gr.Column(elem_classes="result"):
            viewer = attention_viewer(notice_payload() if start else None, elem_id="viewer")
            own = sentence_input(
                "Your own sentence: how likely does the model find it?", elem_id="own"
            )
            with gr.Row(elem_id="downloads"):
                takes = {
                    kind: gr.Button(label, size="sm", elem_id=f"take-{kind}")
                    for kind, label in KINDS.items()
                }
        with (
            gr.Column(elem_classes="settings"),
            gr.Accordion("Settings", open=False, elem_id="settings"),
        ):
            settings = Settings(models)
    state = connect(
        models, image, own, viewer, settings, settings.looks, start, partial(on_settings, models)
    )
    ready = gr.DownloadButton(visible=False)
    for kind, button in takes.items():
        button.click(
            partial(on_download, ready.GRADIO_CACHE, kind),
            [state, *settings.looks],
            ready,
            **MODEL_QUEUE,
        ).success(None, ready, None, js=read_asset("download.js"))


def sentence_input(label: str, elem_id: str) -> gr.Textbox:
    """Return the input for a visitor's own sentence."""
    return gr.Textbox(
        label=label,
        placeholder="a cup of coffee on a table",
        submit_btn="Ask",
        max_lines=1,
        max_length=MAX_TEXT,
        elem_id=elem_id,
    )


def connect(
    models: Models,
    image: Any,
    own: Any,
    viewer: Any,
    settings: Settings,
    looks: Sequence[Any],
    start: Callable[[], View] | None,
    search_again: Callable[..., tuple[Any, ...]],
    *also_shown: Any,
) -> gr.State:
    """Attach the events of a viewer.

    Args:
        models: To choose among.
        image: The input of the image.
        own: The input of the visitor's own sentence.
        viewer: The viewer.
        settings: Its settings.
        looks: Style and strength of its overlay.
        start: Returns what is shown before an image is given; None shows nothing.
        search_again: Handles changed settings, as `on_settings` does.
        *also_shown: Components that `search_again` sets besides.

    Returns:
        The viewer's state: a `View` or None.
    """
    state = gr.State(None, time_to_live=3600)
    shown, given = [viewer, state], [settings.model, *looks, *settings.search]
    if start:
        gr.on(None, partial(on_start, start), None, shown, **START_QUEUE)
    image.change(partial(on_image, models), [image, *given], shown, **MODEL_QUEUE)
    gr.on(
        settings.changes,
        search_again,
        [image, state, *given],
        [*shown, *also_shown],
        trigger_mode="always_last",
        **MODEL_QUEUE,
    )
    own.submit(
        partial(on_sentence, models), [own, state, settings.model, *looks], shown, **MODEL_QUEUE
    )
    viewer.select(on_choice, state, state, queue=False, api_visibility="private")
    changes = [each.change for each in looks]
    gr.on(changes, None, [viewer, *looks], viewer, js=read_asset("restyle.js"))
    return state


def on_start(start: Callable[[], View]) -> tuple[dict[str, Any], View]:
    """Show the example; this waits while the models are loaded."""
    view = start()
    return view_payload(view), view


def on_image(
    models: Models, path: str | None, model: str, style: str, strength: float, *search: Any
) -> tuple[dict[str, Any] | None, View | None]:
    """Caption an image; return what the viewer shows, and the visitor's state."""
    if not path:
        return None, None
    try:
        view = _caption(models[model], path, *search)
    except CaptionerError as error:
        return error_payload(str(error)), None
    return view_payload(view, style, strength), view


def on_settings(
    models: Models,
    path: str | None,
    view: View | None,
    model: str,
    style: str,
    strength: float,
    *search: Any,
) -> tuple[dict[str, Any] | None, View | None]:
    """Caption the image on show once more.

    Raises:
        CaptionerError: A setting is impossible; image and sentences stay as they are.
    """
    path = path or (view.source if view else None)
    if not path:
        return None, None
    view = _caption(models[model], path, *search)
    return view_payload(view, style, strength), view


def _caption(captioner: Captioner, path: str, *search: Any) -> View:
    options = decoding_options(*search)
    view = caption_image(captioner, path, options)
    unknown = [word for word in options["ban"] if word.lower() not in captioner.vocabulary]
    if unknown:
        words = html.escape(", ".join(unknown), quote=False)
        gr.Info(f"The model does not know what is banned here, and never writes it: {words}")
    return view


def on_sentence(
    models: Models, text: str, view: View | None, model: str, style: str, strength: float
) -> tuple[dict[str, Any], View | None]:
    """Score the visitor's own sentence and show it among the others."""
    if view is None:
        raise gr.Error("Give a photo first.", print_exception=False)
    sentence = (text or "")[:MAX_TEXT]  # as the page does
    if not tokenize(sentence):
        raise gr.Error("Type at least one word.", print_exception=False)
    view = score_sentence(models[model], view, sentence)
    return view_payload(view, style, strength), view


def on_download(cache: str, kind: str, view: View | None, style: str, strength: float) -> str:
    """Write a file for the visitor into Gradio's cache."""
    if view is None:
        raise gr.Error("Give a photo first.", print_exception=False)
    name, content = make_file(view, kind, style, strength)
    path: str = save_bytes_to_cache(content, name, cache)
    return path


def on_choice(view: View | None, event: gr.EventData) -> View | None:
    """Remember which sentence the visitor chose."""
    index = event._data.get("index") if isinstance(event._data, dict) else None
    return view.choose(index) if view is not None and isinstance(index, int) else view
