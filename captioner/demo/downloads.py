"""Files that a visitor can save: strip (PNG), film (GIF), numbers (JSON), tables of captions."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np

from captioner.batch.formats import CsvFormat, Format, JsonLinesFormat, to_row
from captioner.batch.item import Item, Result
from captioner.demo.session import View
from captioner.image.visualize import animate, word_strip

KINDS = ("strip", "film", "numbers")  # PNG, GIF, JSON; `assets/viewer.html` offers them
# Spreadsheets take a cell that begins so for a formula; a name in a zip is a stranger's.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def make_file(view: View, kind: str, style: str, strength: float) -> tuple[str, bytes]:
    """Make a file about the chosen sentence.

    Args:
        view: The image and its sentences.
        kind: One of `KINDS`.
        style: `spotlight` or `heatmap`, of the film.
        strength: 0 to 1, as on the page.

    Returns:
        The name of the file, made of the sentence, and its content.
    """
    sentence = view.sentence
    name = re.sub(r"[^a-z0-9]+", "-", sentence.text.lower()).strip("-")[:60].strip("-") or "caption"
    if kind == "numbers":
        return name + ".json", _numbers(view)
    drawn = (view.image, sentence.words, sentence.attention)
    if kind == "film":
        film = animate(*drawn, style=style, floor=1 - strength, strength=strength)
        return name + ".gif", film
    buffer = io.BytesIO()
    word_strip(*drawn).save(buffer, "PNG")  # as the page shows all words at once
    return name + ".png", buffer.getvalue()


def _numbers(view: View) -> bytes:
    """Return the words with their probabilities and attention maps, as JSON."""
    sentence = view.sentence
    columns = (sentence.words, sentence.log_probs, sentence.known, sentence.attention)
    rows = zip(*(column[: len(sentence.words)] for column in columns), strict=True)
    content = {
        "caption": sentence.text,
        "origin": sentence.origin,
        "log_prob": round(sentence.log_prob, 5),
        "grid": list(sentence.attention.shape[1:]),
        "words": [
            {
                "word": word,
                "log_prob": round(log_prob, 5),
                "known": known,
                "attention": np.round(cells.astype(float), 5).tolist(),
            }
            for word, log_prob, known, cells in rows
        ],
        "end_log_prob": round(sentence.log_probs[-1], 5),
    }
    return json.dumps(content, ensure_ascii=False).encode()


class CaptionTables:
    """The captions of many images as JSON Lines and as CSV.

    Args:
        captions: Captions per image.
    """

    def __init__(self, captions: int) -> None:
        self._formats: dict[str, Format] = {
            "captions.jsonl": JsonLinesFormat(),
            "captions.csv": CsvFormat(captions),
        }
        self._records = {name: [form.header] for name, form in self._formats.items()}

    def add(self, item: Item, result: Result) -> None:
        """Add an image with its caption, or with the reason why it has none."""
        for name, form in self._formats.items():
            safe = item
            if name.endswith(".csv") and item.name.startswith(_FORMULA):
                safe = replace(item, name="'" + item.name)
            self._records[name].append(form.encode(to_row(safe, result)) or "")

    def files(self) -> dict[str, bytes]:
        """Return the content of each file by its name."""
        return {name: "".join(texts).encode() for name, texts in self._records.items()}
