"""The tab about the models: what each is made of, how good it is, where it fails, its licence.

All of this comes from the record in the model file, except for licence and failures of the model
that ships with the package: no training can know these.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from captioner.checkpoint import record_rows
from captioner.demo.components import START_QUEUE, read_asset
from captioner.demo.models import SHIPPED, Models

if TYPE_CHECKING:
    from captioner.api import Captioner

LICENCE = (
    "Apache-2.0, the code and the weights. Trained on Flickr8k (Hodosh et al. 2013) and a part of "
    "MS-COCO (captions CC BY 4.0), starting from ImageNet weights of EfficientNet-Lite2 "
    "(Apache-2.0)."
)
FAILURES = (
    "It has seen few photos: people, dogs, sports and streets. Outside of these it repeats itself.",
    "It guesses genders, and often guesses wrong.",
    "It counts badly.",
)
COMMON_FAILURES = (
    "It always says something, even about an empty wall, and names things that are not there.",
    "It knows only the words of its vocabulary: no names, no writing in the photo.",
)
# Of docs/attention.md (scripts/attention_figures.py); a test compares them.
MEASURED = (
    ("Share of a map inside the outline of the object that its word names", "0.504", "0.185"),
    ("Maps whose brightest cell lies inside that outline", "0.641", "0.187"),
    ("Fall of a word's log-probability without the cells with most attention", "0.394", "0.012"),
)
_METRICS = {
    "cider": "CIDEr-D",
    "bleu4": "BLEU-4",
    "bleu1": "BLEU-1",
    "rouge_l": "ROUGE-L",
    "attention_entropy": "Entropy of the maps (1 is uniform)",
    "words": "Words a sentence",
}
_SHARES = ("bleu1", "bleu4", "rouge_l")  # told in percent


def build(models: Models) -> None:
    """Lay out the tab inside the current `gr.Blocks`; it is filled once the models are loaded."""
    gr.on(None, partial(about, models), None, gr.HTML(elem_id="about"), **START_QUEUE)


def about(models: Models) -> str:
    """Return the content of the tab as HTML."""
    cards = [card(name, models[name], shipped=name == SHIPPED) for name in models.names]
    return "".join([*cards, _attention(SHIPPED in models.names)])


def card(name: str, captioner: Captioner, *, shipped: bool = False) -> str:
    """Return a model card as HTML; all that comes from the model file is escaped.

    Args:
        name: What the page calls the model.
        captioner: The model.
        shipped: Whether it is the one of the package, whose licence and failures are known.
    """
    record = captioner.header.record
    licence = LICENCE if shipped else "The model file names none: ask whoever trained it."
    failures = (*(FAILURES if shipped else ()), *COMMON_FAILURES)
    parts = [
        _part("What it is", f"<p>{_text(_network(captioner))}</p>"),
        _part("What it learnt from", f"<p>{_text(_data(record))}</p>"),
        _part("How good it is", _figures(record)),
        _part("Where it fails", _list(failures)),
        _part("Licence", f"<p>{_text(licence)}</p>"),
        _details("The whole record of its training", _rows(record_rows(record))),
    ]
    return f'<article class="card"><h2>{_text(name)}</h2>{"".join(parts)}</article>'


def _network(captioner: Captioner) -> str:
    """Describe the network in two sentences."""
    config = captioner.header.config
    parameters = captioner.backend.parameters
    height, width = captioner.backend.grid
    known = len(captioner.vocabulary)
    return (
        f"A convolutional network ({config.encoder.name}) reads the whole photo, squashed to "
        f"{config.encoder.image_size} × {config.encoder.image_size} pixels, into a grid of "
        f"{height} × {width} cells; an LSTM of {config.decoder.hidden} units writes the sentence "
        f"and looks at the grid before each word ({config.attention.kind.replace('_', '-')} "
        f"attention). {parameters / 1e6:.1f} million weights; a vocabulary of {known:,} words."
    )


def _data(record: Mapping[str, Any]) -> str:
    """Name the training data, as far as the record tells."""
    files = _at(record, "recipe", "data", "train")
    names = [str(_at(file, "captions")) for file in files] if isinstance(files, list) else []
    told = []
    if "training_photos" in record:
        told.append(f"{_number(record['training_photos'])} photos with their captions")
    if names:
        told.append("from " + " and ".join(names))
    text = " ".join(told) or "The model file does not tell"
    if "date" in record:
        text += f"; trained {record['date']}"
    return text[:1].upper() + text[1:] + "."


def _figures(record: Mapping[str, Any]) -> str:
    """Return a table of the validation figures."""
    found = record.get("validation")
    figures = found if isinstance(found, Mapping) else {}
    rows = []
    for key, label in _METRICS.items():
        value = figures.get(key)
        if isinstance(value, (int, float)):
            shown = f"{100 * value:.1f}" if key in _SHARES else f"{value:.3g}"
            rows.append((label, shown))
    if not rows:
        return "<p>The model file tells no figures.</p>"
    photos = record.get("validation_photos")
    beam = _at(record, "recipe", "validation", "beam")
    told = "Captions that it wrote freely" + (f" with beam {beam}" if beam else "")
    told += f" for {_number(photos)} photos" if photos else ""
    told += " that it was not trained on, against people's captions of them:"
    return f"<p>{_text(told)}</p>" + _rows(rows)


def _attention(measured: bool) -> str:
    """Return what attention explains and what it does not."""
    text = read_asset("about_attention.html")
    if measured:
        rows = "".join(
            f'<tr><th scope="row">{_text(label)}</th><td>{ours}</td><td>{chance}</td></tr>'
            for label, ours, chance in MEASURED
        )
        head = "<tr><th></th><th>attention</th><th>by chance</th></tr>"
        text += f'<p>Measured for the {SHIPPED}, on photos of COCO:</p><table class="measured">'
        text += f"<thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f'<article class="card">{text}</article>'


# ------------------------------------------------------------------------------------------- HTML


def _part(title: str, content: str) -> str:
    return f"<section><h3>{title}</h3>{content}</section>"


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _list(lines: tuple[str, ...]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _rows(rows: list[tuple[str, str]]) -> str:
    cells = (f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in rows)
    return f"<dl>{''.join(cells)}</dl>"


def _text(value: Any) -> str:
    """Escape a value for HTML."""
    return html.escape(str(value))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _at(value: Any, *keys: str) -> Any:
    """Look up a value deep inside a record; None if it is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
