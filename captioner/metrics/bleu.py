"""BLEU (Papineni et al. 2002), as the official coco-caption evaluation computes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

import numpy as np
import numpy.typing as npt

from captioner.metrics.ngrams import NGram, Words, check_captions, count_ngrams

# The smoothing of coco-caption: 0 of 0 n-grams gives nearly 0 instead of an error.
_TINY = 1e-15
_SMALL = 1e-9

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BleuScore:
    """BLEU-1 to BLEU-n of a set of captions, from 0 to 1.

    Attributes:
        scores: Corpus scores; `scores[n - 1]` is BLEU-n. They follow from the summed counts of
            the whole set and are not means of the scores per image.
        per_image: (images, max_order) scores of the single captions; unreliable for n > 1, where
            one missing order makes a score 0.
        counts: (images, 2 * max_order + 2) whole numbers from which `bleu_of_counts` computes the
            scores: the correct n-grams of each order, the possible ones, the words of the
            candidate and those of the reference it is compared with. Rows can be summed, so that
            any subset of the images is scored without the captions.
    """

    scores: tuple[float, ...]
    per_image: Array
    counts: Array = field(repr=False)


def bleu(
    candidates: Sequence[Words | None],
    references: Sequence[Sequence[Words]],
    max_order: int = 4,
) -> BleuScore:
    """Score tokenized candidates by their n-gram precision against all references.

    An n-gram of a candidate counts at most as often as in the reference that has it most often.
    The brevity penalty uses the reference closest in length; of two equally close, the shorter.

    Args:
        candidates: One list of words per image; an empty one scores 0. None is an image without
            a caption: it counts as the longest reference with every n-gram wrong, and as no words
            for the brevity penalty. So leaving an image out never scores better than any caption
            up to that length, whereas an empty caption could raise BLEU: it costs no precision,
            and captions that are too long elsewhere make up for its missing words.
        references: For every image, one or more lists of words.
        max_order: Length of the longest n-grams.

    Raises:
        DataError: An image has no reference, or the numbers of images differ.
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
    """Return one row of `BleuScore.counts`."""
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
    """Return BLEU-1 to BLEU-n of each row of counts.

    BLEU-n is the geometric mean of the precisions of orders 1 to n, times the brevity penalty.

    Args:
        counts: (rows, 2 * max_order + 2) as in `BleuScore.counts`, or sums of such rows.

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
