"""BLEU (Papineni et al. 2002), as the official coco-caption evaluation computes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

import numpy as np
import numpy.typing as npt

from captioner.metrics.ngrams import NGram, Words, check_captions, count_ngrams

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
        counts: (images, 2 * max_order + 2) whole numbers that the scores follow from
            (:func:`bleu_of_counts`): the correct n-grams of each order, the possible ones, the
            words of the candidate and those of the reference it is compared with. Rows add up, so
            that any set of these images can be scored without the captions.
    """

    scores: tuple[float, ...]
    per_image: Array
    counts: Array = field(repr=False)


def bleu(
    candidates: Sequence[Words | None],
    references: Sequence[Sequence[Words]],
    max_order: int = 4,
) -> BleuScore:
    """Scores tokenized candidates by their n-gram precision against all references.

    A candidate's n-gram counts at most as often as in the reference that has it most often. The
    brevity penalty compares with the reference closest in length, the shorter one of two.

    Args:
        candidates: one list of words per image; an empty one scores 0. None is an image that was
            left out: it counts as the longest reference with every n-gram wrong, and as no words
            for the brevity penalty, so that leaving out is never better than any caption up to
            that length. (An empty one can raise BLEU: it costs no precision, and the brevity
            penalty forgives it where other captions are too long.)
        references: for every image, one or more lists of words.
        max_order: the longest n-grams.

    Raises:
        DataError: if an image has no reference, or the numbers of images differ.
    """
    check_captions(candidates, references)
    counts = np.array(
        [
            _count(candidate, captions, max_order)
            for candidate, captions in zip(candidates, references, strict=True)
        ],
        dtype=np.float64,
    )
    corpus = bleu_of_counts(counts.sum(0, keepdims=True))[0]
    return BleuScore(
        scores=tuple(float(score) for score in corpus),
        per_image=bleu_of_counts(counts),
        counts=counts,
    )


def _count(candidate: Words | None, references: Sequence[Words], max_order: int) -> list[int]:
    """One row of :attr:`BleuScore.counts`."""
    lengths = [len(reference) for reference in references]
    if candidate is None:
        longest = max(lengths)
        possible = [max(longest - n, 0) for n in range(max_order)]
        return [*[0] * max_order, *possible, 0, longest]
    length = len(candidate)
    closest = min((abs(other - length), other) for other in lengths)[1]
    counted = [count_ngrams(reference, max_order) for reference in references]
    correct = []
    for n, counts in enumerate(count_ngrams(candidate, max_order)):
        most: dict[NGram, int] = reduce(or_, (c[n] for c in counted))
        shared = counts.keys() & most.keys()
        correct.append(sum(min(counts[ngram], most[ngram]) for ngram in shared))
    return [*correct, *(max(length - n, 0) for n in range(max_order)), length, closest]


def bleu_of_counts(counts: Array) -> Array:
    """BLEU-1 to BLEU-n of counts, row by row.

    The geometric means of the precisions of orders 1 to n, times the brevity penalty.

    Args:
        counts: (rows, 2 * max_order + 2) as in :attr:`BleuScore.counts`, or sums of such rows.

    Returns:
        (rows, max_order) scores from 0 to 1.
    """
    max_order = counts.shape[1] // 2 - 1
    correct, possible = counts[:, :max_order], counts[:, max_order:-2]
    length, reference = counts[:, -2], counts[:, -1]
    precisions = (correct + _TINY) / (possible + _SMALL)
    means = np.cumprod(precisions, axis=1) ** (1 / np.arange(1, max_order + 1))
    ratio = (length + _TINY) / (reference + _SMALL)
    penalty = np.exp(np.minimum(0, 1 - 1 / ratio))
    scores: Array = means * penalty[:, None]
    return scores
