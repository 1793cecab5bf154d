"""The settings of the page, and the search options that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from captioner.demo.models import Models

BEAM, DIVERSE, SAMPLE, AGREE = "Beam search", "Diverse beams", "Sampling", "Consensus"
_HINTS = (
    "Beam search takes the likeliest sentences, sampling draws; consensus takes what most agree on."
)


class Settings:
    """The components of the accordion.

    Attributes:
        search: Those that shape the sentences: the inputs of :func:`search_options`, in order.
        looks: Style and strength of the overlay.
        model: The choice of the model.
        changes: The events at which to search anew.
    """

    def __init__(self, models: Models):
        self.model = gr.Dropdown(
            models.names,
            value=models.names[0],
            label="Model",
            visible=len(models.names) > 1,
            elem_id="model",
        )
        self.style = gr.Radio(
            [("Spotlight", "spotlight"), ("Heat map", "heatmap")],
            value="spotlight",
            label="Overlay",
            elem_id="style",
        )
        self.strength = gr.Slider(0.1, 1, 0.6, step=0.05, label="Strength", elem_id="strength")
        mode = gr.Dropdown(
            [BEAM, DIVERSE, SAMPLE, AGREE], value=BEAM, label="Search", info=_HINTS, elem_id="mode"
        )
        captions = gr.Slider(1, 8, 3, step=1, label="Sentences", elem_id="captions")
        beam = gr.Slider(1, 10, 3, step=1, label="Beams", elem_id="beam")
        penalty = gr.Slider(
            0, 2, 0, step=0.1, label="Length penalty", info="Above 0 favours longer sentences."
        )
        temperature = gr.Slider(0.2, 2, 1, step=0.1, label="Temperature", visible=False)
        top_p = gr.Slider(0.1, 1, 0.9, step=0.05, label="Top p", visible=False)
        seed = gr.Slider(0, 99, 0, step=1, label="Seed", visible=False, elem_id="seed")
        require = gr.Textbox(label="Required words", placeholder="dog, grass", elem_id="require")
        ban = gr.Textbox(label="Banned words", placeholder="man, laptop", elem_id="ban")
        sliders, texts = [captions, beam, penalty, temperature, top_p, seed], [require, ban]
        self.changes = [self.model.change, mode.change, *(each.release for each in sliders)]
        self.changes += [event for each in texts for event in (each.submit, each.blur)]
        self.looks = [self.style, self.strength]
        self.search = [mode, captions, beam, penalty, temperature, top_p, seed, require, ban]
        mode.change(
            _shown,
            mode,
            [beam, penalty, temperature, top_p, seed, require],
            queue=False,
            api_visibility="private",
            show_progress="hidden",
        )


def _shown(mode: str) -> list[dict[str, Any]]:
    """Show what matters to a kind of search."""
    draws = mode == SAMPLE
    return [
        gr.update(visible=visible) for visible in (not draws,) * 2 + (draws,) * 3 + (not draws,)
    ]


def search_options(
    mode: str = BEAM,
    captions: int = 3,
    beam: int = 3,
    penalty: float = 0.0,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int = 0,
    require: str = "",
    ban: str = "",
) -> dict[str, Any]:
    """The options of :meth:`Captioner.stream` for the values of :attr:`Settings.search`."""
    captions, beam = int(captions), int(beam)
    options: dict[str, Any] = {"num_captions": captions, "ban": split_words(ban)}
    if mode == SAMPLE:
        draws = {"temperature": temperature, "top_p": top_p, "seed": int(seed)}
        return options | {"sample": True} | draws
    beam = max(beam, captions)
    options |= {"beam": beam, "length_penalty": penalty, "require": split_words(require)}
    if mode == DIVERSE:
        return options | {"groups": beam}
    if mode == AGREE:
        agree = max(beam, 5)
        return options | {"beam": agree, "mbr": agree}
    return options


def split_words(text: str) -> Sequence[str]:
    """Words separated by commas or spaces."""
    return (text or "").replace(",", " ").split()
