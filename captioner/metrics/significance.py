"""Bootstrap intervals of scores, and paired tests of whether one model is better than another.

Everything is computed from one row of sums per image, so that a resample of the images is one
matrix product: no caption is read or tokenized again. BLEU is the corpus BLEU of each resample,
from the summed n-gram counts, not a mean of BLEUs. ROUGE-L and CIDEr-D are means over images.

Only the images are resampled. CIDEr-D keeps the document frequencies of the full set in every
resample, because an image drawn twice would otherwise change the weight of every word. An interval
thus tells what other images *of this kind* would give, not another data set, training run or set of
annotators.

Shapes: N images, S resamples, K columns (12 in a `ScoreTable`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captioner.errors import DataError
from captioner.metrics.bleu import bleu_of_counts
from captioner.metrics.coco_caption import CaptionScores

Floats = npt.NDArray[np.float64]

SAMPLES = 1000  # bootstrap resamples
TRIALS = 10_000  # random swaps of the test: p is never below 1 / (TRIALS + 1)
CONFIDENCE = 0.95

_ORDERS = 4
_BLEU_COLUMNS = 2 * _ORDERS + 2
_CELLS = 4_000_000  # weights held at a time
_TIE = 1e-9  # closer differences are equal: sums in another order differ by rounding


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """The scores of N images as rows that can be summed.

    Attributes:
        rows: (N, K): the n-gram counts of BLEU (`BleuScore.counts`), ROUGE-L, CIDEr-D
            (NaN where it is undefined).
    """

    rows: Floats

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape[1] != _BLEU_COLUMNS + 2:
            raise ValueError(f"expected rows of {_BLEU_COLUMNS + 2}, not {self.rows.shape}")

    @classmethod
    def of(cls, scores: CaptionScores) -> ScoreTable:
        """Return the table of scored captions."""
        means = [scores.rouge_l.per_image, scores.cider.per_image]
        return cls(np.column_stack([scores.bleu.counts, *means]))

    def __len__(self) -> int:
        return len(self.rows)

    def metrics(self) -> dict[str, float]:
        """Return the scores of the whole set as fractions, without an undefined CIDEr-D."""
        found = metrics_of_sums(self.rows.sum(axis=0, keepdims=True), len(self))
        return {name: float(values[0]) for name, values in found.items()}


def metrics_of_sums(sums: Floats, images: int) -> dict[str, Floats]:
    """Return the scores of sets of images from the sums of their rows.

    Args:
        sums: (S, K).
        images: How many rows each sum has.

    Returns:
        `bleu1` .. `bleu4`, `rouge_l` and, where defined, `cider`: (S,) each.
    """
    scores = bleu_of_counts(sums[:, :_BLEU_COLUMNS])
    found = {f"bleu{n + 1}": scores[:, n] for n in range(_ORDERS)}
    found["rouge_l"] = sums[:, -2] / images
    if not np.isnan(sums[:, -1]).any():
        found["cider"] = sums[:, -1] / images
    return found


def bootstrap_intervals(
    table: ScoreTable,
    *,
    samples: int = SAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return percentile bootstrap intervals (Efron 1979), images drawn with replacement.

    Args:
        table: One model's scores.
        samples: Number of resamples.
        confidence: Coverage of the intervals.
        seed: Equal seeds give equal intervals.

    Returns:
        (low, high) by metric; empty for a single image, which tells nothing about others.
    """
    if len(table) < 2:
        return {}
    metrics = metrics_of_sums(resampled_sums(table.rows, samples, seed), len(table))
    return {name: percentile_interval(values, confidence) for name, values in metrics.items()}


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same images.

    Attributes:
        a, b: The scores, as fractions.
        low, high: Bootstrap interval of `b - a`; both models are scored on each resample.
        p_value: How often two models whose captions are swapped at random, image by image, differ
            at least as much: two-sided, never 0.
    """

    a: float
    b: float
    low: float
    high: float
    p_value: float

    @property
    def difference(self) -> float:
        """Return `b - a`."""
        return self.b - self.a


def compare_tables(
    a: ScoreTable,
    b: ScoreTable,
    *,
    samples: int = SAMPLES,
    trials: int = TRIALS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Difference]:
    """Test, metric by metric, whether two models differ.

    Intervals are those of the paired bootstrap; p-values those of approximate randomisation (Noreen
    1989; for corpus metrics Riezler and Maxwell 2005): under the null hypothesis the two captions
    of an image are exchangeable, so each trial swaps them with probability one half and scores
    both sets anew. p-values are not corrected for looking at several metrics.

    Args:
        a: Scores of the first model.
        b: Scores of the second on the same images, row by row.
        samples: Resamples of the intervals.
        trials: Random swaps.
        confidence: Coverage of the intervals.
        seed: Equal seeds give equal results.

    Returns:
        The difference of each metric that is defined for both.

    Raises:
        DataError: The numbers of images differ, or there are fewer than two.
    """
    if len(a) != len(b):
        raise DataError(f"{len(a)} photos on one side and {len(b)} on the other: they must match")
    n = len(a)
    if n < 2:
        raise DataError("a comparison needs two or more photos")
    first, second = a.metrics(), b.metrics()
    width = a.rows.shape[1]

    drawn = resampled_sums(np.hstack([a.rows, b.rows]), samples, seed)
    spread = _minus(metrics_of_sums(drawn[:, width:], n), metrics_of_sums(drawn[:, :width], n))

    # Swapping a set of images moves the sum of their differences from one side to the other.
    gap = b.rows - a.rows
    rng = np.random.default_rng([seed, 1])
    moved = _products(gap, trials, lambda size: rng.integers(0, 2, (size, n), dtype=np.int8))
    swapped_a = metrics_of_sums(a.rows.sum(axis=0) + moved, n)
    swapped_b = metrics_of_sums(b.rows.sum(axis=0) - moved, n)
    result = {}
    for name, values in _minus(swapped_b, swapped_a).items():
        observed = abs(second[name] - first[name])
        as_large = int((np.abs(values) >= observed - _TIE).sum())
        low, high = percentile_interval(spread[name], confidence)
        p_value = (as_large + 1) / (trials + 1)  # the observed assignment is one of the swaps
        result[name] = Difference(first[name], second[name], low, high, p_value)
    return result


def _minus(b: dict[str, Floats], a: dict[str, Floats]) -> dict[str, Floats]:
    return {name: b[name] - a[name] for name in b if name in a}


def percentile_interval(values: Floats, confidence: float) -> tuple[float, float]:
    """Return the bounds that hold the middle share `confidence` of the values (S,)."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def resampled_sums(rows: Floats, samples: int, seed: int) -> Floats:
    """Return the sums (samples, K) of N rows (N, K) drawn with replacement."""
    n = len(rows)
    rng = np.random.default_rng([seed, 0])

    def weights(size: int) -> npt.NDArray[np.int64]:
        """Draw how often each row counts: (size, N)."""
        return np.stack(
            [np.bincount(rng.integers(0, n, n), minlength=n) for _ in itertools.repeat(None, size)]
        )

    return _products(rows, samples, weights)


def _products(
    rows: Floats, count: int, weights: Callable[[int], npt.NDArray[np.integer]]
) -> Floats:
    """Return (count, K): random weights (size, N) times rows (N, K), in blocks of bounded size."""
    step = max(1, _CELLS // max(1, len(rows)))
    sizes = [min(step, count - start) for start in range(0, count, step)]
    blocks = [weights(size).astype(np.float64) @ rows for size in sizes]
    return np.concatenate(blocks) if blocks else np.zeros((0, rows.shape[1]))
