"""What a visitor has on the page: an image, sentences about it, and their form in the browser.

The image travels as a JPEG data URI, each word's attention map as one byte per cell of the grid;
`assets/overlay.js` enlarges the cells over the image, as `visualize.overlay` does. The page sets
all text as text, never as HTML.

Shapes: T words of a sentence, (H, W) attention grid.
"""

from __future__ import annotations

import base64
import io
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from captioner.demo.security import MAX_FILE_BYTES, MAX_PIXELS
from captioner.errors import CaptionerError, ImageError
from captioner.image.io import open_image
from captioner.image.visualize import heat_colours
from captioner.outputs import Caption, SentenceScore
from captioner.tokenizer import detokenize

if TYPE_CHECKING:
    from captioner.api import Captioner

SHOWN_SIDE = 1024  # pixels of the longer side of the image that the browser gets
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


@dataclass(frozen=True)
class Sentence:
    """A sentence with its attention maps.

    Attributes:
        text: The sentence as a reader gets it.
        words: Its T words.
        known: Whether the model's vocabulary has each of them.
        log_probs: Natural logarithm of the probability of each word, then of the sentence's end.
        score: The value that sentences are ranked by.
        attention: (T, H, W).
        origin: `model`, or `yours` for one that the visitor typed.
    """

    text: str
    words: list[str]
    known: list[bool]
    log_probs: list[float]
    score: float
    attention: np.ndarray
    origin: Literal["model", "yours"]

    @classmethod
    def of_caption(cls, caption: Caption) -> Sentence:
        """Return a sentence that the model found."""
        return cls(
            text=caption.text,
            words=caption.words,
            known=[True] * len(caption.words),
            log_probs=caption.log_probs,
            score=caption.score,
            attention=caption.attention,
            origin="model",
        )

    @classmethod
    def of_score(cls, score: SentenceScore) -> Sentence:
        """Return a sentence that the visitor typed."""
        return cls(
            text=detokenize(score.words),
            words=score.words,
            known=score.known,
            log_probs=score.log_probs,
            score=score.total,
            attention=score.attention,
            origin="yours",
        )

    @property
    def probabilities(self) -> list[float]:
        """Return the probability of each of the T words, given the words before it."""
        return [math.exp(min(value, 0.0)) for value in self.log_probs[: len(self.words)]]


@dataclass(frozen=True)
class View:
    """An image and sentences about it, one of which is chosen.

    Attributes:
        source: The image file on the server; the browser never gets its path.
        jpeg: The image at the size that the browser gets.
        size: (width, height) of `jpeg`.
        sentences: At least one.
        chosen: Index of the sentence that is shown.
    """

    source: str
    jpeg: bytes
    size: tuple[int, int]
    sentences: tuple[Sentence, ...]
    chosen: int = 0

    @property
    def sentence(self) -> Sentence:
        """Return the chosen sentence."""
        return self.sentences[self.chosen]

    @property
    def image(self) -> Image.Image:
        """Return the image at the size that the browser gets."""
        return open_image(self.jpeg)

    def choose(self, index: int) -> View:
        """Return the view with another sentence chosen; an invalid index changes nothing."""
        return replace(self, chosen=index) if 0 <= index < len(self.sentences) else self

    def add(self, sentence: Sentence) -> View:
        """Return the view with the visitor's sentence added, or replaced, and chosen."""
        own = tuple(each for each in self.sentences if each.origin == "model")
        return replace(self, sentences=(*own, sentence), chosen=len(own))


def caption_image(captioner: Captioner, path: str, options: Mapping[str, Any]) -> View:
    """Caption an image and keep what the page needs of it.

    Args:
        captioner: The model.
        path: The image file.
        options: Decoding options, as for `Captioner.stream`.

    Raises:
        CaptionerError: The image cannot be opened, or the options contradict each other; the
            message names no file of the server.
    """
    data = _read(path)
    try:
        image = open_image(data, max_pixels=MAX_PIXELS, shrink_to=SHOWN_SIDE)
        caption = captioner(data, **options)
    except ImageError as error:
        # The first part of the message names the image.
        reason = str(error).split(": ", 1)[-1]
        raise ImageError(f"This photo cannot be used: {reason}") from error
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    sentences = tuple(map(Sentence.of_caption, caption.candidates))
    return View(path, buffer.getvalue(), image.size, sentences)


def score_sentence(captioner: Captioner, view: View, text: str) -> View:
    """Add a visitor's sentence, with its probability and attention under the model.

    Raises:
        CaptionerError: The sentence has no words, or the image file is no longer there.
    """
    return view.add(Sentence.of_score(captioner.score(_read(view.source), text)))


def _read(path: str) -> bytes:
    """Read a file; errors about an image in memory name no path of the server."""
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"This photo is larger than {MAX_FILE_BYTES >> 20} MB.")
        return Path(path).read_bytes()
    except OSError:
        raise CaptionerError("the photo is no longer here: drop it once more") from None


# --------------------------------------------------------------------------------- for the browser


def view_payload(view: View, style: str = "spotlight", strength: float = 0.6) -> dict[str, Any]:
    """Return a view in the form that the page draws.

    Args:
        view: Image and sentences.
        style: `spotlight` or `heatmap`.
        strength: 0 to 1, how much the spotlight dims, how opaque the heat map is.
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
    """Return a message that the page shows, as text, in place of an image."""
    return {"error": message[:1].upper() + message[1:]}


def notice_payload() -> dict[str, Any]:
    """Return a message for the time until the first image is there."""
    return {"notice": "One moment: the model is being loaded."}


def sentence_payload(sentence: Sentence) -> dict[str, Any]:
    """Return a sentence and its words, each with its probability, map and place."""
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


def encode_ramp() -> str:
    """Encode the heat map's 256 RGB colours as base64."""
    return _base64(heat_colours().tobytes())


def _clean(cells: np.ndarray) -> np.ndarray:
    """Return a map as `visualize` reads it: fp32, 0 for negative and non-finite values."""
    plain = np.asarray(cells, dtype=np.float32)
    return np.nan_to_num(plain, nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
