"""Evaluate a captioner: caption every image once and score against all its references.

What is scored is the sentence as a reader gets it, tokenized like the references, so that the
official tools give the same figures for `CaptionQuality.results`.

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

import torch

from captioner.data.annotations import Example
from captioner.errors import ConfigError, DataError
from captioner.evaluation.attention import AttentionMeasure, AttentionReport
from captioner.evaluation.caption_metrics import CaptionQuality, measure_quality
from captioner.evaluation.faithfulness import FaithfulnessMeasure, FaithfulnessReport
from captioner.evaluation.masks import CocoInstances
from captioner.evaluation.saliency import saliency_maps
from captioner.models.attention import map_entropy
from captioner.models.encoder import Grid
from captioner.tokenizer import Vocabulary
from captioner.utils.formatting import json_value, percent

if TYPE_CHECKING:
    from captioner.api import Caption, Captioner, Failure

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of an evaluation.

    Attributes:
        quality: Figures of the captions, of the corpus and per image.
        vocabulary_size: Number of words that the model knows.
        unfinished: Share of captions cut at `max_length`, 0 to 1.
        entropy: Mean entropy of the attention maps over all words, as a share of the uniform
            map's; NaN if no word was generated.
        failures: One `{"image_id", "error"}` per image that could not be read; not scored.
        attention: The maps measured against object masks, if instances files were given.
        saliency: The saliency maps of the same words, measured likewise.
        faithfulness: The deletion check, if it was run.
        search: The decoding options as given.
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

    def table(self) -> str:
        """Return the figures as text for a terminal; BLEU and ROUGE-L from 0 to 100."""
        rows = [
            ("vocabulary known", f"{self.vocabulary_size:,} words"),
            ("unfinished", percent(self.unfinished)),
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
        """Return all figures and the scores of every image, as JSON can hold them.

        Metrics are fractions under `metrics`; undefined ones are None.
        """
        return {
            **self.quality.to_dict(),
            "failures": self.failures,
            "vocabulary_size": self.vocabulary_size,
            "unfinished": self.unfinished,
            "attention_entropy": json_value(self.entropy),
            "attention": self.attention and self.attention.to_dict(),
            "saliency": self.saliency and self.saliency.to_dict(),
            "faithfulness": self.faithfulness and self.faithfulness.to_dict(),
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
    batch_size: int | None = None,
    progress: bool = True,
    **search: Any,
) -> Evaluation:
    """Caption every image and score the captions against all references.

    An image that cannot be read has no caption to score. It is left out of every mean; a warning,
    `Evaluation.failures` and the table report it, because figures with failures cannot be compared
    with those of the full set.

    An ensemble is evaluated as a whole, by the mean of its models' maps. Saliency and the deletion
    check need a single model in PyTorch: otherwise saliency is left out with a warning, and the
    deletion check is refused.

    Args:
        captioner: The model.
        examples: Images with their references.
        instances: COCO `instances_*.json` files. For the images that they contain, attention maps
            are measured against the masks (`captioner.evaluation.attention`), and captions for
            objects that are not there (`captioner.metrics.chair`).
        saliency: Also measure the saliency maps of the same words against the masks
            (`captioner.evaluation.saliency`); takes about as long as captioning.
        deletions: Run the deletion check (`captioner.evaluation.faithfulness`) on that many images,
            spread evenly over all; takes several times as long as captioning.
        training: Captions of the training set (`training_captions`), to find copies.
        official: Also run the official Java metrics (`captioner.metrics.official`).
        watch: Called with each caption as it is generated.
        batch_size: Images encoded and decoded together; None as for `Captioner.stream`.
        progress: Show a progress bar on stderr, if that is a terminal.
        **search: Fields of `DecodingOptions`.

    Raises:
        DataError: There is no image, an image occurs twice, none can be read, none has masks, or an
            instances file cannot be used.
        ConfigError: The deletion check of an ensemble, or without PyTorch.
    """
    from tqdm import tqdm

    _check(examples)
    if deletions or (instances and saliency):
        single = len(captioner.backends) == 1 and captioner.backends[0].name == "torch"
        if deletions and not single:
            raise ConfigError(
                "the deletion check (--faithfulness) needs one model in PyTorch, not an ensemble "
                "or an export: evaluate each model by itself"
            )
        if not single:
            logger.warning("no saliency maps: they need one model, with the torch backend")
        saliency = single
    objects = CocoInstances(*instances) if instances else None
    if objects is not None and not any(example.image_id in objects for example in examples):
        files = ", ".join(str(path) for path in instances)
        raise DataError(f"none of the {len(examples)} photos to evaluate is in {files}")
    tally = _Tally()
    results = captioner.stream(
        (example.image for example in examples), batch_size=batch_size, **search
    )
    bar = tqdm(results, total=len(examples), unit="photo", disable=None if progress else True)
    probe = _AttentionProbe(captioner, len(examples), objects, saliency, deletions)
    # Maps are not kept: those of a batch are freed before the next batch is decoded.
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
        objects=None if objects is None else objects.present,
        training=training,
        official=official,
    )
    return Evaluation(
        quality=quality,
        vocabulary_size=known,
        unfinished=tally.unfinished / len(tally.captions),
        entropy=tally.entropy / tally.words if tally.words else math.nan,
        failures=tally.failures,
        attention=None if probe.attention is None else probe.attention.report(),
        saliency=None if probe.saliency is None else probe.saliency.report(),
        faithfulness=None if probe.deletion is None else probe.deletion.report(),
        search=search,
    )


class _Tally:
    """What is kept of each caption."""

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
        """Record every result, and yield each caption with its example."""
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
            if result.words:
                maps = torch.from_numpy(result.attention).flatten(1)  # (T, L)
                self.entropy += float(map_entropy(maps).sum())
            yield example, result


class _AttentionProbe:
    """Measures the attention of captions: against masks, against saliency, by deletion.

    Args:
        captioner: The model that generates the captions.
        images: How many captions will come.
        objects: Object masks; captions of images that they lack are not measured against them.
        saliency: Also measure the saliency maps of the same words.
        deletions: Run the deletion check on that many captions, spread evenly over all.
    """

    def __init__(
        self,
        captioner: Captioner,
        images: int,
        objects: CocoInstances | None,
        saliency: bool,
        deletions: int,
    ) -> None:
        self._captioner, self._objects = captioner, objects
        self.attention = AttentionMeasure(objects) if objects is not None else None
        self.saliency = AttentionMeasure(objects) if objects is not None and saliency else None
        self.deletion = FaithfulnessMeasure(captioner.model.decoder) if deletions else None
        self._share = min(deletions, images) / images
        self._seen = 0

    def add(self, example: Example, caption: Caption) -> None:
        """Measure one caption.

        Raises:
            ImageError: The image can no longer be read.
        """
        measured = self._objects is not None and example.image_id in self._objects
        saliency = self.saliency if measured else None
        # Chosen by position, so that the sample is the same for every model.
        before, self._seen = self._seen, self._seen + 1
        chosen = int(self._seen * self._share) > int(before * self._share)
        deletion = self.deletion if chosen else None
        if measured and self.attention is not None:
            self.attention.add(int(example.image_id), caption.words, caption.attention)
        if not caption.words or (saliency is None and deletion is None):
            return
        captioner = self._captioner  # encoded once more: the grids of a batch are not kept
        with torch.no_grad():
            grid = captioner.torch_backend.features(captioner.read(caption.source)[None])
        grid = Grid(grid.features.float(), grid.size)
        ids = captioner.vocabulary.encode(caption.words)
        maps = saliency_maps(captioner.model.decoder, grid, ids).cpu().numpy()  # (T, L)
        if saliency is not None:
            saliency.add(int(example.image_id), caption.words, maps.reshape(-1, *grid.size))
        if deletion is not None:
            deletion.add(grid, ids, caption.words, caption.attention, maps)


def _check(examples: Sequence[Example]) -> None:
    """Check that each image occurs once: a repeated id would be ambiguous in the results."""
    if not examples:
        raise DataError("no photos to evaluate")
    twice = [name for name, n in Counter(e.image_id for e in examples).items() if n > 1]
    if twice:
        raise DataError(
            f"{len(twice)} image id(s) occur more than once, the first is {twice[0]!r}: "
            "evaluate one caption file at a time"
        )
