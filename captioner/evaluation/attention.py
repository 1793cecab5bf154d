"""Attention maps measured against COCO object masks.

For each generated word that names a COCO category present in the photo
(`captioner.metrics.coco_categories`), the word's map is held against the union mask of that
category's objects:

- **Attention correctness** (Liu et al. 2017, arXiv 1605.09553): the attention mass inside the mask,
  sum over cells of alpha times the share of the cell that the mask covers.
- **Pointing game** (Zhang et al. 2016, arXiv 1608.00507): a hit when the mask is set at the pixel
  under the centre of the map's peak cell, or, with a tolerance of n pixels, within n pixels of it.
  Cells that tie for the peak share the word: it scores their mean, as if one of them were drawn at
  random.
- **Normalised entropy**: the map's entropy divided by log L, 0 for a single cell and 1 for the
  uniform map.

Beside each figure stand two maps that know nothing of the photo, measured on the same words: the
uniform map, whose correctness is the object's share of the photo's area, and a centre map, a
Gaussian blob (`centre_map`), whose peak is taken to be the photo's centre whatever the grid.

`captioner.evaluation.masks` says how masks meet the grid: the whole photo maps to the whole grid by
plain scaling.

Shapes: T words of a caption, (H, W) grid, L = H*W cells, (height, width) pixels, P photos.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from captioner.errors import DataError
from captioner.evaluation.attention_report import AttentionReport, Figures
from captioner.evaluation.masks import CategoryMasks, cell_centres, dilate, grid_coverage
from captioner.metrics.coco_categories import name_categories, word_class

__all__ = [
    "CENTRE_SIGMA",
    "AttentionMeasure",
    "AttentionReport",
    "CategoryMasks",
    "Figures",
    "WordMap",
    "centre_map",
    "measure_attention",
]

CENTRE_SIGMA = 0.25
"""Standard deviation of the centre map, as a share of the photo's width and of its height."""

_SUM_TOLERANCE = 0.01  # a map in half precision need not sum to 1 more exactly than this


@dataclass(frozen=True)
class WordMap:
    """One generated word and its attention map, with the three measures.

    Attributes:
        word: The word, as the model gives it.
        map: Attention weights (H, W), not negative, summing to 1.
    """

    word: str
    map: np.ndarray

    def correctness(self, coverage: np.ndarray) -> float:
        """Attention mass inside a mask that covers each cell by `coverage` (H, W), 0 to 1."""
        return float((self.map * coverage).sum())

    def pointing(self, mask: np.ndarray) -> float:
        """1 if the peak cell's centre lies in the boolean mask (height, width), else 0.

        Cells that tie for the peak share the word.
        """
        hits = mask[cell_centres(self.map.shape, mask.shape)]
        return float(hits[self.map == self.map.max()].mean())

    def entropy(self) -> float:
        """Entropy of the map divided by log L, 0 to 1 (0 on a grid of one cell)."""
        weights = self.map[self.map > 0]
        if self.map.size == 1:
            return 0.0
        return float(-(weights * np.log(weights)).sum() / math.log(self.map.size))


@lru_cache(maxsize=16)
def centre_map(grid: tuple[int, int], sigma: float = CENTRE_SIGMA) -> np.ndarray:
    """A Gaussian blob at the photo's centre: its integral over each cell (H, W), summing to 1.

    Args:
        grid: Rows and columns.
        sigma: Standard deviation along each axis as a share of that axis, so that the blob is as
            oblong as the photo.
    """
    sides = []
    for cells in grid:
        edges = (np.arange(cells + 1) / cells - 0.5) / (sigma * math.sqrt(2))
        sides.append(np.diff([math.erf(edge) for edge in edges]))
    blob = np.outer(*sides)
    blob /= blob.sum()
    blob.flags.writeable = False
    return blob


class _Means:
    """Sums of `Figures` fields over words, by group."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(9))

    def add(self, group: str, values: np.ndarray) -> None:
        """Adds one word's eight figures, in the order of `Figures`, to a group."""
        self._sums[group][0] += 1
        self._sums[group][1:] += values

    def figures(self) -> dict[str, Figures]:
        """The means of each group."""
        return {group: _figures(sums) for group, sums in sorted(self._sums.items())}


def _figures(sums: np.ndarray) -> Figures:
    """`Figures` from a word count and eight sums."""
    count = int(sums[0])
    means = sums[1:] / count if count else np.full(8, math.nan)
    return Figures(count, *(float(mean) for mean in means))


class AttentionMeasure:
    """Measures attention maps against the objects that their words name, caption by caption.

    A word is measured when `name_categories` gives it a category of which the photo has a mask.
    Every measured word weighs the same, also when a photo has several captions. Only sums are kept.

    Args:
        masks: The photos' masks.
        tolerance: Pixels by which the pointing game, and its baselines, may miss the mask.
    """

    def __init__(self, masks: CategoryMasks, *, tolerance: int = 0) -> None:
        self._masks = masks
        self._tolerance = tolerance
        self._targets = lru_cache(maxsize=64)(self._target)
        # One row a photo: number of words, their entropies, then the measured words' count and
        # eight figures (`Figures`).
        self._photos: defaultdict[int, np.ndarray] = defaultdict(lambda: np.zeros(11))
        self._by_category, self._by_class = _Means(), _Means()
        self._captions = 0

    def add(self, image_id: int, words: Sequence[str], maps: np.ndarray) -> None:
        """Measure one caption; the same photo may come several times.

        Args:
            image_id: Must be among the masks.
            words: The T generated words, without start and end.
            maps: Their maps (T, H, W), each summing to 1.

        Raises:
            DataError: The photo is unknown, or maps do not fit their words or are no distributions.
        """
        present = self._masks.categories(image_id)
        self._captions += 1
        row = self._photos[image_id]
        if not words:
            return
        weights = _checked(image_id, words, maps)
        for word, weight, category in zip(words, weights, name_categories(words), strict=True):
            word_map = WordMap(word, weight)
            entropy = word_map.entropy()
            row[:2] += 1, entropy
            if category is None or category not in present:
                blank = np.array([math.nan] * 6 + [entropy, math.nan])
                self._by_class.add("absent" if category else word_class(word), blank)
                continue
            target, coverage, (uniform, centre, hits, centre_hit) = self._targets(
                image_id, category, weight.shape
            )
            inside, peak = word_map.correctness(coverage), word_map.pointing(target)
            blob_entropy = WordMap("", centre_map(weight.shape)).entropy()
            values = np.array(
                [inside, uniform, centre, peak, hits, centre_hit, entropy, blob_entropy]
            )
            row[2] += 1
            row[3:] += values
            self._by_category.add(category, values)
            self._by_class.add(self._masks.supercategory(category), values)

    def _target(
        self, image_id: int, category: str, grid: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The target (height, width), its coverage (H, W) and the baselines' figures on it."""
        mask = self._masks.mask(image_id, category)
        target = dilate(mask, self._tolerance) if self._tolerance else mask
        coverage = grid_coverage(mask, grid)
        centre = float((centre_map(grid) * coverage).sum())
        hits = float(target[cell_centres(grid, target.shape)].mean())
        centre_hit = float(target[target.shape[0] // 2, target.shape[1] // 2])
        return target, coverage, np.array([float(coverage.mean()), centre, hits, centre_hit])

    def report(
        self, *, confidence: float = 0.95, samples: int = 1000, seed: int = 0
    ) -> AttentionReport:
        """The figures of all captions given so far.

        Args:
            confidence: Coverage of the bootstrap intervals.
            samples: Bootstrap resamples of the photos.
            seed: Seed of the resampling.
        """
        rows = np.stack(list(self._photos.values())) if self._photos else np.zeros((0, 11))
        total = rows.sum(axis=0)
        return AttentionReport(
            photos=len(rows),
            captions=self._captions,
            words=int(total[0]),
            photos_measured=int((rows[:, 2] > 0).sum()),
            entropy=float(total[1] / total[0]) if total[0] else math.nan,
            named=_figures(total[2:]),
            by_category=self._by_category.figures(),
            by_class=self._by_class.figures(),
            intervals=_bootstrap(rows, confidence, samples, seed),
            confidence=confidence,
            samples=samples,
            seed=seed,
        )


def measure_attention(
    captions: Iterable[tuple[int, Sequence[str], np.ndarray]],
    masks: CategoryMasks,
    *,
    tolerance: int = 0,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> AttentionReport:
    """`AttentionMeasure` over a stream of captions, which is read once.

    Args:
        captions: Triples of image id, words and maps, as for `AttentionMeasure.add`.
        masks: The photos' masks.
        tolerance: Pixels by which pointing may miss.
        confidence: Coverage of the bootstrap intervals.
        samples: Bootstrap resamples of the photos.
        seed: Seed of the resampling.

    Raises:
        DataError: A photo is unknown, or maps do not fit their words or are no distributions.
    """
    measure = AttentionMeasure(masks, tolerance=tolerance)
    for image_id, words, maps in captions:
        measure.add(image_id, words, maps)
    return measure.report(confidence=confidence, samples=samples, seed=seed)


def _checked(image_id: int, words: Sequence[str], maps: np.ndarray) -> np.ndarray:
    """The maps as float64 (T, H, W), each made to sum to exactly 1."""
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
    return weights / sums


def _bootstrap(
    rows: np.ndarray, confidence: float, samples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the corpus means when photos are drawn with replacement.

    Args:
        rows: (P, 11), the sums of each photo as `AttentionMeasure` keeps them.
        confidence: Coverage of the intervals.
        samples: Number of resamples.
        seed: Seed of the resampling.
    """
    photos = len(rows)
    if photos < 2 or samples == 0:
        return {}
    rng = np.random.default_rng(seed)
    shares = np.full(photos, 1 / photos)
    sums = np.stack([rng.multinomial(photos, shares) @ rows for _ in range(samples)])
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
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    bounds = {}
    for name, values in statistics.items():
        known = values[~np.isnan(values)]  # a resample of a few photos may hold no measured word
        if len(known):
            low, high = np.quantile(known, tails)
            bounds[name] = (float(low), float(high))
    return bounds
