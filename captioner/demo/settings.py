"""The settings of the page, and the search options that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from captioner.demo.limits import TEXT
from captioner.demo.models import Models

BEAM, DIVERSE, SAMPLE, AGREE = "Beam search", "Diverse beams", "Sampling", "Consensus"
_HINTS = (
    "Beam search takes the likeliest sentences, sampling draws; consensus takes what most agree on."
)


class Settings:
    """The components of the accordion.

    Args:
        models: To choose among.
        prefix: Of the elements' ids, where several stand on a page.
        model: Name of the model at the start; None takes the first.
        mode: Kind of search at the start.
        captions: Number of sentences at the start.
        looks: Whether style and strength of the overlay belong to it.

    Attributes:
        search: Those that shape the sentences: the inputs of :func:`search_options`, in order.
        looks: Style and strength of the overlay.
        model: The choice of the model.
        changes: The events at which to search anew.
    """

    def __init__(
        self,
        models: Models,
        *,
        prefix: str = "",
        model: str | None = None,
        mode: str = BEAM,
        captions: int = 3,
        looks: bool = True,
    ):
        self.model = gr.Dropdown(
            models.names,
            value=model or models.names[0],
            label="Model",
            visible=len(models.names) > 1,
            elem_id=prefix + "model",
        )
        self.looks: list[Any] = []
        if looks:
            self.looks = [self.style, self.strength] = overlay_looks(prefix)
        self.search = _search_inputs(prefix, mode, captions)
        kind, number, *sliders, require, ban = self.search
        moved = [each.release for each in (number, *sliders)]
        typed = [event for each in (require, ban) for event in (each.submit, each.blur)]
        self.changes = [self.model.change, kind.change, *moved, *typed]
        kind.change(
            _shown,
            kind,
            [*sliders, require],
            queue=False,
            api_visibility="private",
            show_progress="hidden",
        )


def overlay_looks(prefix: str = "") -> list[Any]:
    """Style and strength of the overlay."""
    style = gr.Radio(
        [("Spotlight", "spotlight"), ("Heat map", "heatmap")],
        value="spotlight",
        label="Overlay",
        elem_id=prefix + "style",
    )
    return [style, gr.Slider(0.1, 1, 0.6, step=0.05, label="Strength", elem_id=prefix + "strength")]


def _search_inputs(prefix: str, mode: str, captions: int) -> list[Any]:
    """The inputs of :func:`search_options`, in order; those that mean nothing are hidden."""
    draws = mode == SAMPLE

    def slider(low: float, high: float, value: float, step: float, **options: Any) -> Any:
        return gr.Slider(low, high, value, step=step, **options)

    return [
        gr.Dropdown(
            [BEAM, DIVERSE, SAMPLE, AGREE],
            value=mode,
            label="Search",
            info=_HINTS,
            elem_id=prefix + "mode",
        ),
        slider(1, 8, captions, 1, label="Sentences", elem_id=prefix + "captions"),
        slider(1, 10, 3, 1, label="Beams", elem_id=prefix + "beam", visible=not draws),
        slider(
            0,
            2,
            0,
            0.1,
            label="Length penalty",
            info="Above 0 favours longer sentences.",
            visible=not draws,
        ),
        slider(0.2, 2, 1, 0.1, label="Temperature", visible=draws),
        slider(0.1, 1, 0.9, 0.05, label="Top p", visible=draws),
        slider(0, 99, 0, 1, label="Seed", visible=draws, elem_id=prefix + "seed"),
        gr.Textbox(
            label="Required words",
            placeholder="dog, grass",
            elem_id=prefix + "require",
            max_length=TEXT,
            visible=not draws,
        ),
        gr.Textbox(
            label="Banned words",
            placeholder="man, laptop",
            elem_id=prefix + "ban",
            max_length=TEXT,
        ),
    ]


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
    return (text or "")[:TEXT].replace(",", " ").split()
