"""The settings of the page, and the decoding options that they mean."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from captioner.decoding.options import decoding_options as check_words
from captioner.demo.models import Models
from captioner.demo.payload import STRENGTH, capitalised
from captioner.demo.security import MAX_TEXT
from captioner.errors import ConfigError
from captioner.tokenizer import Vocabulary

BEAM, DIVERSE, SAMPLE, AGREE = "Beam search", "Diverse beams", "Sampling", "Consensus"
MAX_CAPTIONS, MAX_BEAM = 8, 10
_HINTS = (
    "Beam search finds the likeliest sentences, sampling draws them at random; consensus takes "
    "those that agree most with the others."
)


class Settings:
    """The components of the accordion.

    Args:
        models: To choose among.
        prefix: Start of the elements' ids, where a page has several accordions.
        model: Name of the model at the start; None takes the first.
        mode: Kind of search at the start.
        captions: Number of sentences at the start.
        looks: Whether style and strength of the overlay belong to them.

    Attributes:
        search: Those that decide on the sentences: the inputs of `decoding_options`, in order.
        looks: Style and strength of the overlay.
        words: Those for required and for banned words, whose mistakes `told` shows.
        model: The choice of the model.
        changes: The events after which to search again.
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
        self.looks = overlay_looks(prefix) if looks else []
        self.search = _search_inputs(prefix, mode, captions)
        for each in (self.model, *self.looks, *self.search):
            _name_errors(each)
        kind, number, *sliders, require, ban = self.search
        self.words = [require, ban]
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

    def told(
        self, models: Models, handler: Callable[..., tuple[Any, ...]], more: int = 0
    ) -> Callable[..., tuple[Any, ...]]:
        """Return a handler of events that also updates `words`: by what is wrong with them.

        Where a search is impossible, viewer and state stay as they are.

        Args:
            models: To choose among.
            handler: Takes image, state, model, looks and search; returns what viewer and state
                become, and `more` besides.
            more: How many values it returns after these two.
        """

        def handle(*given: Any) -> tuple[Any, ...]:
            _, state, model, *_ = given
            search = given[-len(self.search) :]
            notes, wrong = word_notes(models[model].vocabulary, decoding_options(*search))
            try:
                return *handler(*given), *notes
            except ConfigError:
                if not wrong:
                    raise
                return gr.skip(), state, *[gr.skip()] * more, *notes

        return handle


def word_notes(
    vocabulary: Vocabulary, options: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], bool]:
    """Say what is wrong with required and banned words, at their fields.

    Args:
        vocabulary: The words of the model.
        options: As of `decoding_options`.

    Returns:
        An update for each field, and whether no search is possible.
    """
    ban = options["ban"]
    banned = _refusal(vocabulary, ban)
    required = "" if banned else _refusal(vocabulary, ban, options.get("require", ()))
    unknown = [word for word in ban if word.lower() not in vocabulary]
    hint = f"Unknown to the model, so never written: {', '.join(unknown)}" if unknown else ""
    notes = [
        gr.update(info=capitalised(error or hint), elem_classes=["wrong"] if error else [])
        for error, hint in ((required, ""), (banned, hint))
    ]
    return notes, bool(required or banned)


def _refusal(vocabulary: Vocabulary, ban: Sequence[str], require: Sequence[str] = ()) -> str:
    """Return why no sentence can have, or do without, these words; empty if one can."""
    try:
        check_words(vocabulary, ban=ban, require=require)
    except ConfigError as error:
        return str(error)
    return ""


def _name_errors(component: Any) -> None:
    """Make a component refuse values that the page cannot send, by an error with its label."""
    usual = component.preprocess

    def preprocess(value: Any) -> Any:
        try:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if isinstance(component, gr.Slider) and not (number and math.isfinite(value)):
                raise TypeError("no number")
            if not isinstance(component, gr.Slider) and not isinstance(value, (str, type(None))):
                raise TypeError("no text")
            return usual(value)
        except Exception:
            message = f"{component.label} cannot be {str(value)[:40]!r}."
            raise gr.Error(html.escape(message, quote=False), print_exception=False) from None

    component.preprocess = preprocess


def overlay_looks(prefix: str = "") -> list[Any]:
    """Return the inputs for style and strength of the overlay."""
    style: Any = gr.Radio(
        [("Spotlight", "spotlight"), ("Heat map", "heatmap")],
        value="spotlight",
        label="Overlay",
        elem_id=prefix + "style",
    )
    strength = gr.Slider(0.1, 1, STRENGTH, step=0.05, label="Strength", elem_id=prefix + "strength")
    return [style, strength]


def _search_inputs(prefix: str, mode: str, captions: int) -> list[Any]:
    """Return the inputs of `decoding_options`, in order; those without effect are hidden."""
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
        slider(1, MAX_CAPTIONS, captions, 1, label="Sentences", elem_id=prefix + "captions"),
        slider(1, MAX_BEAM, 3, 1, label="Beams", elem_id=prefix + "beam", visible=not draws),
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
            max_length=MAX_TEXT,
            visible=not draws,
        ),
        gr.Textbox(
            label="Banned words",
            placeholder="man, laptop",
            elem_id=prefix + "ban",
            max_length=MAX_TEXT,
        ),
    ]


def _shown(mode: str) -> list[dict[str, Any]]:
    """Show the inputs that have an effect on a kind of search."""
    draws = mode == SAMPLE
    return [
        gr.update(visible=visible) for visible in (not draws,) * 2 + (draws,) * 3 + (not draws,)
    ]


def decoding_options(
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
    """Return the options of `Captioner.stream` for the values of `Settings.search`."""
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
    """Split a text at commas and spaces, up to the limit of its length."""
    return (text or "")[:MAX_TEXT].replace(",", " ").split()
