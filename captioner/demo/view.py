"""What a visitor of the page looks at: a photo and sentences about it, the model's or their own.

Shapes: T words of a sentence, (H, W) attention grid.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from captioner.api import Captioner
from captioner.errors import CaptionerError, ImageError
from captioner.image.io import open_image
from captioner.outputs import Caption, SentenceScore
from captioner.tokenizer import detokenize

SHOWN_SIDE = 1024  # pixels of the longer side of the photo that the browser gets
MOST_PIXELS = 64_000_000  # larger than any phone's photo; decoded, 192 MB


@dataclass(frozen=True)
class Sentence:
    """A sentence with its attention.

    Attributes:
        text: As a reader gets it.
        words: Its T words.
        known: Whether the model's vocabulary has each of them.
        log_probs: Natural logarithm of each word's probability, then of the sentence's end.
        score: What sentences are ranked by.
        attention: (T, H, W).
        origin: ``model``, or ``yours`` for one that the visitor typed.
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
        """A sentence that the model found."""
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
        """A sentence that the visitor typed."""
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
        """Of the T words, each after the words before it."""
        return [math.exp(min(value, 0.0)) for value in self.log_probs[: len(self.words)]]


@dataclass(frozen=True)
class View:
    """A photo and sentences about it; one of them is chosen.

    Attributes:
        source: The photo's file on the server; never shown to the browser.
        jpeg: The photo at the size the browser gets.
        size: (width, height) of that.
        sentences: At least one.
        chosen: Which one is shown.
    """

    source: str
    jpeg: bytes
    size: tuple[int, int]
    sentences: tuple[Sentence, ...]
    chosen: int = 0

    @property
    def sentence(self) -> Sentence:
        """The chosen one."""
        return self.sentences[self.chosen]

    @property
    def photo(self) -> Image.Image:
        """The photo at the size the browser gets."""
        return open_image(self.jpeg)

    def choose(self, index: int) -> View:
        """The same with another sentence chosen; an index that is none changes nothing."""
        return replace(self, chosen=index) if 0 <= index < len(self.sentences) else self

    def add(self, sentence: Sentence) -> View:
        """The same with the visitor's sentence in the place of any that it had, and chosen."""
        own = tuple(each for each in self.sentences if each.origin == "model")
        return replace(self, sentences=(*own, sentence), chosen=len(own))


def caption_photo(captioner: Captioner, path: str, search: Mapping[str, Any]) -> View:
    """Caption a photo and keep what the page needs of it.

    Args:
        captioner: The model.
        path: The photo's file.
        search: Search options, as for :meth:`Captioner.stream`.

    Raises:
        CaptionerError: The photo cannot be opened or the options contradict each other; the message
            names no file of the server.
    """
    data = _read(path)
    try:
        photo = open_image(data, max_pixels=MOST_PIXELS, shrink_to=SHOWN_SIDE)
        caption = captioner(data, **search)
    except ImageError as error:
        raise ImageError(_reason(error)) from error
    photo.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=88)
    sentences = tuple(map(Sentence.of_caption, caption.candidates))
    return View(path, buffer.getvalue(), photo.size, sentences)


def score_sentence(captioner: Captioner, view: View, text: str) -> View:
    """Ask the model how likely a sentence is for the photo, and show it.

    Raises:
        CaptionerError: The sentence has no words, or the photo is no longer there.
    """
    return view.add(Sentence.of_score(captioner.score(_read(view.source), text)))


def _read(path: str) -> bytes:
    """The file's bytes: an error about bytes names no path of the server."""
    try:
        return Path(path).read_bytes()
    except OSError:
        raise CaptionerError("the photo is no longer here: drop it once more") from None


def _reason(error: ImageError) -> str:
    """An error of ``open_image`` without its first part, the name of the picture."""
    return "This photo cannot be used: " + str(error).split(": ", 1)[-1]
