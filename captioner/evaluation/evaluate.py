"""Evaluate a captioner: free-running captions of every photo once, against all its references.

What is scored is the sentence as a reader gets it, tokenized like the references: the official
tools give the same figures for :attr:`Evaluation.results`.

Shapes: T words of a caption, (H, W) attention grid, L = H·W.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captioner.data.examples import Example
from captioner.errors import DataError
from captioner.evaluation.attention import AttentionReport, CategoryMasks, measure_attention
from captioner.evaluation.scores import CaptionScores, score_captions
from captioner.text import Vocabulary, tokenize

if TYPE_CHECKING:
    from captioner.api import Caption, Captioner, Failure

logger = logging.getLogger(__name__)

_UNDEFINED_CIDER = (
    "undefined: it weighs words by how rare they are among the photos, so it needs two or more"
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        scores: The caption metrics, corpus and per photo (in the order of ``results``).
        references: How many reference captions the photos have together.
        words: Mean number of words a caption.
        vocabulary_used: Distinct words in all captions.
        vocabulary_size: Words that the model knows.
        unfinished: Share of captions that ``max_length`` cut, 0 to 1.
        entropy: Mean entropy of the attention maps over all words, as a share of the uniform
            map's; NaN if no word was generated.
        results: One ``{"image_id", "caption"}`` per scored photo, the COCO results format.
        failures: One ``{"image_id", "error"}`` per photo that could not be read; not scored.
        attention: The maps measured against object masks, if masks were given.
        search: Options of the search, as they were given.
    """

    scores: CaptionScores = field(repr=False)
    references: int
    words: float
    vocabulary_used: int
    vocabulary_size: int
    unfinished: float
    entropy: float
    results: list[dict[str, Any]] = field(repr=False)
    failures: list[dict[str, Any]] = field(repr=False)
    attention: AttentionReport | None = field(repr=False)
    search: dict[str, Any]

    def table(self) -> str:
        """The figures as text for a terminal: BLEU and ROUGE-L from 0 to 100, CIDEr-D from 0 up."""
        cider = self.scores.cider.score
        rows = [(f"BLEU-{n}", f"{100 * x:.1f}") for n, x in enumerate(self.scores.bleu.scores, 1)]
        rows += [
            ("ROUGE-L", f"{100 * self.scores.rouge_l.score:.1f}"),
            ("CIDEr-D", _UNDEFINED_CIDER if cider is None else f"{cider:.3f}"),
            ("words a caption", f"{self.words:.1f}"),
            ("vocabulary used", f"{self.vocabulary_used:,} of {self.vocabulary_size:,} words"),
            ("unfinished", f"{100 * self.unfinished:.1f} %"),
            ("attention entropy", f"{self.entropy:.3f} (uniform map: 1)"),
        ]
        lines = [f"{len(self.results):,} photos, {self.references:,} references"]
        if self.failures:
            lines.append(f"{len(self.failures):,} photos could not be read: they are not scored")
        lines += [f"{name:20}{value}" for name, value in rows]
        if self.attention is not None:
            lines += ["", self.attention.table(details=False)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All figures but the captions, as JSON can hold them.

        Metrics are fractions under ``metrics``; one that is undefined is None.
        """
        return {
            "photos": len(self.results),
            "references": self.references,
            "failures": self.failures,
            "metrics": {"cider": None, **self.scores.summary()},
            "words": self.words,
            "vocabulary_used": self.vocabulary_used,
            "vocabulary_size": self.vocabulary_size,
            "unfinished": self.unfinished,
            "attention_entropy": None if math.isnan(self.entropy) else self.entropy,
            "attention": None if self.attention is None else self.attention.to_dict(),
            "search": self.search,
        }


def evaluate(
    captioner: Captioner,
    examples: Sequence[Example],
    *,
    instances: Sequence[str | Path] = (),
    batch_size: int = 32,
    progress: bool = True,
    **search: Any,
) -> Evaluation:
    """Caption every photo freely and score the captions against all references.

    A photo that cannot be read has no caption to score. It is left out of every mean, and the
    warning, :attr:`Evaluation.failures` and the table say so: figures with failures in them cannot
    be compared with those of the full set.

    Args:
        captioner: The model.
        examples: Photos with their references.
        instances: COCO ``instances_*.json`` files. The maps of those photos whose ids they hold
            are measured against the masks (:mod:`captioner.evaluation.attention`).
        batch_size: Photos encoded and decoded together.
        progress: Show a bar on stderr, if that is a terminal.
        **search: Fields of :class:`~captioner.decoding.beam.BeamOptions`.

    Raises:
        DataError: No photo, a photo twice, none that can be read, none that has masks, or an
            instances file that cannot be used.
    """
    from tqdm import tqdm

    _check(examples)
    masks = CategoryMasks(*instances) if instances else None
    if masks is not None and not any(example.image_id in masks for example in examples):
        files = ", ".join(str(path) for path in instances)
        raise DataError(f"none of the {len(examples)} photos to evaluate is in {files}")
    tally = _Tally()
    results = captioner.stream(
        (example.image for example in examples), batch_size=batch_size, **search
    )
    bar = tqdm(results, total=len(examples), unit="photo", disable=None if progress else True)
    measured = (
        (int(example.image_id), caption.words, caption.attention)
        for example, caption in tally.follow(examples, bar)
        if masks is not None and example.image_id in masks
    )
    # The maps stream through: those of a batch are gone before the next is made.
    if masks is not None:
        attention = measure_attention(measured, masks)
    else:
        attention = None
        for _ in measured:
            pass
    if tally.failures:
        first = tally.failures[0]["error"]
        count = f"{len(tally.failures)} of {len(examples)} photos could not be read"
        if not tally.results:
            raise DataError(f"{count}: nothing to score ({first})")
        logger.warning("%s and are not scored; the first: %s", count, first)
    known = len(captioner.vocabulary) - len(Vocabulary.SPECIALS)
    return tally.evaluation(known, attention, search)


class _Tally:
    """What is kept of the captions as they pass by."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self._references: list[tuple[str, ...]] = []
        self._used: Counter[str] = Counter()
        self._unfinished = 0
        self._entropy = 0.0

    def follow(
        self, examples: Sequence[Example], results: Iterable[Caption | Failure]
    ) -> Iterator[tuple[Example, Caption]]:
        """Hand on each caption with its example, after noting it; note failures only."""
        from captioner.api import Failure

        for example, result in zip(examples, results, strict=True):
            if isinstance(result, Failure):
                self.failures.append({"image_id": example.image_id, "error": result.error})
                continue
            self.results.append({"image_id": example.image_id, "caption": result.text})
            self._references.append(example.captions)
            self._used.update(result.words)
            self._unfinished += not result.finished
            self._entropy += float(_entropies(result.attention).sum())
            yield example, result

    def evaluation(
        self, vocabulary_size: int, attention: AttentionReport | None, search: dict[str, Any]
    ) -> Evaluation:
        """Score what was noted."""
        captions = [tokenize(result["caption"]) for result in self.results]
        words, photos = self._used.total(), len(self.results)
        return Evaluation(
            scores=score_captions(captions, self._references),
            references=sum(map(len, self._references)),
            words=words / photos,
            vocabulary_used=len(self._used),
            vocabulary_size=vocabulary_size,
            unfinished=self._unfinished / photos,
            entropy=self._entropy / words if words else math.nan,
            results=self.results,
            failures=self.failures,
            attention=attention,
            search=search,
        )


def _entropies(maps: np.ndarray) -> np.ndarray:
    """Entropy of each map over log L: (T, H, W) -> (T,), 0 for a single cell, 1 for uniform."""
    weights = maps.reshape(len(maps), -1)  # (T, L)
    if weights.shape[1] < 2:
        return np.zeros(len(maps))
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return np.asarray(-(weights * logs).sum(1) / math.log(weights.shape[1]))


def _check(examples: Sequence[Example]) -> None:
    """Each photo once: a repeated id would be scored twice and be ambiguous in the results."""
    if not examples:
        raise DataError("no photos to evaluate")
    twice = [name for name, n in Counter(e.image_id for e in examples).items() if n > 1]
    if twice:
        raise DataError(
            f"{len(twice)} image id(s) occur more than once, the first is {twice[0]!r}: "
            "evaluate one caption file at a time"
        )
