"""What a visitor can take home: a strip (PNG), a film (GIF), and the numbers (JSON)."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np

from captioner.demo.view import View
from captioner.image.visualize import animate, word_strip

KINDS = {"strip": "Strip (PNG)", "film": "Film (GIF)", "numbers": "Numbers (JSON)"}


def make_file(view: View, kind: str, style: str, strength: float) -> tuple[str, bytes]:
    """A file about the chosen sentence.

    Args:
        view: The photo and its sentences.
        kind: One of :data:`KINDS`.
        style: ``spotlight`` or ``heatmap``.
        strength: 0 to 1, as on the page.

    Returns:
        Its name, made of the sentence, and its content.
    """
    sentence = view.sentence
    name = re.sub(r"[^a-z0-9]+", "-", sentence.text.lower()).strip("-")[:60].strip("-") or "caption"
    if kind == "numbers":
        return name + ".json", _numbers(view)
    looks: dict[str, Any] = {"style": style, "floor": 1 - strength, "strength": strength}
    drawn = (view.photo, sentence.words, sentence.attention)
    if kind == "film":
        return name + ".gif", animate(*drawn, **looks)
    buffer = io.BytesIO()
    word_strip(*drawn, **looks).save(buffer, "PNG")
    return name + ".png", buffer.getvalue()


def _numbers(view: View) -> bytes:
    """Words × maps, and what else is known of the sentence."""
    sentence = view.sentence
    columns = (sentence.words, sentence.log_probs, sentence.known, sentence.attention)
    rows = zip(*(column[: len(sentence.words)] for column in columns), strict=True)
    content = {
        "caption": sentence.text,
        "origin": sentence.origin,
        "score": round(sentence.score, 5),
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
