"""What captioning gives: a caption with its attention maps, a failure, or a sentence's score.

Shapes: T words of a caption, (H, W) attention grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from captioner.image.io import ImageSource, open_image

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A sentence about a picture, and where the model looked for each word.

    Attributes:
        text: The sentence.
        words: Its T words.
        log_probs: Natural logarithm of each word's probability, then of the sentence's end.
        score: What the search ranked by: Σ ``log_probs`` over the length penalty.
        finished: False if the sentence was cut at ``max_length``.
        attention: (T, H, W) fp32; each map sums to 1 and covers the whole picture.
        candidates: All sentences the search returned, best first, this one included; samples as
            they were drawn.
        source: The picture as it was given.
    """

    text: str
    words: list[str]
    log_probs: list[float]
    score: float
    finished: bool
    attention: np.ndarray
    source: ImageSource = field(repr=False)
    candidates: tuple[Caption, ...] = field(default=(), repr=False)

    def overlay(self, index: int, **options: Any) -> Image.Image:
        """The picture with the attention of word ``index`` on it (see ``visualize.overlay``)."""
        from captioner.image.visualize import overlay

        return overlay(open_image(self.source), self.attention[index], **options)

    def strip(self, **options: Any) -> Image.Image:
        """The picture and one overlay per word, on one sheet (see ``visualize.word_strip``)."""
        from captioner.image.visualize import word_strip

        return word_strip(open_image(self.source), self.words, self.attention, **options)

    def to_dict(self, *, attention: bool = False) -> dict[str, Any]:
        """As plain JSON values; the maps only if asked for.

        ``candidates`` appears when the search returned several sentences.
        """
        result: dict[str, Any] = {
            "caption": self.text,
            "score": round(self.score, 5),
            "words": self.words,
            "log_probs": [round(value, 5) for value in self.log_probs],
            "finished": self.finished,
        }
        if len(self.candidates) > 1:
            result["candidates"] = [
                {"caption": other.text, "score": round(other.score, 5)} for other in self.candidates
            ]
        if attention:
            result["attention"] = np.round(self.attention.astype(float), 5).tolist()
        return result


@dataclass(frozen=True)
class Failure:
    """A picture that could not be captioned.

    Attributes:
        source: The picture as it was given.
        error: Why, in one line.
    """

    source: ImageSource = field(repr=False)
    error: str


@dataclass(frozen=True, kw_only=True)
class SentenceScore:
    """How likely the model finds a given sentence.

    Attributes:
        words: Its T words, as the model reads them.
        known: Whether each is in the vocabulary; one that is not counts as ``<unk>``.
        log_probs: Natural logarithm of each word's probability, then of the sentence's end.
        total: Their sum.
        attention: (T, H, W): where the model would have looked for each word.
    """

    words: list[str]
    known: list[bool]
    log_probs: list[float]
    total: float
    attention: np.ndarray
