"""All figures of captions alone, whether a model generated them just now or a file holds them.

Metrics with intervals, diversity, object hallucination, the official Java metrics, and the scores
of every image in the form that `captioner compare` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from captioner import __version__
from captioner.metrics.chair import Hallucination, measure_hallucination
from captioner.metrics.coco_caption import CaptionScores, score_tokens
from captioner.metrics.diversity import Diversity, measure_diversity
from captioner.metrics.official import OfficialScore, official_scores
from captioner.metrics.significance import CONFIDENCE, SAMPLES, ScoreTable, bootstrap_intervals
from captioner.tokenizer import tokenize
from captioner.utils.formatting import json_value

METRIC_NAMES = {
    **{f"bleu{n}": f"BLEU-{n}" for n in range(1, 5)},
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr-D",
}
"""Names of the metrics in tables."""

_UNDEFINED_CIDER = (
    "undefined: it weighs words by how rare they are among the photos, so it needs two or more"
)
_OWN = {
    "metrics": ", ".join(("BLEU", "ROUGE-L", "CIDEr-D")),
    "implementation": f"captioner {__version__}, after coco-caption",
    "tokenizer": f"captioner {__version__}, after Stanford PTBTokenizer 3.4.1",
}
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class CaptionQuality:
    """The figures of the captions of a set of images.

    Attributes:
        image_ids: The images.
        captions: Their captions; None for an image without one.
        references: Their references, as written.
        scores: The metrics, of the corpus and per image.
        intervals: Bootstrap intervals over images by metric, at CONFIDENCE; empty for one image.
        diversity: How varied the captions are.
        hallucination: CHAIR, if object annotations were given.
        official: The Java metrics, if they were asked for.
    """

    image_ids: Sequence[int | str] = field(repr=False)
    captions: Sequence[str | None] = field(repr=False)
    references: Sequence[Sequence[str]] = field(repr=False)
    scores: CaptionScores = field(repr=False)
    intervals: dict[str, tuple[float, float]]
    diversity: Diversity
    hallucination: Hallucination | None
    official: Sequence[OfficialScore]

    @property
    def metrics(self) -> dict[str, float | None]:
        """Return corpus scores as fractions; None where undefined or not computed."""
        official = {score.name.lower(): score.score for score in self.official}
        return {"cider": None, **self.scores.summary(), **official}

    @property
    def results(self) -> list[dict[str, Any]]:
        """Return the captions that are not None, in the COCO results format."""
        pairs = zip(self.image_ids, self.captions, strict=True)
        return [{"image_id": i, "caption": text} for i, text in pairs if text is not None]

    def table(self) -> str:
        """Return the figures as text; BLEU, ROUGE-L, METEOR and SPICE from 0 to 100.

        If Java metrics were asked for, the last lines name the program and tokenizer of each.
        """
        references = sum(map(len, self.references))
        lines = [f"{len(self.image_ids):,} photos, {references:,} references"]
        if self.intervals:
            lines[0] += f"; {100 * CONFIDENCE:g} % intervals: bootstrap over photos"
        for key, name in METRIC_NAMES.items():
            lines.append(f"{name:20}{self._cell(key)}")
        for score in self.official:
            if score.score is not None:
                lines.append(f"{score.name:20}{100 * score.score:.1f}")
        rows = self.diversity.rows() + (self.hallucination.rows() if self.hallucination else [])
        lines += [f"{name:20}{value}" for name, value in rows]
        if self.official:
            lines += ["", "{metrics}: {implementation}; tokenizer: {tokenizer}".format(**_OWN)]
        for score in self.official:
            made = f"{score.implementation}; tokenizer: {score.tokenizer}"
            if score.reason is not None:
                made = f"not computed: {score.reason}"
            lines.append(f"{score.name}: {made}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures and the scores of every image, as JSON can hold them.

        Metrics are fractions under `metrics`. `images` has an entry per image; its
        `bleu_counts` are the correct n-grams of orders 1 to 4, the possible ones, the words of
        the caption and of the reference closest in length.
        """
        return {
            "photos": len(self.image_ids),
            "references": sum(map(len, self.references)),
            "references_digest": references_digest(self.image_ids, self.references),
            "metrics": self.metrics,
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "bootstrap": {"confidence": CONFIDENCE, "samples": SAMPLES, "seed": _SEED},
            "made_by": {
                **{key: _OWN[key] for key in ("implementation", "tokenizer")},
                "official": {score.name.lower(): score.to_dict() for score in self.official},
            },
            "diversity": self.diversity.to_dict(),
            "hallucination": self.hallucination and self.hallucination.to_dict(),
            "images": self._images(),
        }

    def _cell(self, key: str) -> str:
        value = self.metrics[key]
        if value is None:
            return _UNDEFINED_CIDER
        text = format_score(key, value)
        if key in self.intervals:
            low, high = (format_score(key, bound) for bound in self.intervals[key])
            text = f"{text:9}{low} .. {high}"
        return text

    def _images(self) -> list[dict[str, Any]]:
        official = {
            score.name.lower(): score.per_image.tolist()
            for score in self.official
            if score.per_image is not None
        }
        scores = self.scores
        rows = []
        for i, image_id in enumerate(self.image_ids):
            row: dict[str, Any] = {
                "image_id": image_id,
                "caption": self.captions[i],
                "bleu4": _rounded(scores.bleu.per_image[i, 3]),
                "rouge_l": _rounded(scores.rouge_l.per_image[i]),
                "cider": _rounded(scores.cider.per_image[i]),
                "bleu_counts": [int(count) for count in scores.bleu.counts[i]],
            }
            row |= {name: _rounded(values[i]) for name, values in official.items()}
            if self.hallucination and self.hallucination.per_image[i] is not None:
                row["hallucinated"] = list(self.hallucination.per_image[i] or ())
            rows.append(row)
        return rows


def measure_quality(
    image_ids: Sequence[int | str],
    captions: Sequence[str | None],
    references: Sequence[Sequence[str]],
    *,
    objects: Mapping[int | str, Set[str]] | None = None,
    training: Set[tuple[str, ...]] | None = None,
    official: bool = False,
) -> CaptionQuality:
    """Measure one caption per image.

    Args:
        image_ids: The images.
        captions: Their captions as written. None for an image without one: it scores 0 where
            scores are means, lowers BLEU and recalls nothing, so that no model gains by it.
        references: One or more references per image, as written.
        objects: Categories by image id (`CocoInstances.present`), to measure hallucination.
        training: Captions of the training set (`training_captions`), to find copies.
        official: Also run the official Java tools.

    Raises:
        DataError: There is no image, or an image has no reference.
    """
    words = [None if caption is None else tokenize(caption) for caption in captions]
    tokens = [[tokenize(sentence) for sentence in sentences] for sentences in references]
    scores = score_tokens(words, tokens)
    hallucination = None
    if objects is not None:
        # Files of results may hold numbers as text.
        known = {str(image_id): found for image_id, found in objects.items()}
        hallucination = measure_hallucination(words, tokens, [known.get(str(i)) for i in image_ids])
    return CaptionQuality(
        image_ids=image_ids,
        captions=captions,
        references=references,
        scores=scores,
        intervals=bootstrap_intervals(ScoreTable.of(scores), seed=_SEED),
        diversity=measure_diversity(words, tokens, training),
        hallucination=hallucination,
        official=official_scores([text or "" for text in captions], references) if official else (),
    )


def format_score(metric: str, value: float, sign: str = "") -> str:
    """Return a score as usually printed: CIDEr-D with 3 decimals, others in percent with 1."""
    return f"{value:{sign}.3f}" if metric == "cider" else f"{100 * value:{sign}.1f}"


def references_digest(image_ids: Sequence[int | str], references: Sequence[Sequence[str]]) -> str:
    """Return a digest of images and references, whatever their order."""
    pairs = zip(image_ids, references, strict=True)
    lines = sorted(json.dumps([str(image_id), sorted(texts)]) for image_id, texts in pairs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _rounded(value: float) -> float | None:
    rounded: float | None = json_value(round(float(value), 6))
    return rounded
