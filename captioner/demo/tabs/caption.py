"""The first tab: an image in, its caption out, and where the model looked for each word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

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
from captioner.demo.payload import error_payload, notice_payload, view_payload
from captioner.demo.security import MAX_TEXT
from captioner.demo.session import View, caption_image, continue_sentence, score_sentence
from captioner.demo.settings import Settings, decoding_options
from captioner.errors import CaptionerError, ImageError
from captioner.tokenizer import tokenize

Shown: TypeAlias = tuple[dict[str, Any] | None, View | None]
"""What a viewer shows, and the visitor's state."""


def build(models: Models, examples: Sequence[str], start: Callable[[], View] | None) -> None:
    """Lay out the tab inside the current `gr.Blocks`.

    Args:
        models: To choose among.
        examples: Paths of example images; may be empty.
        start: Returns what is shown before an image is given; None shows nothing.
    """
    with gr.Row(elem_classes="caption-tab"):  # laid out by assets/page.css
        with gr.Column(elem_classes="input"):
            image = image_input(examples, elem_id="photo", hint=True)
        with gr.Column(elem_classes="result"):
            viewer = attention_viewer(notice_payload() if start else None, elem_id="viewer")
            own = sentence_input(
                "Your own sentence: how likely does the model find it?", elem_id="own"
            )
        with (
            gr.Column(elem_classes="settings"),
            gr.Accordion("Settings", open=False, elem_id="settings"),
        ):
            settings = Settings(models)
    search_again = partial(on_settings, models)
    connect(models, image, own, viewer, settings, settings.looks, start, search_again)


def sentence_input(label: str, elem_id: str) -> gr.Textbox:
    """Return the input for a visitor's own sentence."""
    return gr.Textbox(
        label=label,
        placeholder="a cup of coffee on a table",
        submit_btn="Ask",
        max_lines=1,
        max_length=MAX_TEXT,
        elem_id=elem_id,
        elem_classes="sentence-input",
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
) -> None:
    """Attach the events of a viewer.

    Args:
        models: To choose among.
        image: The input of the image.
        own: The input of the visitor's own sentence.
        viewer: The viewer.
        settings: Its settings; mistakes in them are told at their fields.
        looks: Style and strength of its overlay.
        start: Returns what is shown before an image is given; None shows nothing.
        search_again: Handles changed settings, as `on_settings` does.
        *also_shown: Components that `search_again` sets besides.
    """
    state = gr.State(None, time_to_live=3600)  # a `View` or None
    shown, given = [viewer, state], [settings.model, *looks, *settings.search]
    searching = MODEL_QUEUE | {"show_progress_on": viewer}
    if start:
        gr.on(None, partial(on_start, start), None, shown, **START_QUEUE)
    image.change(
        settings.told(models, partial(on_image, models)),
        [image, state, *given],
        [*shown, *settings.words],
        **searching,
    )
    gr.on(
        settings.changes,
        settings.told(models, search_again, len(also_shown)),
        [image, state, *given],
        [*shown, *also_shown, *settings.words],
        trigger_mode="always_last",
        **searching,
    )
    own.submit(
        partial(on_sentence, models), [own, state, settings.model, *looks], shown, **searching
    )
    viewer.select(on_choice, state, state, queue=False, api_visibility="private")

    def apply(event: gr.EventData, view: View | None, *values: Any) -> tuple[Any, ...]:
        return on_other_word(models, event._data, view, *values)

    viewer.apply(apply, [state, *given], shown, **searching)
    changes = [each.change for each in looks]
    gr.on(changes, None, [viewer, *looks], viewer, js=read_asset("restyle.js"))
    ready = gr.DownloadButton(visible=False)

    def save(view: View | None, style: str, strength: float, event: gr.EventData) -> str:
        kind = str(event._data.get("kind") if isinstance(event._data, dict) else None)
        return on_save(ready.GRADIO_CACHE, view, kind, style, strength)

    viewer.save(save, [state, *looks], ready, **MODEL_QUEUE).success(
        None, ready, None, js=read_asset("download.js")
    )


def on_start(start: Callable[[], View]) -> tuple[dict[str, Any], View]:
    """Show the example; this waits while the models are loaded."""
    view = start()
    return view_payload(view), view


def on_image(models: Models, path: str | None, view: View | None, *given: Any) -> Shown:
    """Caption an image; return what the viewer shows, and the visitor's state.

    Where that fails, the image before stays, with the reason above it.

    Args:
        models: To choose among.
        path: The image file.
        view: The visitor's state.
        *given: Name of the model, style and strength of the overlay, values of `Settings.search`.
    """
    if not path:
        return None, None
    model, style, strength, *search = given
    try:
        view = caption_image(models[model], path, decoding_options(*search))
    except CaptionerError as error:
        if view is None:
            return error_payload(str(error)), None
        return view_payload(view, style, strength, problem=str(error)), view
    return view_payload(view, style, strength), view


def on_settings(models: Models, path: str | None, view: View | None, *given: Any) -> Shown:
    """Caption the image on show once more; the arguments are those of `on_image`.

    Raises:
        CaptionerError: A setting is impossible; image and sentences stay as they are.
    """
    path = path or (view.source if view else None)
    if not path:
        return None, None
    model, style, strength, *search = given
    options = decoding_options(*search)
    try:
        view = caption_image(models[model], path, options)
    except ImageError:
        if view is None or view.source == path:
            raise
        view = caption_image(models[model], view.source, options)  # the last one that could be read
    return view_payload(view, style, strength), view


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


def on_other_word(
    models: Models,
    data: Any,
    view: View | None,
    model: str,
    style: str,
    strength: float,
    *search: Any,
) -> tuple[dict[str, Any], View]:
    """Continue the shown sentence after another word, and show it among the others."""
    place, word = (data.get(name) if isinstance(data, dict) else None for name in ("place", "word"))
    if not (isinstance(word, str) and len(word) <= MAX_TEXT and isinstance(place, int)):
        raise gr.Error("Choose a word.", print_exception=False)
    if view is None or not 0 <= place < len(view.sentence.words):
        raise gr.Error("Give a photo first.", print_exception=False)
    view = continue_sentence(models[model], view, place, word, decoding_options(*search))
    return view_payload(view, style, strength), view


def on_save(cache: str, view: View | None, kind: str, style: str, strength: float) -> str:
    """Write a file for the visitor into Gradio's cache."""
    if view is None or kind not in KINDS:
        raise gr.Error("Give a photo first.", print_exception=False)
    name, content = make_file(view, kind, style, strength)
    path: str = save_bytes_to_cache(content, name, cache)
    return path


def on_choice(view: View | None, event: gr.EventData) -> View | None:
    """Remember which sentence the visitor chose."""
    index = event._data.get("index") if isinstance(event._data, dict) else None
    return view.choose(index) if view is not None and isinstance(index, int) else view
