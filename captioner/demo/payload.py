"""What goes to the browser: a view as plain JSON values.

The photo travels as a JPEG data URI, each word's map as one byte per cell of the grid; the page
spreads the cells over the photo itself (``assets/overlay.js``), as ``visualize.overlay`` does.
Text travels as it is: the page sets it as text, never as HTML.
"""

from __future__ import annotations

import base64
import secrets
from typing import Any

import numpy as np

from captioner.demo.view import Sentence, View
from captioner.image.visualize import heat_colours

_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


def view_payload(view: View, style: str = "spotlight", strength: float = 0.6) -> dict[str, Any]:
    """A view for the page.

    Args:
        view: Photo and sentences.
        style: ``spotlight`` or ``heatmap``.
        strength: 0 to 1: how much the spotlight dims, how opaque the heat map is.
    """
    return {
        "id": secrets.token_hex(4),  # new to the page, even if all else is as before
        "photo": "data:image/jpeg;base64," + _base64(view.jpeg),
        "width": view.size[0],
        "height": view.size[1],
        "sentences": [sentence_payload(sentence) for sentence in view.sentences],
        "chosen": view.chosen,
        "style": style,
        "strength": strength,
    }


def error_payload(message: str) -> dict[str, Any]:
    """A message in the place of a photo; the page shows it as text."""
    return {"error": message[:1].upper() + message[1:]}


def sentence_payload(sentence: Sentence) -> dict[str, Any]:
    """A sentence and its words, each with probability, map and the map's peak in words."""
    columns = (sentence.words, sentence.probabilities, sentence.known, sentence.attention)
    return {
        "text": sentence.text,
        "score": round(sentence.score, 4),
        "origin": sentence.origin,
        "grid": list(sentence.attention.shape[1:]),
        "words": [
            {
                "text": word,
                "probability": round(probability, 4),
                "known": known,
                "place": place(cells),
                "map": encode_map(cells),
            }
            for word, probability, known, cells in zip(*columns, strict=True)
        ],
    }


def encode_map(cells: np.ndarray) -> str:
    """A map (H, W) as base64 of H·W bytes, row by row, 255 at its largest cell."""
    clean = _clean(cells)
    top = clean.max()
    scaled = clean * (255 / top) if top > 0 else clean
    return _base64(np.round(scaled).astype(np.uint8).tobytes())


def place(cells: np.ndarray) -> str:
    """Where a map's peak lies, for those who cannot see it: ``top left``, ``centre``, ..."""
    clean = _clean(cells)
    if clean.max() == clean.min():
        return "everywhere"
    height, width = clean.shape
    row, column = divmod(int(clean.argmax()), width)
    vertical = _ROWS[3 * (2 * row + 1) // (2 * height)]
    horizontal = _COLUMNS[3 * (2 * column + 1) // (2 * width)]
    if vertical == "middle":
        return horizontal
    return vertical if horizontal == "centre" else f"{vertical} {horizontal}"


def encode_ramp() -> str:
    """The heat map's 256 RGB colours as base64."""
    return _base64(heat_colours().tobytes())


def _clean(cells: np.ndarray) -> np.ndarray:
    """Fp32 without negative and missing values, as ``visualize`` reads a map."""
    plain = np.asarray(cells, dtype=np.float32)
    return np.nan_to_num(plain, nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
