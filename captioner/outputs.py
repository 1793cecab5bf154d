"""What captioning returns: captions with their attention maps, failures, scores of sentences.

Two results are equal if their words and numbers are; images and maps are not compared.

Shapes: T words of a caption, (H, W) attention grid.
"""

from __future__ import annotations

import base64
import html
import io
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from captioner.decoding.hypothesis import Hypothesis, likeliest
from captioner.errors import ImageError
from captioner.image.io import ImageSource, open_image
from captioner.tokenizer import Vocabulary, detokenize

if TYPE_CHECKING:
    from PIL import Image

_SHOWN = 40  # characters of a text in a repr

Alternatives: TypeAlias = "list[list[tuple[str, float]]]"
"""For each place of a sentence, words and their probabilities."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Caption:
    """A sentence about an image, and where the model looked for each word.

    Attributes:
        text: The sentence.
        words: Its T words.
        log_probs: Natural logarithm of each word's probability, then of the sentence's end.
        score: What the search ranked by: Σ `log_probs` over the length penalty.
        finished: False if the sentence was cut at `max_length`.
        attention: (T, H, W) fp32; each map sums to 1 and covers the whole image.
        source: The image as it was given.
        candidates: All sentences the search returned, best first, this one included; samples in
            the order drawn.
        alternatives: With the option of this name, for each entry of `log_probs` the likeliest
            words there with their probabilities, best first; `<end>` is the sentence's end.
    """

    text: str
    words: list[str]
    log_probs: list[float]
    score: float
    finished: bool
    attention: np.ndarray = field(compare=False)
    source: ImageSource = field(compare=False)
    candidates: tuple[Caption, ...] = ()
    alternatives: Alternatives = field(default_factory=list, compare=False)

    @classmethod
    def of(
        cls,
        hypothesis: Hypothesis,
        vocabulary: Vocabulary,
        grid: tuple[int, int],
        source: ImageSource,
    ) -> Caption:
        """Make a caption of what a search found; `grid` is the (H, W) of its maps."""
        words = vocabulary.decode(hypothesis.words)
        return cls(
            text=detokenize(words),
            words=words,
            log_probs=hypothesis.log_probs,
            score=hypothesis.score,
            finished=hypothesis.finished,
            attention=hypothesis.attention.reshape(-1, *grid),
            source=source,
            alternatives=name_alternatives(hypothesis.alternatives, vocabulary),
        )

    def __hash__(self) -> int:
        return hash((self.text, self.score))

    def __repr__(self) -> str:
        return f"Caption({_short(self.text)}, score={self.score:.3g}, words={len(self.words)})"

    def _repr_png_(self) -> bytes | None:
        """Return the sheet of `strip` for a notebook, or None if the image is gone."""
        if not self.words:
            return None
        buffer = io.BytesIO()
        try:
            self.strip().save(buffer, "PNG")
        except ImageError:
            return None
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """Return the sentence and the sheet of `strip` for a notebook."""
        text = f"<p>{html.escape(self.text)}</p>"
        if png := self._repr_png_():
            text += f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        return text

    def overlay(self, index: int, **options: Any) -> Image.Image:
        """Draw the attention of word `index` on the image (see `visualize.overlay`)."""
        from captioner.image.visualize import overlay

        return overlay(open_image(self.source), self.attention[index], **options)

    def strip(self, **options: Any) -> Image.Image:
        """Draw the image and one overlay per word on one sheet (see `visualize.word_strip`)."""
        from captioner.image.visualize import word_strip

        return word_strip(open_image(self.source), self.words, self.attention, **options)

    def to_dict(self, *, attention: bool = False) -> dict[str, Any]:
        """Return plain JSON values, with the maps only if asked for.

        `candidates` appears when the search returned several sentences, `alternatives` if asked
        for.
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
        if self.alternatives:
            result["alternatives"] = alternatives_json(self.alternatives)
        if attention:
            result["attention"] = np.round(self.attention.astype(float), 5).tolist()
        return result


@dataclass(frozen=True, repr=False)
class Failure:
    """An image that could not be captioned.

    Attributes:
        source: The image as it was given.
        error: Why, in one line.
    """

    source: ImageSource = field(compare=False)
    error: str

    def __repr__(self) -> str:
        return f"Failure({self.error!r})"


@dataclass(frozen=True, kw_only=True, repr=False)
class SentenceScore:
    """How likely the model finds a given sentence.

    Attributes:
        words: Its T words, as the model reads them.
        known: Whether each is in the vocabulary; one that is not counts as `<unk>`.
        log_probs: Natural logarithm of each word's probability, then of the sentence's end.
        total: Their sum.
        attention: (T, H, W): where the model would have looked for each word.
        alternatives: As of a `Caption`.
    """

    words: list[str]
    known: list[bool]
    log_probs: list[float]
    total: float
    attention: np.ndarray = field(compare=False)
    alternatives: Alternatives = field(default_factory=list, compare=False)

    @classmethod
    def of(
        cls,
        words: list[str],
        log_probs: np.ndarray,
        attention: np.ndarray,
        vocabulary: Vocabulary,
        alternatives: int = 0,
    ) -> SentenceScore:
        """Make a score of T words from all log-probabilities (T + 1, V) and the maps (T, H, W)."""
        places = [*vocabulary.encode(words), Vocabulary.END]
        chosen = log_probs[np.arange(len(places)), places].tolist()
        return cls(
            words=words,
            known=[word in vocabulary for word in words],
            log_probs=chosen,
            total=sum(chosen),
            attention=attention,
            alternatives=name_alternatives(likeliest(log_probs, alternatives), vocabulary),
        )

    def __hash__(self) -> int:
        return hash((*self.words, self.total))

    def __repr__(self) -> str:
        text = _short(" ".join(self.words))
        return f"SentenceScore({text}, total={self.total:.3g}, words={len(self.words)})"


def name_alternatives(
    likeliest: list[list[tuple[int, float]]], vocabulary: Vocabulary
) -> Alternatives:
    """Return words and probabilities for ids and log-probabilities."""
    return [[(vocabulary.words[i], math.exp(value)) for i, value in row] for row in likeliest]


def alternatives_json(alternatives: Alternatives) -> list[list[dict[str, Any]]]:
    """Return alternatives as JSON values."""
    return [
        [{"word": word, "probability": round(value, 5)} for word, value in row]
        for row in alternatives
    ]


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 4].rstrip() + " ...")
