"""BLEU (Papineni et al. 2002), as the official coco-caption evaluation computes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
import numpy.typing as npt

from captioner.evaluation.ngrams import Words, check_captions, count_ngrams

# The smoothing of coco-caption: 0 of 0 n-grams counts as (nearly) 0, not as an error.
_TINY = 1e-15
_SMALL = 1e-9

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BleuScore:
    """BLEU-1 to BLEU-n of a set of captions, on the scale 0 to 1.

    Attributes:
        scores: the corpus scores, ``scores[n - 1]`` is BLEU-n. They are computed from the counts
            of the whole set and are not the means of the scores per image.
        per_image: (images, max_order) scores of the single captions; unreliable for n > 1, as one
            missing order makes them 0.
    """

    scores: tuple[float, ...]
    per_image: Array


def bleu(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    max_order: int = 4,
) -> BleuScore:
    """Scores tokenized candidates by their n-gram precision against all references.

    A candidate's n-gram counts at most as often as in the reference that has it most often. The
    brevity penalty compares with the reference closest in length, the shorter one of two.

    Args:
        candidates: one list of words per image; an empty one scores 0.
        references: for every image, one or more lists of words.
        max_order: the longest n-grams.

    Raises:
        DataError: if an image has no reference, or the numbers of images differ.
    """
    check_captions(candidates, references)
    images = len(candidates)
    correct = np.zeros((images, max_order))
    lengths = np.array([len(candidate) for candidate in candidates], dtype=np.float64)
    closest = np.zeros(images)
    for i, (candidate, captions) in enumerate(zip(candidates, references, strict=True)):
        closest[i] = min((abs(len(c) - len(candidate)), len(c)) for c in captions)[1]
        counted = [count_ngrams(caption, max_order) for caption in captions]
        for n, counts in enumerate(count_ngrams(candidate, max_order)):
            most: dict[tuple[str, ...], int] = reduce(or_, (c[n] for c in counted))
            correct[i, n] = sum(
                min(count, most[ngram]) for ngram, count in counts.items() if ngram in most
            )
    possible = np.maximum(lengths[:, None] - np.arange(max_order), 0)

    corpus = _combine(
        correct.sum(0, keepdims=True),
        possible.sum(0, keepdims=True),
        lengths.sum(keepdims=True),
        closest.sum(keepdims=True),
    )
    return BleuScore(
        scores=tuple(float(score) for score in corpus[0]),
        per_image=_combine(correct, possible, lengths, closest),
    )


def _combine(correct: Array, possible: Array, length: Array, reference: Array) -> Array:
    """Geometric means of the precisions of orders 1 to n, times the brevity penalty (per row)."""
    precisions = (correct + _TINY) / (possible + _SMALL)
    orders = np.arange(1, correct.shape[1] + 1)
    means = np.cumprod(precisions, axis=1) ** (1 / orders)
    ratio = (length + _TINY) / (reference + _SMALL)
    penalty = np.exp(np.minimum(0, 1 - 1 / ratio))
    return means * penalty[:, None]
