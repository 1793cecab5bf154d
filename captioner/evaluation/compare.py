"""Compare two sets of captions of the same images: differences, intervals, significance."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from captioner.data.annotations import Example
from captioner.data.records import read_text
from captioner.errors import DataError
from captioner.evaluation.caption_metrics import METRIC_NAMES, format_score, references_digest
from captioner.evaluation.results import match_results, read_results
from captioner.metrics.coco_caption import score_tokens
from captioner.metrics.significance import (
    CONFIDENCE,
    SAMPLES,
    TRIALS,
    Difference,
    ScoreTable,
    compare_tables,
)
from captioner.tokenizer import tokenize


@dataclass(frozen=True)
class Comparison:
    """How captions B differ from captions A.

    Attributes:
        a, b: Their names.
        images: Number of images.
        metrics: The differences by metric; CIDEr-D is left out where it is undefined.
        equal_captions: Share of the images with the same caption in both, 0 to 1.
        notes: Sentences about captions and references that did not match.
        seed: Seed of the resampling.
    """

    a: str
    b: str
    images: int
    metrics: dict[str, Difference]
    equal_captions: float
    notes: list[str]
    seed: int

    def table(self) -> str:
        """Return the comparison as text for a terminal."""
        lines = [
            *self.notes,
            f"A: {self.a}",
            f"B: {self.b}",
            f"{self.images:,} photos, {100 * self.equal_captions:.1f} % with equal captions",
            f"{'':12}{'A':>8}{'B':>8}{'B - A':>9}{f'{100 * CONFIDENCE:g} % interval':>20}{'p':>9}",
        ]
        for key, d in self.metrics.items():
            interval = " .. ".join(format_score(key, bound, "+") for bound in (d.low, d.high))
            lines.append(
                f"{METRIC_NAMES[key]:12}{format_score(key, d.a):>8}{format_score(key, d.b):>8}"
                f"{format_score(key, d.difference, '+'):>9}{interval:>20}{d.p_value:>9.4f}"
            )
        lines.append(
            f"p: approximate randomisation, {TRIALS:,} trials, two-sided, each metric by itself; "
            f"intervals: paired bootstrap over photos, {SAMPLES:,} resamples"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON can hold it; scores are fractions."""
        return {
            "a": self.a,
            "b": self.b,
            "photos": self.images,
            "equal_captions": self.equal_captions,
            "metrics": {
                name: asdict(found) | {"difference": found.difference}
                for name, found in self.metrics.items()
            },
            "notes": self.notes,
            "samples": SAMPLES,
            "trials": TRIALS,
            "confidence": CONFIDENCE,
            "seed": self.seed,
        }


@dataclass(frozen=True, eq=False)
class ScoredFile:
    """The captions of a file with their scores.

    Attributes:
        captions: By image id as text; None for an image without one.
        table: A row per image, in the same order.
        digest: Digest of images and references.
        notes: Sentences about captions and references that did not match.
    """

    captions: dict[str, str | None]
    table: ScoreTable
    digest: str
    notes: list[str]


def compare_files(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    examples: Sequence[Example] | None = None,
    *,
    seed: int = 0,
) -> Comparison:
    """Compare two files: figures written by `captioner evaluate --json`, or captions to score.

    Args:
        a: The first file.
        b: The second.
        examples: Images with references; needed for files of captions (results).
        seed: Seed of the resampling.

    Raises:
        DataError: A file cannot be used, references are needed, or the two files were not scored
            on the same images and references.
    """
    first, second = (read_scored(path, examples) for path in (a, b))
    if first.digest != second.digest:
        raise DataError(
            f"{os.fspath(a)} ({len(first.captions)} photos) and {os.fspath(b)} "
            f"({len(second.captions)}) were not scored on the same photos and references: scores "
            "of different sets cannot be compared"
        )
    place = {image_id: i for i, image_id in enumerate(second.captions)}
    order = [place[image_id] for image_id in first.captions]
    equal = [first.captions[i] == second.captions[i] for i in first.captions]
    return Comparison(
        a=os.fspath(a),
        b=os.fspath(b),
        images=len(first.captions),
        metrics=compare_tables(first.table, ScoreTable(second.table.rows[order]), seed=seed),
        equal_captions=sum(equal) / len(equal),
        notes=[f"A: {line}" for line in first.notes] + [f"B: {line}" for line in second.notes],
        seed=seed,
    )


def read_scored(
    path: str | os.PathLike[str], examples: Sequence[Example] | None = None
) -> ScoredFile:
    """Return the scores in a file of `captioner evaluate --json`, or of a file of results.

    Raises:
        DataError: The file cannot be read or used, or has captions and no references were given.
    """
    try:
        content = json.loads(read_text(path))
    except ValueError:
        content = None  # JSONL or CSV
    if isinstance(content, dict) and "references_digest" in content:
        return _read_evaluation(content, os.fspath(path))
    if examples is None:
        raise DataError(
            f"{os.fspath(path)} is not what captioner evaluate --json writes; "
            "to compare files of captions, name their references too"
        )
    matching = match_results(read_results(path), examples, source=os.fspath(path))
    words = [None if caption is None else tokenize(caption) for caption in matching.captions]
    ids = [example.image_id for example in examples]
    references = [example.captions for example in examples]
    tokens = [[tokenize(text) for text in texts] for texts in references]
    return ScoredFile(
        captions=dict(zip(map(str, ids), matching.captions, strict=True)),
        table=ScoreTable.of(score_tokens(words, tokens)),
        digest=references_digest(ids, references),
        notes=matching.lines(),
    )


def _read_evaluation(content: dict[str, Any], source: str) -> ScoredFile:
    try:
        images = content["images"]
        rows = [[*image["bleu_counts"], image["rouge_l"], image["cider"]] for image in images]
        captions = {str(image["image_id"]): image["caption"] for image in images}
        table = ScoreTable(np.array(rows, dtype=np.float64))  # None becomes NaN
        missing = sum(caption is None for caption in captions.values())
        if len(captions) < len(images):
            raise ValueError("an image id occurs twice")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: damaged scores ({error!r}); evaluate again") from error
    notes = [f"{missing:,} photos have no caption (this lowers the scores)"] if missing else []
    return ScoredFile(captions, table, content["references_digest"], notes)
