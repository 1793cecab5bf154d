"""What a deletion check found: the curves, a table for people, JSON for machines.

`captioner.evaluation.faithfulness` defines the check and fills these in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

METHODS = ("attention", "saliency", "centre", "random")
"""How the cells to delete were chosen, in the order of all tables."""

Interval = tuple[float, float]

_TITLES = {
    "attention": "attention's cells",
    "saliency": "saliency's cells",
    "centre": "cells at the centre",
    "random": "random cells",
}


@dataclass(frozen=True)
class DeletionCurve:
    """Drops of log-probability in nats, means over a set of words.

    Attributes:
        words: How many.
        log_prob: Mean log-probability on the intact photo.
        drops: By method, the drop at each share of deleted cells.
        drop_intervals: Bootstrap intervals of these.
        areas: By method, the mean drop over the shares.
        area_intervals: Bootstrap intervals of these.
        gains: By baseline, attention's area less the baseline's; above 0, attention is better.
        gain_intervals: Bootstrap intervals of these (paired: the same photos are drawn for both).
        above_random: Share of the words whose area is larger for attention than for random cells.
    """

    words: int
    log_prob: float
    drops: dict[str, tuple[float, ...]]
    drop_intervals: dict[str, tuple[Interval, ...]]
    areas: dict[str, float]
    area_intervals: dict[str, Interval]
    gains: dict[str, float]
    gain_intervals: dict[str, Interval]
    above_random: float


@dataclass(frozen=True)
class FaithfulnessReport:
    """What `FaithfulnessMeasure` found.

    Attributes:
        photos: How many were given.
        shares: Shares of the grid's cells that were deleted, 0 to 1.
        groups: Curves of all content words (``all``), of those that name an object (``object``),
            a ``colour`` or a ``number``, and of the ``other`` ones; empty groups are absent.
        draws: Random choices of cells per photo.
        confidence, samples, seed: How the intervals were made.
    """

    photos: int
    shares: tuple[float, ...]
    groups: dict[str, DeletionCurve]
    draws: int
    confidence: float
    samples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        plain = asdict(self)
        for name in ("confidence", "samples", "seed"):
            plain.setdefault("bootstrap", {})[name] = plain.pop(name)
        return plain

    def table(self) -> str:
        """The report as text for a terminal."""
        if "all" not in self.groups:
            return f"deletion check: no content word in {self.photos} photos"
        curve = self.groups["all"]
        head = "".join(f"{100 * share:>7g} %" for share in self.shares)
        lines = [
            f"deletion check: {curve.words} content words in {self.photos} photos; "
            "drop of a word's log-probability",
            f"{'share of cells deleted':24}{head}{'mean':>9}"
            f"{f'{100 * self.confidence:g} % interval':>18}",
        ]
        for method in METHODS:
            drops = "".join(f"{drop:>9.3f}" for drop in curve.drops[method])
            interval = _interval(curve.area_intervals[method], ".3f")
            lines.append(f"{_TITLES[method]:24}{drops}{curve.areas[method]:>9.3f}{interval:>18}")
        for method in METHODS[1:]:
            blank = " " * 9 * len(self.shares)
            interval = _interval(curve.gain_intervals[method], "+.3f")
            lines.append(
                f"{'  above ' + method:24}{blank}{curve.gains[method]:>+9.3f}{interval:>18}"
            )
        lines.append(
            f"attention's cells matter more than random ones for {100 * curve.above_random:.1f} % "
            "of the words"
        )
        return "\n".join(lines)


def _interval(bounds: Interval, form: str) -> str:
    return f"{bounds[0]:{form}} .. {bounds[1]:{form}}"
