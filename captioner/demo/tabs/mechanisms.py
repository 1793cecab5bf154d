"""The tab that shows one sentence about an image through five kinds of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr

from captioner.demo.components import MODEL_QUEUE, drawn, image_input
from captioner.demo.mechanisms import Mechanism
from captioner.demo.models import Models
from captioner.demo.payload import encode_look, error_payload, sentence_payload, view_payload
from captioner.demo.security import MAX_TEXT
from captioner.demo.session import Sentence, View, caption_image, read_file
from captioner.demo.settings import decoding_options
from captioner.demo.tabs.caption import sentence_input
from captioner.errors import CaptionerError, CheckpointError
from captioner.tokenizer import tokenize

# Title and score of each kind; docs/mechanisms.md explains them.
_KINDS = {
    "additive": ("Additive", "eᵢ = vᵀ tanh(Wₐ aᵢ + Wₕ h)"),
    "dot": ("Dot product", "eᵢ = aᵢᵀ Wₕ h"),
    "general": ("General", "eᵢ = (Wₐ aᵢ)ᵀ Wₕ h"),
    "scaled_dot": ("Scaled dot product", "eᵢ = (Wₐ aᵢ)ᵀ Wₕ h / √A"),
    "multi_head": ("Multi-head", "the same in {heads} heads of size A / {heads}; their mean map"),
}


def build(
    models: Models, mechanisms: Callable[[], Sequence[Mechanism]], examples: Sequence[str]
) -> None:
    """Lay out the tab inside the current `gr.Blocks`.

    Args:
        models: The first one writes the sentence.
        mechanisms: Returns the decoders that read it; first called when they are needed.
        examples: Paths of example images; may be empty.
    """
    with gr.Row(elem_classes="caption-tab"):  # laid out by assets/page.css
        with gr.Column(elem_classes="input"):
            image = image_input(examples, elem_id="mechanisms-photo")
        with gr.Column(elem_classes="result"):
            scripts = ("overlay.js", "words.js", "mechanisms.js")
            viewer = drawn(None, "mechanisms", *scripts, elem_id="mechanisms", **encode_look())
            own = sentence_input("Another sentence for all five to read", "mechanisms-own")
    state = gr.State(None, time_to_live=3600)  # a `View` or None
    showing = MODEL_QUEUE | {"show_progress_on": viewer}
    shown = [viewer, state]
    image.change(partial(on_image, models, mechanisms), [image, state], shown, **showing)
    own.submit(partial(on_sentence, mechanisms), [own, state], viewer, **showing)


def on_image(
    models: Models,
    mechanisms: Callable[[], Sequence[Mechanism]],
    path: str | None,
    before: View | None,
) -> tuple[dict[str, Any] | None, View | None]:
    """Let the first model write a sentence, and all decoders read it.

    Where that fails, the image before stays, with the reason above it.
    """
    if not path:
        return None, None
    try:
        view = caption_image(models[models.names[0]], path, decoding_options(captions=1))
        return mechanisms_payload(view, mechanisms(), view.sentence.text), view
    except CaptionerError as error:
        if before is None:
            return error_payload(str(error)), None
        text, problem = before.sentence.text, str(error)
        return mechanisms_payload(before, mechanisms(), text, problem=problem), before


def on_sentence(
    mechanisms: Callable[[], Sequence[Mechanism]], text: str, view: View | None
) -> dict[str, Any]:
    """Let all decoders read a sentence of the visitor's."""
    if view is None:
        raise gr.Error("Give a photo first.", print_exception=False)
    sentence = (text or "")[:MAX_TEXT]
    if not tokenize(sentence):
        raise gr.Error("Type at least one word.", print_exception=False)
    return mechanisms_payload(view, mechanisms(), sentence)


def mechanisms_payload(
    view: View, mechanisms: Sequence[Mechanism], sentence: str, *, problem: str = ""
) -> dict[str, Any]:
    """Return what the page draws: the image, and how each decoder reads the sentence.

    Raises:
        CheckpointError: There are no decoders.
    """
    if not mechanisms:
        raise CheckpointError("the decoders of this tab cannot be used on this server")
    data = read_file(view.source)
    kinds = []
    for mechanism in mechanisms:
        read = Sentence.of_score(mechanism.captioner.score(data, sentence))
        title, formula = _KINDS[mechanism.kind]
        heads = mechanism.captioner.header.config.attention.heads
        kinds.append(
            {
                **sentence_payload(read, read.log_prob),
                "title": title,
                "formula": formula.format(heads=heads),
                "correctness": mechanism.figures["ratio"],
                "pointing": mechanism.figures["pointing_gain"],
            }
        )
    return {**view_payload(view, problem=problem), "kinds": kinds}
