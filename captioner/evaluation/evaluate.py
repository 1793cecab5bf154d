"""Evaluate a captioner: free-running captions of every photo once, against all its references.

What is scored is the sentence as a reader gets it, tokenized like the references: the official
tools give the same figures for :attr:`Evaluation.results`.

Shapes: T words of a caption, (H, W) attention grid, L = H·W.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captioner.data.annotations import Example
from captioner.errors import DataError
from captioner.evaluation.attention import AttentionReport, CategoryMasks
from captioner.evaluation.caption_metrics import CaptionQuality, measure_quality
from captioner.evaluation.faithfulness_report import FaithfulnessReport
from captioner.evaluation.probe import AttentionProbe
from captioner.metrics.chair import read_objects
from captioner.metrics.coco_caption import CaptionScores
from captioner.tokenizer import Vocabulary

if TYPE_CHECKING:
    from captioner.api import Caption, Captioner, Failure

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        quality: What was measured on the captions, corpus and per photo.
        vocabulary_size: Words that the model knows.
        unfinished: Share of captions that ``max_length`` cut, 0 to 1.
        entropy: Mean entropy of the attention maps over all words, as a share of the uniform
            map's; NaN if no word was generated.
        failures: One ``{"image_id", "error"}`` per photo that could not be read; not scored.
        attention: The maps measured against object masks, if masks were given.
        saliency: The saliency maps of the same words against the masks, if measured.
        faithfulness: The deletion check, if it was run.
        search: Options of the search, as they were given.
    """

    quality: CaptionQuality = field(repr=False)
    vocabulary_size: int
    unfinished: float
    entropy: float
    failures: list[dict[str, Any]] = field(repr=False)
    attention: AttentionReport | None = field(repr=False)
    saliency: AttentionReport | None = field(repr=False)
    faithfulness: FaithfulnessReport | None = field(repr=False)
    search: dict[str, Any]

    @property
    def scores(self) -> CaptionScores:
        """The caption metrics, corpus and per photo (in the order of ``results``)."""
        return self.quality.scores

    @property
    def results(self) -> list[dict[str, Any]]:
        """One ``{"image_id", "caption"}`` per scored photo, the COCO results format."""
        return self.quality.results

    def table(self) -> str:
        """The figures as text for a terminal: BLEU and ROUGE-L from 0 to 100, CIDEr-D from 0 up."""
        rows = [
            ("vocabulary known", f"{self.vocabulary_size:,} words"),
            ("unfinished", f"{100 * self.unfinished:.1f} %"),
            ("attention entropy", f"{self.entropy:.3f} (uniform map: 1)"),
        ]
        lines = [self.quality.table(), *(f"{name:20}{value}" for name, value in rows)]
        if self.failures:
            lines.append(f"{len(self.failures):,} photos could not be read: they are not scored")
        if self.attention is not None:
            lines += ["", self.attention.table(details=False, saliency=self.saliency)]
        if self.faithfulness is not None:
            lines += ["", self.faithfulness.table()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All figures and the scores of every photo, as JSON can hold them.

        Metrics are fractions under ``metrics``; one that is undefined is None.
        """
        return {
            **self.quality.to_dict(),
            "failures": self.failures,
            "vocabulary_size": self.vocabulary_size,
            "unfinished": self.unfinished,
            "attention_entropy": None if math.isnan(self.entropy) else self.entropy,
            "attention": None if self.attention is None else self.attention.to_dict(),
            "saliency": None if self.saliency is None else self.saliency.to_dict(),
            "faithfulness": None if self.faithfulness is None else self.faithfulness.to_dict(),
            "search": self.search,
        }


def evaluate(
    captioner: Captioner,
    examples: Sequence[Example],
    *,
    instances: Sequence[str | Path] = (),
    saliency: bool = True,
    deletions: int = 0,
    training: Set[tuple[str, ...]] | None = None,
    official: bool = False,
    watch: Callable[[Example, Caption], None] | None = None,
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
            are measured against the masks (:mod:`captioner.evaluation.attention`), and their
            captions for objects that are not there (:mod:`captioner.metrics.chair`).
        saliency: Beside them measure the saliency maps of the same words, for comparison
            (:mod:`captioner.evaluation.saliency`); about as slow as captioning.
        deletions: Run the deletion check (:mod:`captioner.evaluation.faithfulness`) on so many
            photos, spread evenly over all; several times slower than captioning.
        training: Captions of the training set (:func:`~.diversity.training_captions`): finds
            copies among the captions.
        official: Also run the official Java metrics (:mod:`captioner.metrics.official`).
        watch: Called with each caption as it comes.
        batch_size: Photos encoded and decoded together.
        progress: Show a bar on stderr, if that is a terminal.
        **search: Fields of :class:`~captioner.decoding.options.DecodingOptions`.

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
    probe = AttentionProbe(
        captioner, len(examples), masks=masks, saliency=saliency, deletions=deletions
    )
    # The maps stream through: those of a batch are gone before the next is made.
    for example, caption in tally.follow(examples, bar):
        probe.add(example, caption)
        if watch is not None:
            watch(example, caption)
    if tally.failures:
        first = tally.failures[0]["error"]
        count = f"{len(tally.failures)} of {len(examples)} photos could not be read"
        if not tally.captions:
            raise DataError(f"{count}: nothing to score ({first})")
        logger.warning("%s and are not scored; the first: %s", count, first)
    known = len(captioner.vocabulary) - len(Vocabulary.SPECIALS)
    quality = measure_quality(
        tally.image_ids,
        tally.captions,
        tally.references,
        objects=read_objects(instances) if instances else None,
        training=training,
        official=official,
    )
    return Evaluation(
        quality=quality,
        vocabulary_size=known,
        unfinished=tally.unfinished / len(tally.captions),
        entropy=tally.entropy / tally.words if tally.words else math.nan,
        failures=tally.failures,
        attention=probe.attention,
        saliency=probe.saliency,
        faithfulness=probe.faithfulness,
        search=search,
    )


class _Tally:
    """What is kept of the captions as they pass by."""

    def __init__(self) -> None:
        self.image_ids: list[int | str] = []
        self.captions: list[str] = []
        self.references: list[tuple[str, ...]] = []
        self.failures: list[dict[str, Any]] = []
        self.words = 0
        self.unfinished = 0
        self.entropy = 0.0

    def follow(
        self, examples: Sequence[Example], results: Iterable[Caption | Failure]
    ) -> Iterator[tuple[Example, Caption]]:
        """Hand on each caption with its example, after noting it; note failures only."""
        from captioner.api import Failure

        for example, result in zip(examples, results, strict=True):
            if isinstance(result, Failure):
                self.failures.append({"image_id": example.image_id, "error": result.error})
                continue
            self.image_ids.append(example.image_id)
            self.captions.append(result.text)
            self.references.append(example.captions)
            self.words += len(result.words)
            self.unfinished += not result.finished
            self.entropy += float(_entropies(result.attention).sum())
            yield example, result


def _entropies(maps: np.ndarray) -> np.ndarray:
    """Entropy of each map over log L: (T, H, W) -> (T,), 0 for a single cell, 1 for uniform."""
    weights = maps.reshape(len(maps), math.prod(maps.shape[1:]))  # (T, L), also for T = 0
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
