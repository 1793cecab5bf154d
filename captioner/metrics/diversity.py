"""How varied captions are: distinct n-grams, words used, copies from training, rare words.

A model can reach good scores with few safe sentences; these figures show it. Distinct-n and the
vocabulary depend on the number of captions: compare them over the same images only.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from captioner.metrics.coco_categories import word_class
from captioner.metrics.ngrams import Words
from captioner.tokenizer import tokenize
from captioner.utils.formatting import json_value, number, percent

RARE_SHARE = 0.01  # a word is rare if the references of at most this share of the images use it
_AGREED = 2  # references of an image that must use a word for it to be expected there


@dataclass(frozen=True)
class Diversity:
    """The figures of a set of captions; NaN where there is nothing to measure.

    Attributes:
        captions: Number of captions; images without one do not count.
        distinct1, distinct2: Distinct words (word pairs) in all captions over their number (Li et
            al. 2016).
        distinct_captions: Share of captions that no other image got.
        vocabulary: Distinct words in all captions.
        mean_length: Mean number of words per caption.
        lengths: How many captions have how many words.
        repeating: How many captions use a word twice that is no function word ("a girl in a blue
            shirt is wearing a blue shirt"; English).
        copied: Share of captions that are, word for word, a caption of the training set; None
            without a training set.
        rare_expected: Rare words that people agree on, summed over images: at least two references
            of the image use the word (one if it has only one), and the references of at most
            RARE_SHARE of the images do.
        rare_recalled: Share of these words that the image's caption has. An image without a
            caption recalls none.
    """

    captions: int
    distinct1: float
    distinct2: float
    distinct_captions: float
    vocabulary: int
    mean_length: float
    lengths: dict[int, int]
    repeating: int
    copied: float | None
    rare_expected: int
    rare_recalled: float

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON can hold them; NaN becomes None."""
        plain = {key: json_value(value) for key, value in vars(self).items()}
        return plain | {"lengths": {str(length): n for length, n in self.lengths.items()}}

    def rows(self) -> list[tuple[str, str]]:
        """Return names and figures for a table."""
        shortest, longest = min(self.lengths, default=0), max(self.lengths, default=0)
        rows = [
            ("words a caption", f"{number(self.mean_length, '.1f')} ({shortest} to {longest})"),
            ("vocabulary used", f"{self.vocabulary:,} words"),
            ("distinct-1, -2", f"{number(self.distinct1, '.3f')}, {number(self.distinct2, '.3f')}"),
            ("used only once", f"{percent(self.distinct_captions)} of the captions"),
            ("repeat a word", f"{self.repeating:,} captions"),
            ("rare words named", f"{percent(self.rare_recalled)} of {self.rare_expected:,}"),
        ]
        if self.copied is not None:
            rows.append(("copied", f"{percent(self.copied)} are captions of the training set"))
        return rows


def measure_diversity(
    candidates: Sequence[Words | None],
    references: Sequence[Sequence[Words]],
    training: Set[tuple[str, ...]] | None = None,
) -> Diversity:
    """Measure one caption per image.

    Args:
        candidates: Words of each image's caption; None for an image without one.
        references: Words of each image's references.
        training: Captions of the training set (`training_captions`).
    """
    given = [tuple(words) for words in candidates if words is not None]
    words = Counter(word for caption in given for word in caption)
    pairs: set[tuple[str, str]] = set()
    for caption in given:
        pairs.update(itertools.pairwise(caption))
    pair_count = sum(max(len(caption) - 1, 0) for caption in given)
    repeated = Counter(given)
    expected, recalled = _rare_words(candidates, references)
    return Diversity(
        captions=len(given),
        distinct1=_share(len(words), words.total()),
        distinct2=_share(len(pairs), pair_count),
        distinct_captions=_share(sum(n == 1 for n in repeated.values()), len(given)),
        vocabulary=len(words),
        mean_length=_share(words.total(), len(given)),
        lengths=dict(sorted(Counter(map(len, given)).items())),
        repeating=sum(map(_repeats, given)),
        copied=None if training is None else _share(sum(c in training for c in given), len(given)),
        rare_expected=expected,
        rare_recalled=_share(recalled, expected),
    )


def training_captions(captions: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """Return the captions of a training set as words, to find copies of them."""
    return frozenset(tuple(tokenize(caption)) for caption in captions)


def _repeats(words: Words) -> bool:
    """Return whether a caption uses a word twice that is no function word."""
    counts = Counter(word for word in words if word_class(word) != "function")
    return max(counts.values(), default=0) > 1


def _rare_words(
    candidates: Sequence[Words | None], references: Sequence[Sequence[Words]]
) -> tuple[int, int]:
    """Return how many rare words are expected and how many of those the captions have."""
    images_with: Counter[str] = Counter()
    for captions in references:
        images_with.update({word for caption in captions for word in caption})
    limit = max(1, int(RARE_SHARE * len(references)))
    expected = recalled = 0
    for words, captions in zip(candidates, references, strict=True):
        used = Counter(word for caption in captions for word in set(caption))
        needed = min(_AGREED, len(captions))
        rare = {word for word, n in used.items() if n >= needed and images_with[word] <= limit}
        expected += len(rare)
        recalled += len(rare.intersection(words or ()))
    return expected, recalled


def _share(part: float, whole: int) -> float:
    return part / whole if whole else math.nan
