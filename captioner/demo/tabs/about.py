"""The tab about the models: the card of each, and what attention explains."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from captioner.checkpoint import record_rows
from captioner.demo.components import START_QUEUE, read_asset
from captioner.demo.model_card import MEASURED, Section, model_card
from captioner.demo.models import SHIPPED, Models

if TYPE_CHECKING:
    from captioner.api import Captioner

_CLAIMS = re.compile(r"<!-- if measured -->.*?<!-- end -->\s*", re.DOTALL)


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
    header, backend = captioner.header, captioner.backend
    parts = [
        f"<section><h3>{section.title}</h3>{_content(section)}</section>"
        for section in model_card(header, backend.parameters, backend.grid, shipped=shipped)
    ]
    whole = _rows(record_rows(header.record))
    parts.append(_details("The whole record of its training", whole))
    return f'<article class="card"><h2>{_text(name)}</h2>{"".join(parts)}</article>'


def _content(section: Section) -> str:
    content = f"<p>{_text(section.text)}</p>" if section.text else ""
    if section.points:
        content += (
            "<ul>" + "".join(f"<li>{_text(point)}</li>" for point in section.points) + "</ul>"
        )
    return content + (_rows(section.rows) if section.rows else "")


def _attention(measured: bool) -> str:
    """Return what attention explains and what it does not."""
    text = read_asset("about_attention.html")
    if measured:
        rows = "".join(
            f'<tr><th scope="row">{_text(label)}</th><td>{ours}</td><td>{chance}</td></tr>'
            for label, ours, chance in MEASURED
        )
        columns = "".join(f'<th scope="col">{name}</th>' for name in ("attention", "by chance"))
        text += f'<p>Measured for the {SHIPPED}, on photos of COCO:</p><table class="measured">'
        text += f"<thead><tr><td></td>{columns}</tr></thead><tbody>{rows}</tbody></table>"
    else:
        text = _CLAIMS.sub("", text)
    return f'<article class="card">{text}</article>'


# ------------------------------------------------------------------------------------------- HTML


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    cells = (f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in rows)
    return f"<dl>{''.join(cells)}</dl>"


def _text(value: Any) -> str:
    """Escape a value for HTML."""
    return html.escape(str(value))
