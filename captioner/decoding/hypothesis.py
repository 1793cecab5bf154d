"""What all searches share: the sentence found, its attention maps, and several models as one.

Shapes: B images, K rows per image, T words, V vocabulary, L locations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from captioner.backends.base import Stepper
from captioner.tokenizer import Vocabulary


@dataclass(frozen=True)
class Hypothesis:
    """One sentence that a search found.

    Attributes:
        words: Ids without START and END.
        log_probs: Log-probability of each word, and last of END if the model ended the sentence.
        score: What the search ranks by: the summed log-probability over the length penalty.
        finished: Whether the model ended the sentence (else `max_length` cut it, or no word was
            allowed to follow).
        attention: (T, L) fp32, one map per word.
    """

    words: list[int]
    log_probs: list[float]
    score: float
    finished: bool
    attention: np.ndarray


class AttentionMaps:
    """The attention maps of all steps. Sentences hold indices into them, so no step copies maps."""

    def __init__(self) -> None:
        self._steps: list[np.ndarray] = []
        self._count = 0

    def add(self, maps: np.ndarray) -> np.ndarray:
        """Keep the maps (B, K, L) of a step; return their indices (B, K)."""
        rows = maps.shape[0] * maps.shape[1]
        self._steps.append(maps.reshape(rows, -1))
        self._count += rows
        return np.arange(self._count - rows, self._count).reshape(maps.shape[:2])

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return a copy of the maps (T, L) at these indices (T,)."""
        if len(self._steps) > 1:
            self._steps = [np.concatenate(self._steps)]
        return self._steps[0][indices]


class EnsembleStepper:
    """Several steppers of one vocabulary that decode together.

    A step gives the logarithm of the mean of their probabilities, and the mean of their maps or,
    where their grids differ, the first one's maps.

    Args:
        steppers: At least one, over the same images.
    """

    def __init__(self, steppers: Sequence[Stepper]):
        self._steppers = list(steppers)
        self.grid = steppers[0].grid
        self._same_grid = all(stepper.grid == self.grid for stepper in steppers)

    @property
    def images(self) -> int:
        """B, the images that are still searched."""
        return self._steppers[0].images

    def step(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Feed the previous words (B, K); see `Stepper.step`."""
        (log_probs, maps), *others = [stepper.step(words) for stepper in self._steppers]
        for other, other_maps in others:
            _add_probabilities(log_probs, other)
            if self._same_grid:
                maps += other_maps
        count = len(self._steppers)
        log_probs -= math.log(count)
        if self._same_grid:
            maps /= count
        return log_probs, maps

    def reorder(self, parents: np.ndarray) -> None:
        """Let row k of each image continue its row `parents[:, k]`."""
        for stepper in self._steppers:
            stepper.reorder(parents)

    def keep(self, images: np.ndarray) -> None:
        """Go on with some of the images only."""
        for stepper in self._steppers:
            stepper.keep(images)


def _add_probabilities(log_probs: np.ndarray, others: np.ndarray) -> None:
    """Add probabilities that are given by their logarithms, in place (`np.logaddexp` is slow)."""
    larger = np.maximum(log_probs, others)
    np.minimum(log_probs, others, out=log_probs)
    log_probs -= larger
    np.exp(log_probs, out=log_probs)
    log_probs += 1
    np.log(log_probs, out=log_probs)
    log_probs += larger


def score_words(stepper: Stepper, words: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Feed a given sentence to the model.

    Args:
        stepper: At the start of one image.
        words: T ids without START and END.

    Returns:
        Log-probabilities (T + 1, V) of what follows START and each word, and for each word the
        map (T, L) with which it was predicted.
    """
    steps = [stepper.step(np.array([[word]])) for word in (Vocabulary.START, *words)]
    log_probs = np.stack([log_probs[0, 0] for log_probs, _ in steps])
    return log_probs, np.stack([maps[0, 0] for _, maps in steps])[:-1]
