"""ROUGE-L (Lin 2004): the longest common subsequence, as coco-caption computes it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captioner.metrics.ngrams import Words, check_captions

BETA = 1.2  # the weight of recall against precision in the official evaluation


@dataclass(frozen=True, eq=False)
class RougeScore:
    """ROUGE-L of a set of captions, from 0 to 1.

    Attributes:
        score: Mean over the images.
        per_image: (images,) scores of the single captions.
    """

    score: float
    per_image: npt.NDArray[np.float64]


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> RougeScore:
    """Score tokenized candidates by the longest common subsequence with their references.

    Precision and recall are each the best over the references, which need not be the same one (as
    in coco-caption); the score is their F measure with beta 1.2.

    Args:
        candidates: One list of words per image; an empty one scores 0.
        references: For every image, one or more lists of words.

    Raises:
        DataError: An image has no reference, or the numbers of images differ.
    """
    check_captions(candidates, references)
    pairs = zip(candidates, references, strict=True)
    per_image = np.array([_f_measure(candidate, captions) for candidate, captions in pairs])
    return RougeScore(score=float(per_image.mean()), per_image=per_image)


def _f_measure(candidate: Words, references: Sequence[Words]) -> float:
    common = [longest_common_subsequence(candidate, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(c / len(r) for c, r in zip(common, references, strict=True) if r)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(a: Words, b: Words) -> int:
    """Return the length of the longest common subsequence of two captions.

    One row of the dynamic-programming table is kept as the bits of an integer (Hyyrö 2004): bit i
    is 0 where the table grows by one at word i of `a`. Each word of `b` updates all bits at once.
    """
    positions: dict[str, int] = {}
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    ones = (1 << len(a)) - 1
    row = ones
    for word in b:
        matches = row & positions.get(word, 0)
        row = (row + matches | row - matches) & ones
    return len(a) - row.bit_count()
