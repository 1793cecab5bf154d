"""What a measurement of attention maps found: the figures, a table for people, JSON for machines.

`captioner.evaluation.attention` defines the measures and fills these in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_TITLES = {
    "correctness": "correctness",
    "ratio": "  ratio to uniform",
    "pointing": "pointing, share of hits",
    "pointing_gain": "  points above centre",
    "entropy_named": "entropy, these words",
    "entropy": "entropy, all words",
}


@dataclass(frozen=True)
class Figures:
    """Means over a set of measured words, each beside its baselines; NaN where there is no word.

    Attributes:
        words: Number of words.
        correctness, correctness_uniform, correctness_centre: Share of the attention mass that is
            inside the mask.
        pointing, pointing_uniform, pointing_centre: Share of hits, 0 to 1. The uniform map ties
            everywhere, so its figure is the share of cell centres inside the mask.
        entropy, entropy_centre: Normalised entropy (that of the uniform map is 1).
    """

    words: int
    correctness: float
    correctness_uniform: float
    correctness_centre: float
    pointing: float
    pointing_uniform: float
    pointing_centre: float
    entropy: float
    entropy_centre: float

    @property
    def ratio(self) -> float:
        """Correctness in multiples of the uniform map's."""
        return self.correctness / self.correctness_uniform if self.correctness_uniform else math.nan

    @property
    def pointing_gain(self) -> float:
        """Pointing hits above the centre baseline, in percentage points."""
        return 100 * (self.pointing - self.pointing_centre)

    def to_dict(self) -> dict[str, Any]:
        """The attributes with `ratio` and `pointing_gain`; NaN becomes None."""
        figures = asdict(self) | {"ratio": self.ratio, "pointing_gain": self.pointing_gain}
        return {key: None if math.isnan(value) else value for key, value in figures.items()}


@dataclass(frozen=True)
class AttentionReport:
    """What `AttentionMeasure` found.

    Attributes:
        photos, captions, words: How many were given; `words` counts every generated word.
        photos_measured: Photos with at least one measured word.
        entropy: Mean normalised entropy over all words.
        named: Means over the words that name a category present in their photo.
        by_category: The same for each category.
        by_class: The same for each word class: COCO's supercategories, and for words that name
            nothing present `absent` (a category that the photo lacks), `function`, `colour`,
            `number`, `other`, with entropy alone.
        intervals: Bootstrap intervals over photos, (low, high), of `entropy` and of `correctness`,
            `ratio`, `pointing`, `pointing_gain` and `entropy_named`. One that is undefined is
            absent; a single photo, which says nothing about others, has none.
        confidence, samples, seed: How the intervals were made.
    """

    photos: int
    captions: int
    words: int
    photos_measured: int
    entropy: float
    named: Figures
    by_category: dict[str, Figures]
    by_class: dict[str, Figures]
    intervals: dict[str, tuple[float, float]]
    confidence: float
    samples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; NaN becomes None."""
        plain = {
            key: getattr(self, key) for key in ("photos", "captions", "words", "photos_measured")
        }
        return plain | {
            "entropy": None if math.isnan(self.entropy) else self.entropy,
            "named": self.named.to_dict(),
            "by_category": {name: figures.to_dict() for name, figures in self.by_category.items()},
            "by_class": {name: figures.to_dict() for name, figures in self.by_class.items()},
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "bootstrap": {
                "confidence": self.confidence,
                "samples": self.samples,
                "seed": self.seed,
            },
        }

    def table(self, *, details: bool = True, saliency: AttentionReport | None = None) -> str:
        """The report as text for a terminal.

        Args:
            details: Add the tables by word class and by category.
            saliency: The same words measured by saliency maps, for one more column.
        """
        n = self.named
        centre = n.correctness_centre / n.correctness_uniform if n.correctness_uniform else math.nan
        interval = f"{100 * self.confidence:g} % interval"
        lines = [
            f"{n.words} of {self.words} words name a visible object, "
            f"in {self.photos_measured} of {self.photos} photos",
            f"{'':24}{'attention':>10}{interval:>18}{'uniform':>9}{'centre':>9}"
            + ("" if saliency is None else f"{'saliency':>10}"),
        ]
        rows: list[tuple[str, str, float | None, float | None]] = [
            ("correctness", ".3f", n.correctness_uniform, n.correctness_centre),
            ("ratio", ".2f", 1.0, centre),
            ("pointing", ".3f", n.pointing_uniform, n.pointing_centre),
            ("pointing_gain", "+.1f", None, None),
            ("entropy_named", ".3f", 1.0, n.entropy_centre),
            ("entropy", ".3f", 1.0, n.entropy_centre),
        ]
        for key, form, *others in rows:
            if saliency is not None:
                others.append(saliency.figure(key))
            lines.append(self._row(key, form, others))
        if details:
            lines += _detail("word class", self.by_class) + _detail("category", self.by_category)
        return "\n".join(lines)

    def figure(self, key: str) -> float:
        """The figure that `intervals` calls so."""
        if key == "entropy":
            return self.entropy
        return float(getattr(self.named, "entropy" if key == "entropy_named" else key))

    def _row(self, key: str, form: str, others: Sequence[float | None]) -> str:
        bounds = self.intervals.get(key, ())
        interval = " .. ".join(_cell(bound, form) for bound in bounds)
        columns = ["" if other is None else _cell(other, form) for other in others]
        widths = (9, 9, 10)  # uniform, centre, saliency
        cells = "".join(f"{c:>{width}}" for c, width in zip(columns, widths, strict=False))
        return f"{_TITLES[key]:24}{_cell(self.figure(key), form):>10}{interval:>18}{cells}".rstrip()


def _detail(title: str, groups: dict[str, Figures]) -> list[str]:
    """The lines of a table by group, the largest group first."""
    heads = ("words", "correct", "ratio", "point %", "+centre", "entropy")
    lines = ["", f"{title:16}" + "".join(f"{head:>9}" for head in heads)]
    for name, f in sorted(groups.items(), key=lambda item: -item[1].words):
        cells = [str(f.words), _cell(f.correctness, ".3f"), _cell(f.ratio, ".2f")]
        cells += [_cell(100 * f.pointing, ".1f"), _cell(f.pointing_gain, "+.1f")]
        cells.append(_cell(f.entropy, ".3f"))
        lines.append(f"{name:16}" + "".join(f"{cell:>9}" for cell in cells))
    return lines


def _cell(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
