"""The form in which the browser gets what a visitor has on the page.

The image travels as a JPEG data URI, each word's attention map as one byte per cell of the grid;
`assets/overlay.js` enlarges the cells over the image, as `visualize.overlay` does, and draws them
by the tables of `captioner.image.look`. The page sets all text as text, never as HTML.

Shapes: T words of a sentence, (H, W) attention grid.
"""

from __future__ import annotations

import base64
import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from captioner.demo.session import END, Sentence, View
from captioner.image import look
from captioner.image.visualize import spread_weights
from captioner.metrics.coco_categories import name_categories, word_class

STRENGTH = 0.5  # of the overlay, unless the visitor chooses another
_FINE = 8  # pixels per cell at which the outline's level is computed
_LARGE = ((",000", 1e3), (" million", 1e6), (" billion", 1e9), (" trillion", 1e12))
_BEFORE_NOUNS = (  # articles, demonstratives, possessives and prepositions
    *("a", "an", "the", "this", "these", "those", "some", "his", "her", "its", "their"),
    *("of", "in", "on", "at", "near", "by", "with", "without", "from", "into", "onto", "over"),
    *("under", "behind", "beside", "between", "through", "across", "along", "around", "against"),
)
_QUALIFIERS = ("colour", "number")
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


def view_payload(
    view: View, style: str = "spotlight", strength: float = STRENGTH, *, problem: str = ""
) -> dict[str, Any]:
    """Return a view in the form that the page draws.

    Args:
        view: Image and sentences.
        style: `spotlight` or `heatmap`.
        strength: 0 to 1, how much the spotlight dims, how opaque the heat map is.
        problem: Why the view is not what was asked for; shown above it.
    """
    likeliest = max(sentence.log_prob for sentence in view.sentences)
    return {
        "id": secrets.token_hex(4),  # new to the page, even if all else is as before
        "photo": "data:image/jpeg;base64," + _base64(view.jpeg),
        "width": view.size[0],
        "height": view.size[1],
        "sentences": [sentence_payload(sentence, likeliest) for sentence in view.sentences],
        "chosen": view.chosen,
        "style": style,
        "strength": strength,
        "problem": capitalised(problem),
    }


def error_payload(message: str) -> dict[str, Any]:
    """Return a message that the page shows, as text, in place of an image."""
    return {"error": capitalised(message)}


def capitalised(message: str) -> str:
    """Return a message as the page shows it, beginning with a capital letter."""
    return message[:1].upper() + message[1:]


def notice_payload() -> dict[str, Any]:
    """Return a message for the time until the first image is there."""
    return {"notice": "One moment: the model is being loaded."}


def sentence_payload(sentence: Sentence, likeliest: float) -> dict[str, Any]:
    """Return a sentence and its words, each with its probability, map and place.

    Args:
        sentence: The sentence.
        likeliest: Logarithm of the probability of the likeliest sentence beside it.
    """
    others = sentence.alternatives or [[]] * len(sentence.words)
    columns = (
        *(sentence.words, sentence.probabilities, sentence.known, sentence.attention),
        others[: len(sentence.words)],
    )
    return {
        "text": sentence.text,
        "chance": chance(sentence.log_prob),
        "share": round(math.exp(sentence.log_prob - likeliest), 4),
        "lit": lit_word(sentence.words, sentence.probabilities, sentence.attention),
        "origin": sentence.origin,
        "grid": list(sentence.attention.shape[1:]),
        "words": [
            {
                "text": word,
                "probability": round(probability, 4),
                "known": known,
                "pale": word_class(word) == "function",
                "place": place(cells),
                "map": encode_map(cells),
                "half": encode_half(cells),
                "others": [
                    [other, round(chance, 4)]
                    for other, chance in instead
                    if index or other != END  # a sentence has a word
                ],
            }
            for index, (word, probability, known, cells, instead) in enumerate(
                zip(*columns, strict=True)
            )
        ],
    }


def chance(log_prob: float) -> str:
    """Write a probability so that a reader can compare it: `28 %`, `0.4 %`, `1 in 6,000`, ...

    Args:
        log_prob: Its natural logarithm.
    """
    probability = math.exp(min(log_prob, 0.0))
    if probability > 0.99:
        return "over 99 %"  # as words.js says of a word
    if probability >= 0.001:
        return f"{100 * probability:.{0 if probability >= 0.0995 else 1}f} %"
    for name, size in _LARGE:
        if probability > 1 / (999.5 * size):
            return f"1 in {1 / probability / size:.0f}{name}"
    return "under 1 in 1,000 trillion"


def lit_word(
    words: Sequence[str], probabilities: Sequence[float], attention: np.ndarray
) -> int | None:
    """Return the index of the word that stays lit: of the nouns, the one with the sharpest map.

    In a sentence without nouns, it is another word that is no function word. Sharpest is the map of
    which the fewest cells hold half; their number is divided by the word's probability, as a guess
    is a poor thing to begin with.

    Args:
        words: T words.
        probabilities: T, of the words.
        attention: (T, H, W).
    """
    content = [index for index, word in enumerate(words) if word_class(word) == "other"]
    still = [index for index in content if not words[index].endswith("ing")]
    among = find_nouns(words) or still or content or list(range(len(words)))
    cells = [int((clean >= look.half_level(clean)).sum()) for clean in map(_clean, attention)]
    spread = [few / max(sure, 1e-9) for few, sure in zip(cells, probabilities, strict=True)]
    return min(among, key=spread.__getitem__, default=None)


def find_nouns(words: Sequence[str]) -> list[int]:
    """Return the indices of a sentence's nouns, as far as two rules find them.

    A noun is a name of a category of COCO. So is a word alone between an article, a preposition, a
    colour or a number and the next function word ("the grass near"), but no "top" of "on top of".
    After "of", a participle ends it as well ("of coffee sitting"); elsewhere, what ends in -ing may
    be the noun ("a large building").
    """
    classes = [word_class(word) for word in words]

    def alone(index: int) -> bool:
        before, after = words[index - 1 : index], words[index + 1 : index + 2]
        if classes[index] != "other" or words[index].endswith("ing"):
            return False
        if not before or not (before[0] in _BEFORE_NOUNS or classes[index - 1] in _QUALIFIERS):
            return False
        if after and after[0].endswith("ing"):
            return before == ["of"]
        return not after or (classes[index + 1] == "function" and after != ["of"])

    return [index for index, name in enumerate(name_categories(words)) if name or alone(index)]


def encode_half(cells: np.ndarray) -> float:
    """Return the level of the outline around half of a map's mass, as a share of its peak."""
    height, width = cells.shape
    level = look.half_level(spread_weights(cells, (_FINE * width, _FINE * height)))
    return round(min(level, 2.0), 4)  # JSON has no infinity; no weight reaches 2


def encode_map(cells: np.ndarray) -> str:
    """Encode a map (H, W) as base64 of H·W bytes, row by row, 255 at its largest cell."""
    clean = _clean(cells)
    top = clean.max()
    scaled = clean * (255 / top) if top > 0 else clean
    return _base64(np.round(scaled).astype(np.uint8).tobytes())


def place(cells: np.ndarray) -> str:
    """Say where a map's peak lies, for those who cannot see it: `top left`, `centre`, ..."""
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


def encode_look() -> dict[str, Any]:
    """Return `captioner.image.look` for the browser.

    Returns:
        In base64 the tables of 256 levels: `light`, a byte each, and `heat`, four each, of red,
        green, blue and opacity; `strength` of small heat maps; `pale`, opacity of function words.
    """
    opacity = np.round(255 * look.heat_opacity()).astype(np.uint8)
    heat = np.concatenate([look.heat_colours(), opacity[:, None]], axis=1)
    lit = np.round(255 * look.light()).astype(np.uint8)
    return {
        "light": _base64(lit.tobytes()),
        "heat": _base64(heat.tobytes()),
        "strength": look.STRENGTH,
        "pale": look.PALE,
    }


def _clean(cells: np.ndarray) -> np.ndarray:
    """Return a map as `visualize` reads it: fp32, 0 for negative and non-finite values."""
    plain = np.asarray(cells, dtype=np.float32)
    return np.nan_to_num(plain, nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
