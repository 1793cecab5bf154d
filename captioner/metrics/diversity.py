"""How varied captions are: distinct n-grams, words used, copies from training, rare words.

A model can reach good scores with few safe sentences. These figures show it. Distinct-n and the
vocabulary grow and shrink with the number of captions: compare them over the same photos only.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from captioner.metrics.ngrams import Words
from captioner.tokenizer import tokenize

RARE_SHARE = 0.01  # a word is rare if the references of at most this share of the photos use it
_AGREED = 2  # references of a photo that must use a word for it to be expected there


@dataclass(frozen=True)
class Diversity:
    """What was found; NaN where there is nothing to measure.

    Attributes:
        captions: How many captions there are, without photos that were left out.
        distinct1, distinct2: Distinct words (word pairs) in all captions over their number (Li et
            al. 2016).
        distinct_captions: Share of captions that no other photo got.
        vocabulary: Distinct words in all captions.
        mean_length: Mean number of words a caption.
        lengths: How many captions have how many words.
        copied: Share of captions that are, word for word, a caption of the training set; None if
            that was not given.
        rare_expected: Rare words that people agree on, summed over photos: at least two references
            of the photo use the word (one if it has no more), and the references of at most
            RARE_SHARE of the photos do.
        rare_recalled: The share of these that the photo's caption has. A photo that was left out
            recalls none.
    """

    captions: int
    distinct1: float
    distinct2: float
    distinct_captions: float
    vocabulary: int
    mean_length: float
    lengths: dict[int, int]
    copied: float | None
    rare_expected: int
    rare_recalled: float

    def to_dict(self) -> dict[str, Any]:
        """The attributes as JSON can hold them; NaN becomes None."""
        plain = {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in vars(self).items()
        }
        return plain | {"lengths": {str(length): n for length, n in self.lengths.items()}}

    def rows(self) -> list[tuple[str, str]]:
        """Names and figures for a table."""
        shortest, longest = min(self.lengths, default=0), max(self.lengths, default=0)
        rows = [
            ("words a caption", f"{_figure(self.mean_length, 1)} ({shortest} to {longest})"),
            ("vocabulary used", f"{self.vocabulary:,} words"),
            ("distinct-1, -2", f"{_figure(self.distinct1, 3)}, {_figure(self.distinct2, 3)}"),
            ("used only once", f"{_percent(self.distinct_captions)} of the captions"),
            ("rare words named", f"{_percent(self.rare_recalled)} of {self.rare_expected:,}"),
        ]
        if self.copied is not None:
            rows.append(("copied", f"{_percent(self.copied)} are captions of the training set"))
        return rows


def measure_diversity(
    candidates: Sequence[Words | None],
    references: Sequence[Sequence[Words]],
    training: Set[tuple[str, ...]] | None = None,
) -> Diversity:
    """Measure the captions of a set of photos, one each.

    Args:
        candidates: Words of each photo's caption; None for a photo that was left out.
        references: Words of each photo's references.
        training: Captions of the training set (:func:`training_captions`).
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
        copied=None if training is None else _share(sum(c in training for c in given), len(given)),
        rare_expected=expected,
        rare_recalled=_share(recalled, expected),
    )


def training_captions(captions: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """Captions of a training set in the form in which copies are found: their words."""
    return frozenset(tuple(tokenize(caption)) for caption in captions)


def _rare_words(
    candidates: Sequence[Words | None], references: Sequence[Sequence[Words]]
) -> tuple[int, int]:
    """How many rare words are expected and how many of those the captions have."""
    photos_with: Counter[str] = Counter()
    for captions in references:
        photos_with.update({word for caption in captions for word in caption})
    limit = max(1, int(RARE_SHARE * len(references)))
    expected = recalled = 0
    for words, captions in zip(candidates, references, strict=True):
        used = Counter(word for caption in captions for word in set(caption))
        needed = min(_AGREED, len(captions))
        rare = {word for word, n in used.items() if n >= needed and photos_with[word] <= limit}
        expected += len(rare)
        recalled += len(rare.intersection(words or ()))
    return expected, recalled


def _share(part: float, whole: int) -> float:
    return part / whole if whole else math.nan


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _figure(value: float, decimals: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"
