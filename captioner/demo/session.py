"""What a visitor has on the page: an image, and sentences about it.

Shapes: T words of a sentence, (H, W) attention grid.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from captioner.demo.messages import for_visitors
from captioner.demo.security import MAX_FILE_BYTES, MAX_PIXELS
from captioner.errors import CaptionerError, ImageError
from captioner.image.io import open_image
from captioner.outputs import Alternatives, Caption, SentenceScore
from captioner.tokenizer import Vocabulary, detokenize

if TYPE_CHECKING:
    from captioner.api import Captioner

ALTERNATIVES = 5  # words that are offered at each place
END = Vocabulary.SPECIALS[Vocabulary.END]
SHOWN_SIDE = 1024  # pixels of the longer side of the image that the browser gets


@dataclass(frozen=True)
class Sentence:
    """A sentence with its attention maps.

    Attributes:
        text: The sentence as a reader gets it.
        words: Its T words.
        known: Whether the model's vocabulary has each of them.
        log_probs: Natural logarithm of the probability of each word, then of the sentence's end.
        attention: (T, H, W).
        origin: `model`; `yours` for one that the visitor typed; `continued` for one that the model
            wrote after a word that the visitor chose.
        alternatives: The likeliest words at each place, with their probabilities.
    """

    text: str
    words: list[str]
    known: list[bool]
    log_probs: list[float]
    attention: np.ndarray
    origin: Literal["model", "yours", "continued"]
    alternatives: Alternatives = field(default_factory=list)

    @classmethod
    def of_caption(
        cls, caption: Caption, origin: Literal["model", "continued"] = "model"
    ) -> Sentence:
        """Return a sentence that the model found."""
        return cls(
            text=caption.text,
            words=caption.words,
            known=[True] * len(caption.words),
            log_probs=caption.log_probs,
            attention=caption.attention,
            origin=origin,
            alternatives=caption.alternatives,
        )

    @classmethod
    def of_score(cls, score: SentenceScore) -> Sentence:
        """Return a sentence that the visitor typed."""
        return cls(
            text=detokenize(score.words),
            words=score.words,
            known=score.known,
            log_probs=score.log_probs,
            attention=score.attention,
            origin="yours",
            alternatives=score.alternatives,
        )

    @property
    def log_prob(self) -> float:
        """Return the logarithm of the sentence's probability, whatever search found it."""
        return math.fsum(self.log_probs)

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
        """Return the view with a sentence of the visitor's added, or replaced, and chosen."""
        own = tuple(each for each in self.sentences if each.origin == "model")
        return replace(self, sentences=(*own, sentence), chosen=len(own))


def caption_image(captioner: Captioner, path: str, options: Mapping[str, Any]) -> View:
    """Caption an image and keep what the page needs of it.

    Sentences come in the order of the search; those drawn at random, the likeliest first.

    Args:
        captioner: The model.
        path: The image file.
        options: Decoding options, as for `Captioner.stream`.

    Raises:
        CaptionerError: The image cannot be opened, or the options contradict each other; the
            message names no file of the server.
    """
    data = read_file(path)
    try:
        image = open_image(data, max_pixels=MAX_PIXELS, shrink_to=SHOWN_SIDE)
        caption = captioner(data, **options, alternatives=ALTERNATIVES)
    except ImageError as error:
        # The first part of the message names the image.
        reason = for_visitors(str(error).split(": ", 1)[-1])
        raise ImageError(f"This photo cannot be used: {reason}") from error
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    sentences = list(map(Sentence.of_caption, caption.candidates))
    if options.get("sample"):
        sentences.sort(key=lambda sentence: -sentence.log_prob)
    return View(path, buffer.getvalue(), image.size, tuple(sentences))


def score_sentence(captioner: Captioner, view: View, text: str) -> View:
    """Add a visitor's sentence, with its probability and attention under the model.

    Raises:
        CaptionerError: The sentence has no words, or the image file is no longer there.
    """
    score = captioner.score(read_file(view.source), text, alternatives=ALTERNATIVES)
    return view.add(Sentence.of_score(score))


def continue_sentence(
    captioner: Captioner, view: View, place: int, word: str, options: Mapping[str, Any]
) -> View:
    """Put another word into the chosen sentence, and let the model go on from there.

    Args:
        captioner: The model.
        view: Image and sentences.
        place: Of the word that is replaced.
        word: Takes its place; `<end>` ends the sentence there.
        options: Decoding options, as for `Captioner.stream`.

    Raises:
        CaptionerError: The model does not know a word, the options forbid the words, or the image
            file is no longer there.
    """
    before = view.sentence.words[:place]
    if word == END:
        return score_sentence(captioner, view, detokenize(before))
    given = {"prefix": detokenize([*before, word]), "num_captions": 1, "alternatives": ALTERNATIVES}
    caption = captioner(read_file(view.source), **{**options, **given})
    return view.add(Sentence.of_caption(caption, "continued"))


def read_file(path: str) -> bytes:
    """Read a file; errors about an image in memory name no path of the server."""
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"This photo is larger than {MAX_FILE_BYTES >> 20} MB.")
        return Path(path).read_bytes()
    except OSError:
        raise CaptionerError("the photo is no longer here: drop it once more") from None
