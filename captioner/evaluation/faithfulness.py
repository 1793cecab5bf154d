"""Deletion check: does a word depend on the cells that its attention map shows?

A map is faithful when deleting the cells it highlights makes the word less likely. For each content
word of a generated caption the k cells with the largest weights are deleted from the encoder's
grid, and the drop of the word's log-probability is measured, with the same words before it. As many
cells are deleted for comparison by three other orders:

- `random`: drawn at random, the mean over several draws. A map that does no better shows nothing.
- `centre`: nearest to the image's centre first, what a map that ignores the image would show.
- `saliency`: the largest of `captioner.evaluation.saliency`, the model's own derivative.

The drop is given per share of the cells deleted, and as its mean over the shares: the area over the
perturbation curve (Samek et al. 2017, arXiv 1509.06321), at the shares of DeYoung et al. 2020
(arXiv 1911.03429, "comprehensiveness") and one more.

*Deleted* means replaced by the mean feature of the image. A zero vector or noise would be a feature
that the decoder has never seen, and its effect would be mistaken for the cell's importance. The
decoder starts anew from the damaged grid, reads it for the words before, and distributes its
attention again. Cells are deleted behind the encoder, so their neighbours, whose receptive fields
overlap, still hold some of their information: the drops are lower bounds.

Shapes: T words, L locations, N content words or deletions, M methods, S shares, G groups of words,
P images, D feature size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.evaluation.saliency import word_log_probs
from captioner.metrics.coco_categories import name_categories, word_class
from captioner.metrics.significance import (
    CONFIDENCE,
    SAMPLES,
    percentile_interval,
    resampled_sums,
)
from captioner.models.attention import Memory
from captioner.models.decoder import Decoder
from captioner.models.encoder import Grid
from captioner.utils.formatting import interval, percent

METHODS = ("attention", "saliency", "centre", "random")
"""How the cells to delete are chosen, in the order of all tables."""

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of the cells that are deleted, but at least one cell."""

_GROUPS = ("all", "object", "colour", "number", "other")
_ATTENTION, _SALIENCY, _CENTRE, _RANDOM = range(len(METHODS))
_BATCH = 32  # deletions computed together: each has its own copy of the image's memory
_TITLES = {
    "attention": "attention's cells",
    "saliency": "saliency's cells",
    "centre": "cells at the centre",
    "random": "random cells",
}

Interval = tuple[float, float]


@dataclass(frozen=True)
class DeletionCurve:
    """Drops of log-probability in nats, means over a set of words.

    Attributes:
        words: Number of words.
        log_prob: Mean log-probability on the intact image.
        drops: By method, the drop at each share of deleted cells.
        drop_intervals: Bootstrap intervals of `drops`.
        areas: By method, the mean drop over the shares.
        area_intervals: Bootstrap intervals of `areas`.
        gains: By baseline, attention's area less the baseline's; above 0, attention is better.
        gain_intervals: Bootstrap intervals of `gains` (paired: both from the same resample).
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
    """The curves of all captions given to a `FaithfulnessMeasure`.

    Attributes:
        images: Number of images.
        shares: Shares of the grid's cells that were deleted, 0 to 1.
        groups: Curves of all content words (`all`), of those that name an object (`object`),
            a `colour` or a `number`, and of the `other` ones; empty groups are absent.
        draws: Random choices of cells per image.
        confidence, samples, seed: How the intervals were computed.
    """

    images: int
    shares: tuple[float, ...]
    groups: dict[str, DeletionCurve]
    draws: int
    confidence: float
    samples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        plain = asdict(self)
        plain = {"photos": plain.pop("images"), **plain}
        plain["bootstrap"] = {key: plain.pop(key) for key in ("confidence", "samples", "seed")}
        return plain

    def table(self) -> str:
        """Return the report as text for a terminal."""
        if "all" not in self.groups:
            return f"deletion check: no content word in {self.images} photos"
        curve = self.groups["all"]
        head = "".join(f"{100 * share:>7g} %" for share in self.shares)
        lines = [
            f"deletion check: {curve.words} content words in {self.images} photos; "
            "drop of a word's log-probability",
            f"{'share of cells deleted':24}{head}{'mean':>9}"
            f"{f'{100 * self.confidence:g} % interval':>18}",
        ]
        for method in METHODS:
            drops = "".join(f"{drop:>9.3f}" for drop in curve.drops[method])
            bounds = interval(curve.area_intervals[method], ".3f")
            lines.append(f"{_TITLES[method]:24}{drops}{curve.areas[method]:>9.3f}{bounds:>18}")
        for method in METHODS[1:]:
            blank = " " * 9 * len(self.shares)
            bounds = interval(curve.gain_intervals[method], "+.3f")
            lines.append(f"{'  above ' + method:24}{blank}{curve.gains[method]:>+9.3f}{bounds:>18}")
        above = percent(curve.above_random)
        lines.append(f"attention's cells matter more than random ones for {above} of the words")
        return "\n".join(lines)


class FaithfulnessMeasure:
    """Deletes cells image by image; keeps only sums.

    Args:
        decoder: In `eval()`.
        shares: Shares of the cells to delete.
        draws: Random choices of cells per image, shared by its words.
        seed: Seed of the random choices.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        shares: Sequence[float] = SHARES,
        draws: int = 5,
        seed: int = 0,
    ) -> None:
        self.decoder = decoder
        self.shares = tuple(shares)
        self.draws = draws
        self._random = np.random.default_rng(seed)
        # One per image, (G, 3 + M·S): number of words, sum of their log-probabilities, number that
        # dropped further by attention than at random, sums of the drops.
        self._rows: list[np.ndarray] = []

    def add(
        self,
        grid: Grid,
        ids: Sequence[int],
        words: Sequence[str],
        attention: np.ndarray,
        saliency: np.ndarray,
    ) -> None:
        """Measure the content words of one caption.

        Args:
            grid: Of the image, (1, L, D) in fp32.
            ids: The caption's T words as the model's ids, without START and END.
            words: The same words as text.
            attention: Their attention maps, (T, L) or (T, H, W).
            saliency: Their saliency maps, likewise.
        """
        groups = [
            "object" if category else word_class(word)
            for category, word in zip(name_categories(words), words, strict=True)
        ]
        content = [t for t, group in enumerate(groups) if group != "function"]
        row = np.zeros((len(_GROUPS), 3 + len(METHODS) * len(self.shares)))
        self._rows.append(row)
        if not content:
            return
        intact, drops = self._measure(grid, ids, content, attention, saliency)
        areas = drops.mean(-1)  # (N, M)
        above = areas[:, _ATTENTION] > areas[:, _RANDOM]
        for n, t in enumerate(content):
            values = np.concatenate(([1, intact[n], above[n]], drops[n].ravel()))
            row[0] += values
            row[_GROUPS.index(groups[t])] += values

    def _measure(
        self,
        grid: Grid,
        ids: Sequence[int],
        content: list[int],
        attention: np.ndarray,
        saliency: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-probabilities (N,) of the content words, and their drops (N, M, S)."""
        memory = memory_with_mean(self.decoder, grid)
        cells, sizes = grid.features.shape[1], (len(content), len(METHODS), len(self.shares))

        def log_probs(orders: list[np.ndarray], words: Sequence[int]) -> np.ndarray:
            """Score all words without the first cells of each order: (orders, S, T)."""
            deleted = np.concatenate([first_cells(order, self.shares) for order in orders])
            found = deleted_log_probs(self.decoder, memory, deleted, words)
            return found.double().cpu().numpy().reshape(len(orders), len(self.shares), -1)

        # Orders that do not depend on the word are computed once for all words.
        none = np.zeros((1, cells), dtype=bool)
        intact = deleted_log_probs(self.decoder, memory, none, ids)[0].double().cpu().numpy()
        orders = [from_centre(grid.size, self._random)]
        orders += [self._random.permutation(cells) for _ in range(self.draws)]
        shared = intact - log_probs(orders, ids)  # (1 + draws, S, T)
        drops = np.empty(sizes)
        for n, t in enumerate(content):
            own = [by_weight(maps[t], self._random) for maps in (attention, saliency)]
            drops[n, [_ATTENTION, _SALIENCY]] = intact[t] - log_probs(own, ids[: t + 1])[..., -1]
            drops[n, _CENTRE] = shared[0, :, t]
            drops[n, _RANDOM] = shared[1:, :, t].mean(0)
        return intact[content], drops

    def report(
        self, *, confidence: float = CONFIDENCE, samples: int = SAMPLES, seed: int = 0
    ) -> FaithfulnessReport:
        """Return the curves of all words given so far, with bootstrap intervals over images.

        Args:
            confidence: Coverage of the intervals.
            samples: Bootstrap resamples.
            seed: Seed of the resampling.
        """
        width = 3 + len(METHODS) * len(self.shares)
        rows = np.array(self._rows).reshape(len(self._rows), len(_GROUPS) * width)
        drawn = np.zeros((0, len(_GROUPS), width))
        if self._rows:
            drawn = resampled_sums(rows, samples, seed).reshape(samples, len(_GROUPS), width)
        total = rows.sum(0).reshape(len(_GROUPS), width)
        return FaithfulnessReport(
            images=len(rows),
            shares=self.shares,
            groups={
                group: self._curve(total[g], drawn[:, g], confidence)
                for g, group in enumerate(_GROUPS)
                if total[g, 0]
            },
            draws=self.draws,
            confidence=confidence,
            samples=samples,
            seed=seed,
        )

    def _curve(self, total: np.ndarray, drawn: np.ndarray, confidence: float) -> DeletionCurve:
        """Return the curve of a group from its sums (3 + M·S) and resamples (samples, 3 + M·S)."""
        drawn = drawn[drawn[:, 0] > 0]  # a resample of a few images may hold no word
        both = np.vstack((total, drawn))
        drops = (both[:, 3:] / both[:, :1]).reshape(len(both), len(METHODS), len(self.shares))
        areas = drops.mean(-1)  # (1 + samples, M); the first row is that of all images
        gains = areas[:, :1] - areas

        def bounds(values: np.ndarray) -> Interval:
            return percentile_interval(values[1:], confidence)

        methods, baselines = list(enumerate(METHODS)), list(enumerate(METHODS))[1:]
        return DeletionCurve(
            words=int(total[0]),
            log_prob=float(total[1] / total[0]),
            drops={name: tuple(drops[0, m].tolist()) for m, name in methods},
            drop_intervals={name: tuple(map(bounds, drops[:, m].T)) for m, name in methods},
            areas={name: float(areas[0, m]) for m, name in methods},
            area_intervals={name: bounds(areas[:, m]) for m, name in methods},
            gains={name: float(gains[0, m]) for m, name in baselines},
            gain_intervals={name: bounds(gains[:, m]) for m, name in baselines},
            above_random=float(total[2] / total[0]),
        )


@torch.no_grad()
def memory_with_mean(decoder: Decoder, grid: Grid) -> Memory:
    """Return the memory of one image (1, L, D) with its mean feature as one more cell: L + 1.

    Keys and values are computed cell by cell, so a cell is deleted by reading the last one instead.
    """
    mean = grid.features.mean(1, keepdim=True)
    return decoder.remember(Grid(torch.cat((grid.features, mean), 1), grid.size))


@torch.no_grad()
def deleted_log_probs(
    decoder: Decoder, memory: Memory, deleted: np.ndarray, words: Sequence[int]
) -> Tensor:
    """Return the log-probability of every word of a sentence on damaged grids.

    Args:
        decoder: In `eval()`.
        memory: Of one image, by `memory_with_mean`.
        deleted: (N, L) bool, the cells to delete; a row without any is the intact image.
        words: Ids of the T words, without START and END.

    Returns:
        (N, T) fp32.
    """
    locations = deleted.shape[1]
    cells = np.where(deleted, locations, np.arange(locations))  # (N, L), which of the L + 1 to read
    found = []
    for index in torch.from_numpy(cells).to(memory.values.device).split(_BATCH):
        damaged = memory._replace(values=memory.values[0][index], keys=memory.keys[0][index])
        found.append(word_log_probs(decoder, damaged, words))
    return torch.cat(found)


def first_cells(order: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Choose the first cells of an order: each share of all cells, but at least one.

    Args:
        order: (L,) indices of the cells, the first to delete first.
        shares: S shares, 0 to 1; share 0 chooses no cell.

    Returns:
        (S, L) bool.
    """
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    counts = [max(1, round(share * len(order))) if share > 0 else 0 for share in shares]
    return ranks < np.array(counts)[:, None]


def by_weight(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the cells of a map, heaviest first, ties in random order: (..., L) -> (L,)."""
    flat = np.ravel(weights)
    return np.lexsort((random.random(flat.size), -flat))


def from_centre(grid: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Return the cells of a grid (H, W), nearest to the image's centre first: (L,)."""
    rows, columns = (np.abs((2 * np.arange(n) + 1) / n - 1) for n in grid)
    return by_weight(-np.hypot(rows[:, None], columns), random)
