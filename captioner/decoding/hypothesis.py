"""What all searches share: the sentence found, its attention maps, and several models as one.

Shapes: B images, K rows per image, T words, V vocabulary, L locations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

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
        alternatives: For each entry of `log_probs`, the likeliest words there, as ids and
            log-probabilities, best first; empty unless `DecodingOptions.alternatives` asks.
    """

    words: list[int]
    log_probs: list[float]
    score: float
    finished: bool
    attention: np.ndarray
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)


class StepHistory:
    """The attention maps, and if wanted the likeliest words, of all steps of a search.

    Sentences hold indices into it, so that no step copies what earlier ones gave.

    Args:
        alternatives: How many of the likeliest words to keep of each step.
    """

    def __init__(self, alternatives: int = 0) -> None:
        self._alternatives = alternatives
        self._maps: list[np.ndarray] = []
        self._likeliest: list[list[tuple[int, float]]] = []  # of each row
        self._count = 0

    def add(self, maps: np.ndarray, log_probs: np.ndarray | None = None) -> np.ndarray:
        """Keep what a step gave.

        Args:
            maps: (B, K, L).
            log_probs: (B, K, V) before any constraint; not needed without alternatives.

        Returns:
            The indices of its rows, (B, K).
        """
        rows = maps.shape[0] * maps.shape[1]
        self._maps.append(maps.reshape(rows, -1))
        if log_probs is not None:
            self._likeliest += likeliest(log_probs.reshape(rows, -1), self._alternatives)
        self._count += rows
        return np.arange(self._count - rows, self._count).reshape(maps.shape[:2])

    def maps(self, indices: np.ndarray) -> np.ndarray:
        """Return a copy of the maps (T, L) at these indices (T,)."""
        if len(self._maps) > 1:
            self._maps = [np.concatenate(self._maps)]
        return self._maps[0][indices]

    def alternatives(self, indices: np.ndarray) -> list[list[tuple[int, float]]]:
        """Return the likeliest words at these indices (T,), if they are kept."""
        return [self._likeliest[index] for index in indices] if self._likeliest else []


def likeliest(log_probs: np.ndarray, count: int) -> list[list[tuple[int, float]]]:
    """Return ids and log-probabilities of the likeliest words of each row (N, V), best first.

    Only words that a sentence can have, and its END. Without a count, there are no rows either.
    """
    if not count:
        return []
    allowed = log_probs.copy()
    allowed[:, [Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK]] = -np.inf
    best = (-allowed).argsort(1, kind="stable")[:, :count]
    values = np.take_along_axis(allowed, best, 1)
    return [
        [(word, value) for word, value in zip(*row, strict=True) if value > -np.inf]
        for row in zip(best.tolist(), values.tolist(), strict=True)
    ]


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
