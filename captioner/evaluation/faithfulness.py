"""Deletion check: does a word depend on the cells that its attention map shows?

A map is faithful when taking away the cells it names takes away the word. For each content word of
a generated caption the k cells with the largest weights are deleted from the encoder's grid
(:mod:`captioner.evaluation.deletion` says how), and the drop of the word's log-probability is
measured, the words before it unchanged. As many other cells are deleted for comparison:

- ``random``: drawn at random, the mean over several draws. A map that cuts no deeper says nothing.
- ``centre``: the nearest to the photo's centre, what a map that knows no photo would show.
- ``saliency``: the first of :mod:`captioner.evaluation.saliency`, the model's own derivative.

The drop is given per share of the cells deleted, and as its mean over the shares: the area over the
perturbation curve (Samek et al. 2017, arXiv 1509.06321), at the shares of DeYoung et al. 2020
(arXiv 1911.03429, "comprehensiveness") and one more.

Shapes: T words, L locations, N content words, M methods, S shares, G groups of words, P photos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from captioner.evaluation.deletion import (
    by_weight,
    deleted_log_probs,
    first_cells,
    from_centre,
    remember_with_mean,
)
from captioner.evaluation.faithfulness_report import METHODS, DeletionCurve, FaithfulnessReport
from captioner.metrics.coco_categories import name_categories, word_class
from captioner.models.decoder import Decoder
from captioner.models.encoder import Grid

__all__ = ["SHARES", "FaithfulnessMeasure", "FaithfulnessReport"]

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of the cells that are deleted; of few cells at least one."""

_GROUPS = ("all", "object", "colour", "number", "other")
_ATTENTION, _SALIENCY, _CENTRE, _RANDOM = range(len(METHODS))


class FaithfulnessMeasure:
    """Deletes cells photo after photo and keeps sums only.

    Args:
        decoder: In ``eval()``.
        shares: Shares of the cells to delete.
        draws: Random choices of cells per photo, shared by its words.
        seed: Of the random choices.
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
        # One a photo, (G, 3 + M·S): number of words, sum of their log-probabilities, how many
        # fell deeper by attention than at random, sums of the drops.
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
            grid: Of the photo, (1, L, D) in fp32.
            ids: The caption's T words as the model's ids, without START and END.
            words: The same as words.
            attention: Their maps, (T, L) or (T, H, W).
            saliency: The same for saliency.
        """
        named = name_categories(words)
        groups = [
            "object" if category else word_class(word)
            for category, word in zip(named, words, strict=True)
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
        """The log-probabilities (N,) of the content words, and their drops (N, M, S)."""
        memory = remember_with_mean(self.decoder, grid)
        cells, sizes = grid.features.shape[1], (len(content), len(METHODS), len(self.shares))

        def log_probs(orders: list[np.ndarray], words: Sequence[int]) -> np.ndarray:
            """Of all words on the photo without the first cells of each order: (orders, S, T)."""
            deleted = np.concatenate([first_cells(order, self.shares) for order in orders])
            found = deleted_log_probs(self.decoder, memory, deleted, words)
            return found.double().cpu().numpy().reshape(len(orders), len(self.shares), -1)

        # What does not depend on the word is deleted once for all of them.
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
        self, *, confidence: float = 0.95, samples: int = 1000, seed: int = 0
    ) -> FaithfulnessReport:
        """The curves of all words given so far, with bootstrap intervals over the photos.

        Args:
            confidence: Coverage of the intervals.
            samples: Bootstrap resamples.
            seed: Of the resampling.
        """
        width = 3 + len(METHODS) * len(self.shares)
        rows = np.array(self._rows).reshape(len(self._rows), len(_GROUPS), width)
        photos = len(rows)
        counts = np.zeros((samples, 0), dtype=np.int64)
        if photos:
            random = np.random.default_rng(seed)
            counts = random.multinomial(photos, np.full(photos, 1 / photos), size=samples)
        drawn = np.tensordot(counts, rows, 1)  # (samples, G, 3 + M·S)
        total = rows.sum(0)
        curves = {
            group: self._curve(total[g], drawn[:, g], confidence)
            for g, group in enumerate(_GROUPS)
            if total[g, 0]
        }
        return FaithfulnessReport(
            photos=photos,
            shares=self.shares,
            groups=curves,
            draws=self.draws,
            confidence=confidence,
            samples=samples,
            seed=seed,
        )

    def _curve(self, total: np.ndarray, drawn: np.ndarray, confidence: float) -> DeletionCurve:
        """The curve of one group from its sums (3 + M·S) and the resamples' (samples, 3 + M·S)."""
        drawn = drawn[drawn[:, 0] > 0]  # a resample of a few photos may hold no word

        def drops(sums: np.ndarray) -> np.ndarray:  # (..., 3 + M·S) -> (..., M, S)
            means = sums[..., 3:] / sums[..., :1]
            return means.reshape(*sums.shape[:-1], len(METHODS), len(self.shares))

        def bounds(values: np.ndarray) -> np.ndarray:  # (samples, ...) -> (..., 2)
            tails = [(1 - confidence) / 2, (1 + confidence) / 2]
            return np.moveaxis(np.quantile(values, tails, axis=0), 0, -1)

        means, resampled = drops(total), drops(drawn)
        areas, resampled_areas = means.mean(-1), resampled.mean(-1)
        gains, resampled_gains = areas[:1] - areas, resampled_areas[:, :1] - resampled_areas
        drop_bounds, area_bounds = bounds(resampled).tolist(), bounds(resampled_areas).tolist()
        gain_bounds = bounds(resampled_gains).tolist()
        others = list(enumerate(METHODS))[1:]
        return DeletionCurve(
            words=int(total[0]),
            log_prob=float(total[1] / total[0]),
            drops={name: tuple(means[m].tolist()) for m, name in enumerate(METHODS)},
            drop_intervals={
                name: tuple((low, high) for low, high in drop_bounds[m])
                for m, name in enumerate(METHODS)
            },
            areas={name: float(areas[m]) for m, name in enumerate(METHODS)},
            area_intervals={name: tuple(area_bounds[m]) for m, name in enumerate(METHODS)},
            gains={name: float(gains[m]) for m, name in others},
            gain_intervals={name: tuple(gain_bounds[m]) for m, name in others},
            above_random=float(total[2] / total[0]),
        )
