"""Attention maps measured against COCO object masks.

For each generated word that names a COCO category with a mask in the image
(`captioner.metrics.coco_categories`), the word's map is compared with the union mask of that
category's objects:

- **Attention correctness** (Liu et al. 2017, arXiv 1605.09553): the attention mass inside the mask,
  the sum over cells of alpha times the share of the cell that the mask covers.
- **Pointing game** (Zhang et al. 2016, arXiv 1608.00507): a hit when the mask is set at the pixel
  under the centre of the map's peak cell or, with a tolerance of n pixels, within n pixels of it.
  Cells that tie for the peak share the word: it scores their mean, as a random choice would.
- **Normalised entropy**: the map's entropy divided by log L, 0 for a single cell and 1 for the
  uniform map.

Each figure is given beside those of two maps that ignore the image, measured on the same words: the
uniform map, whose correctness is the object's share of the image's area, and a centre map, a
Gaussian blob (`centre_map`) whose peak is the image's centre whatever the grid.

Shapes: T words of a caption, (H, W) grid, L = H*W cells, (height, width) pixels, P images.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from captioner.errors import DataError
from captioner.evaluation.masks import CocoInstances, cell_centres, dilate, grid_coverage
from captioner.metrics.coco_categories import name_categories, word_class
from captioner.metrics.significance import (
    CONFIDENCE,
    SAMPLES,
    percentile_interval,
    resampled_sums,
)
from captioner.models.attention import map_entropy
from captioner.utils.formatting import interval, json_value, number

CENTRE_SIGMA = 0.25
"""Standard deviation of the centre map, as a share of the image's width and of its height."""

_SUM_TOLERANCE = 0.01  # maps in half precision sum to 1 only to within this
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
    """Means over a set of measured words, with their baselines; NaN where there is no word.

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

    @classmethod
    def of_sums(cls, sums: np.ndarray) -> Figures:
        """Return the means of a word count and eight sums over words: (9,)."""
        count = int(sums[0])
        means = sums[1:] / count if count else np.full(8, math.nan)
        return cls(count, *(float(mean) for mean in means))

    @property
    def ratio(self) -> float:
        """Return correctness in multiples of the uniform map's."""
        return self.correctness / self.correctness_uniform if self.correctness_uniform else math.nan

    @property
    def pointing_gain(self) -> float:
        """Return pointing hits above the centre baseline, in percentage points."""
        return 100 * (self.pointing - self.pointing_centre)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes with `ratio` and `pointing_gain`; NaN becomes None."""
        figures = asdict(self) | {"ratio": self.ratio, "pointing_gain": self.pointing_gain}
        return {key: json_value(value) for key, value in figures.items()}


@dataclass(frozen=True)
class AttentionReport:
    """The figures of all captions given to an `AttentionMeasure`.

    Attributes:
        images, captions, words: Number of images, captions and generated words.
        images_measured: Images with at least one measured word.
        entropy: Mean normalised entropy over all words.
        named: Means over the words that name a category with a mask in their image.
        by_category: The same for each category.
        by_class: The same for each word class. Measured words have COCO's supercategories as
            classes. The others have entropy alone: `absent` (a category that the image lacks),
            `no mask` (one that it has only as a crowd, or without an outline), `function`,
            `colour`, `number`, `other`.
        intervals: Bootstrap intervals over images, (low, high), of `entropy` and of `correctness`,
            `ratio`, `pointing`, `pointing_gain` and `entropy_named`. Undefined ones are absent; a
            single image has none.
        confidence, samples, seed: How the intervals were computed.
    """

    images: int
    captions: int
    words: int
    images_measured: int
    entropy: float
    named: Figures
    by_category: dict[str, Figures]
    by_class: dict[str, Figures]
    intervals: dict[str, tuple[float, float]]
    confidence: float
    samples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; NaN becomes None."""
        return {
            "photos": self.images,
            "captions": self.captions,
            "words": self.words,
            "photos_measured": self.images_measured,
            "entropy": json_value(self.entropy),
            "named": self.named.to_dict(),
            "by_category": {name: figures.to_dict() for name, figures in self.by_category.items()},
            "by_class": {name: figures.to_dict() for name, figures in self.by_class.items()},
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "bootstrap": {key: getattr(self, key) for key in ("confidence", "samples", "seed")},
        }

    def figure(self, key: str) -> float:
        """Return a figure by its key in `intervals`."""
        if key == "entropy":
            return self.entropy
        return float(getattr(self.named, "entropy" if key == "entropy_named" else key))

    def rows(self) -> list[tuple[str, str, float | None, float | None]]:
        """Return (key, number format, uniform map's figure, centre map's) of all figures."""
        n = self.named
        centre = n.correctness_centre / n.correctness_uniform if n.correctness_uniform else math.nan
        return [
            ("correctness", ".3f", n.correctness_uniform, n.correctness_centre),
            ("ratio", ".2f", 1.0, centre),
            ("pointing", ".3f", n.pointing_uniform, n.pointing_centre),
            ("pointing_gain", "+.1f", None, None),
            ("entropy_named", ".3f", 1.0, n.entropy_centre),
            ("entropy", ".3f", 1.0, n.entropy_centre),
        ]

    def table(self, *, details: bool = True, saliency: AttentionReport | None = None) -> str:
        """Return the report as text for a terminal.

        Args:
            details: Add the tables by word class and by category.
            saliency: The same words measured by saliency maps, for one more column.
        """
        heads = f"{f'{100 * self.confidence:g} % interval':>18}{'uniform':>9}{'centre':>9}"
        lines = [
            f"{self.named.words} of {self.words} words name a visible object, "
            f"in {self.images_measured} of {self.images} photos",
            f"{'':24}{'attention':>10}{heads}" + (f"{'saliency':>10}" if saliency else ""),
        ]
        for key, form, uniform, centre in self.rows():
            own = number(self.figure(key), form)
            bounds = interval(self.intervals.get(key, ()), form)
            line = f"{_TITLES[key]:24}{own:>10}{bounds:>18}"
            for baseline in (uniform, centre):
                line += f"{'' if baseline is None else number(baseline, form):>9}"
            if saliency:
                line += f"{number(saliency.figure(key), form):>10}"
            lines.append(line.rstrip())
        if details:
            lines += _details("word class", self.by_class) + _details("category", self.by_category)
        return "\n".join(lines)


def _details(title: str, groups: dict[str, Figures]) -> list[str]:
    """Return the lines of a table by group, the largest group first."""
    heads = ("words", "correct", "ratio", "point %", "+centre", "entropy")
    lines = ["", f"{title:16}" + "".join(f"{head:>9}" for head in heads)]
    for name, f in sorted(groups.items(), key=lambda item: -item[1].words):
        cells = [str(f.words), number(f.correctness, ".3f"), number(f.ratio, ".2f")]
        cells += [number(100 * f.pointing, ".1f"), number(f.pointing_gain, "+.1f")]
        cells.append(number(f.entropy, ".3f"))
        lines.append(f"{name:16}" + "".join(f"{cell:>9}" for cell in cells))
    return lines


class AttentionMeasure:
    """Measures attention maps against the objects that their words name, caption by caption.

    A word is measured when `name_categories` gives it a category of which the image has a mask.
    Every measured word weighs the same, also when an image has several captions. Only sums are
    kept.

    Args:
        instances: The images' objects.
        tolerance: Pixels by which the pointing game, and its baselines, may miss the mask.
    """

    def __init__(self, instances: CocoInstances, *, tolerance: int = 0) -> None:
        self._instances = instances
        self._tolerance = tolerance
        self._targets = lru_cache(maxsize=64)(self._target)
        # One row per image: number of words, their entropies, then the measured words' count and
        # eight sums (`Figures`).
        self._images: defaultdict[int, np.ndarray] = defaultdict(lambda: np.zeros(11))
        self._by_category: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(9))
        self._by_class: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(9))
        self._captions = 0

    def add(self, image_id: int, words: Sequence[str], maps: np.ndarray) -> None:
        """Measure one caption; the same image may come several times.

        Args:
            image_id: Must be in the instances files.
            words: The T generated words, without start and end.
            maps: Their maps (T, H, W), each summing to 1.

        Raises:
            DataError: The image is unknown, or maps do not fit their words or are no distributions.
        """
        outlined = self._instances.outlined(image_id)
        self._captions += 1
        row = self._images[image_id]
        if not words:
            return
        weights = _checked(image_id, words, maps)
        entropies = map_entropy(torch.from_numpy(weights).flatten(1)).tolist()
        for word, category, alpha, entropy in zip(
            words, name_categories(words), weights, entropies, strict=True
        ):
            row[:2] += 1, entropy
            if category is None or category not in outlined:
                group = word_class(word)
                if category is not None:
                    here = category in self._instances.present[image_id]
                    group = "no mask" if here else "absent"
                self._by_class[group] += [1, *[math.nan] * 6, entropy, math.nan]
                continue
            target, coverage, baselines = self._targets(image_id, category, alpha.shape)
            uniform, centre, hits, centre_hit, blob_entropy = baselines
            values = [
                *(1, float((alpha * coverage).sum()), uniform, centre),
                *(pointing(alpha, target), hits, centre_hit),
                *(entropy, blob_entropy),
            ]
            row[2:] += values
            self._by_category[category] += values
            self._by_class[self._instances.supercategory(category)] += values

    def _target(
        self, image_id: int, category: str, grid: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
        """Return the target (height, width), its coverage (H, W) and the baselines' figures."""
        mask = self._instances.mask(image_id, category)
        target = dilate(mask, self._tolerance) if self._tolerance else mask
        coverage, blob = grid_coverage(mask, grid), centre_map(grid)
        baselines = (
            coverage.mean(),
            (blob * coverage).sum(),
            target[cell_centres(grid, target.shape)].mean(),
            target[target.shape[0] // 2, target.shape[1] // 2],
            map_entropy(torch.from_numpy(blob.ravel())),
        )
        return target, coverage, tuple(float(figure) for figure in baselines)

    def report(
        self, *, confidence: float = CONFIDENCE, samples: int = SAMPLES, seed: int = 0
    ) -> AttentionReport:
        """Return the figures of all captions given so far.

        Args:
            confidence: Coverage of the bootstrap intervals.
            samples: Bootstrap resamples of the images.
            seed: Seed of the resampling.
        """
        rows = np.stack(list(self._images.values())) if self._images else np.zeros((0, 11))
        total = rows.sum(axis=0)

        def figures(groups: dict[str, np.ndarray]) -> dict[str, Figures]:
            return {name: Figures.of_sums(sums) for name, sums in sorted(groups.items())}

        return AttentionReport(
            images=len(rows),
            captions=self._captions,
            words=int(total[0]),
            images_measured=int((rows[:, 2] > 0).sum()),
            entropy=float(total[1] / total[0]) if total[0] else math.nan,
            named=Figures.of_sums(total[2:]),
            by_category=figures(self._by_category),
            by_class=figures(self._by_class),
            intervals=_intervals(resampled_sums(rows, samples, seed), confidence)
            if len(rows) > 1
            else {},
            confidence=confidence,
            samples=samples,
            seed=seed,
        )


def _intervals(sums: np.ndarray, confidence: float) -> dict[str, tuple[float, float]]:
    """Return the intervals of the corpus means from resampled sums of image rows: (S, 11)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = sums[:, 3:] / sums[:, 2:3]
        statistics = {
            "entropy": sums[:, 1] / sums[:, 0],
            "correctness": figures[:, 0],
            "ratio": figures[:, 0] / figures[:, 1],
            "pointing": figures[:, 3],
            "pointing_gain": 100 * (figures[:, 3] - figures[:, 5]),
            "entropy_named": figures[:, 6],
        }
    # A resample of a few images may hold no measured word.
    known = {name: values[~np.isnan(values)] for name, values in statistics.items()}
    return {
        name: percentile_interval(values, confidence)
        for name, values in known.items()
        if len(values)
    }


def pointing(weights: np.ndarray, mask: np.ndarray) -> float:
    """Return 1 if the centre of a map's peak cell lies in the mask, else 0; ties give their mean.

    Args:
        weights: The map (H, W).
        mask: Boolean (height, width).
    """
    hits = mask[cell_centres(weights.shape, mask.shape)]
    return float(hits[weights == weights.max()].mean())


@lru_cache(maxsize=16)
def centre_map(grid: tuple[int, int], sigma: float = CENTRE_SIGMA) -> np.ndarray:
    """Return a Gaussian blob at the image's centre: its integral over each cell (H, W), sum 1.

    Args:
        grid: Rows and columns.
        sigma: Standard deviation along each axis as a share of that axis, so that the blob has the
            proportions of the image.
    """
    sides = []
    for cells in grid:
        edges = (np.arange(cells + 1) / cells - 0.5) / (sigma * math.sqrt(2))
        sides.append(np.diff([math.erf(edge) for edge in edges]))
    blob = np.outer(*sides)
    return blob / blob.sum()


def _checked(image_id: int, words: Sequence[str], maps: np.ndarray) -> np.ndarray:
    """Return the maps as float64 (T, H, W), each scaled to sum to exactly 1."""
    weights = np.asarray(maps, dtype=np.float64)
    if weights.ndim != 3 or len(weights) != len(words):
        raise DataError(
            f"photo {image_id}: {len(words)} words need maps of shape ({len(words)}, H, W), "
            f"not {weights.shape}"
        )
    sums = weights.sum(axis=(1, 2), keepdims=True)
    if not np.all(weights >= 0) or not np.all(np.abs(sums - 1) <= _SUM_TOLERANCE):
        raise DataError(
            f"photo {image_id}: attention maps must not be negative and must each sum to 1"
        )
    scaled: np.ndarray = weights / sums
    return scaled
