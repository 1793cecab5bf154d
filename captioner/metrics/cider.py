"""CIDEr-D (Vedantam et al. 2015): consensus with the references by TF-IDF vectors.

The rarer an n-gram is among the images, the more it counts. The score therefore depends on the set
of images that the document frequencies come from, and scores over different sets cannot be
compared. With a single image every weight is log(1/1) = 0: the score is undefined and reported as
None, not as 0.

All captions are scored at once: words and n-grams become integers, and sorted integer arrays take
the place of dictionaries.

Shapes: T words in all captions together, C captions, N images, G distinct n-grams of one order,
M entries of sparse vectors.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from captioner.metrics.ngrams import Tokens, check_captions, check_references

MAX_ORDER = 4
SIGMA = 6.0  # words: standard deviation of the Gaussian penalty on differences in length
SCALE = 10.0  # the authors' factor, and the scale of figures in papers: 10 is perfect

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CiderScore:
    """CIDEr-D of a set of captions, from 0 to 10 as in the official tool.

    Attributes:
        score: Mean over the images; None where undefined.
        per_image: (N,) scores of the single captions; NaN where undefined.
    """

    score: float | None
    per_image: Floats

    @property
    def defined(self) -> bool:
        """Return False if the document frequencies come from one image: all weights are 0 then."""
        return self.score is not None


def cider_d(
    candidates: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    document_frequency: "DocumentFrequency | None" = None,
) -> CiderScore:
    """Compute CIDEr-D, the score that coco-caption and the COCO leaderboard call CIDEr.

    Unlike plain CIDEr, repeating an n-gram gains nothing (values are clipped), and a length other
    than the reference's is penalised by a Gaussian of SIGMA words.

    Args:
        candidates: One list of words per image; an empty one scores 0. Several candidates of one
            image are given as several images with equal references.
        references: For every image, one or more lists of words.
        document_frequency: Counted beforehand, for instance over a training set; by default it is
            counted over `references`, as in the official evaluation.

    Raises:
        DataError: An image has no reference, or the numbers of images differ.
    """
    check_captions(candidates, references)
    if document_frequency is None:
        document_frequency = DocumentFrequency(references)
    n = len(candidates)
    if document_frequency.images < 2:
        return CiderScore(score=None, per_image=np.full(n, np.nan))

    # Candidate i is caption i; the references follow. Every caption is compared with the candidate
    # of its image; the comparisons of candidates with themselves are not used.
    captions = [*candidates, *chain.from_iterable(references)]
    counts = _lengths(references)
    candidate_of = np.concatenate([np.arange(n), np.repeat(np.arange(n), counts)])
    similarity = np.zeros(len(captions))
    for vectors in document_frequency.vectors(captions):
        similarity += vectors.similarity(candidate_of) / MAX_ORDER
    # The official tool takes the number of word pairs for the length: 0 for one word and for none.
    lengths = np.maximum(_lengths(captions) - 1, 0)
    similarity *= np.exp(-((lengths - lengths[candidate_of]) ** 2) / (2 * SIGMA**2))
    per_image = SCALE * np.bincount(candidate_of[n:], similarity[n:], minlength=n) / counts
    return CiderScore(score=float(per_image.mean()), per_image=per_image)


class DocumentFrequency:
    """In how many images each n-gram occurs, and its weight.

    Self-critical training builds it once from the references of the training set and scores any
    number of candidates with it.

    Attributes:
        images: N, the number of images counted.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        """Count the n-grams of 1 to 4 words in the references.

        Args:
            references: For every image, one or more tokenized captions.

        Raises:
            DataError: An image has no reference (the message names its index).
        """
        check_references(references)
        self.images = len(references)
        self._word_ids: dict[Hashable, int] = {}
        self._keys: list[Ints] = []  # per order: the sorted keys (G,) of the n-grams
        self._weights: list[Floats] = []  # per order: log(N / images that have the n-gram) (G,)

        captions = list(chain.from_iterable(references))
        image_of = np.repeat(np.arange(self.images), _lengths(references))
        words, caption_of = _flatten(captions, self._word_ids)
        for caption, ngrams in _ngrams(words, caption_of, self._learn):
            size = len(self._keys[-1])
            in_images = np.unique(image_of[caption] * size + ngrams) % max(size, 1)
            count = np.bincount(in_images, minlength=size)
            self._weights.append(np.log(max(self.images, 1)) - np.log(np.maximum(count, 1)))

    def _learn(self, order: int, keys: Ints) -> Ints:
        """Number the n-grams of a new order by the rank of their keys, and keep the keys."""
        known, ngrams = np.unique(keys, return_inverse=True)
        self._keys.append(known)
        return ngrams.reshape(-1)

    def _look_up(self, order: int, keys: Ints) -> Ints:
        """Return the numbers of known n-grams; distinct unknown ones get numbers from G on."""
        known = self._keys[order - 1]
        ngrams = np.searchsorted(known, keys)
        unknown = np.ones(len(keys), dtype=bool)
        inside = ngrams < len(known)
        unknown[inside] = known[ngrams[inside]] != keys[inside]
        ngrams[unknown] = len(known) + np.unique(keys[unknown], return_inverse=True)[1].reshape(-1)
        return ngrams

    def vectors(self, captions: Sequence[Tokens]) -> Iterator["TfIdfVectors"]:
        """Yield the weighted n-grams of all captions, one order after the other."""
        words, caption_of = _flatten(captions, dict(self._word_ids))
        unseen = np.log(max(self.images, 1))  # an unknown n-gram counts as seen in one image
        orders = _ngrams(words, caption_of, self._look_up)
        for weights, (caption, ngrams) in zip(self._weights, orders, strict=True):
            size = int(ngrams.max(initial=-1)) + 1
            entries, count = np.unique(caption * size + ngrams, return_counts=True)
            caption, ngrams = np.divmod(entries, max(size, 1))
            weight = np.full(len(entries), unseen)
            known = ngrams < len(weights)
            weight[known] = weights[ngrams[known]]
            value = count * weight
            norm = np.sqrt(np.bincount(caption, value**2, minlength=len(captions)))
            yield TfIdfVectors(caption, ngrams, value, norm)


@dataclass(frozen=True, eq=False)
class TfIdfVectors:
    """The sparse vectors of C captions for one n-gram order, as M entries sorted by caption.

    Attributes:
        caption: (M,) the caption of each entry.
        ngram: (M,) its n-gram, rising within a caption.
        value: (M,) its term frequency times its weight.
        norm: (C,) the Euclidean lengths of the vectors.
    """

    caption: Ints
    ngram: Ints
    value: Floats
    norm: Floats

    def similarity(self, candidate_of: Ints) -> Floats:
        """Return the clipped cosine of every caption with its candidate.

        A candidate's value counts at most as much as the caption's own.

        Args:
            candidate_of: (C,) for every caption, the caption it is compared with.

        Returns:
            (C,) similarities, 0 where one of the two vectors is zero.
        """
        size = int(self.ngram.max(initial=-1)) + 1
        entries = self.caption * size + self.ngram  # sorted
        wanted = candidate_of[self.caption] * size + self.ngram
        place = np.minimum(np.searchsorted(entries, wanted), len(entries) - 1)
        shared = entries[place] == wanted
        own, other = self.value[shared], self.value[place[shared]]
        products = own * np.minimum(own, other)
        dot = np.bincount(self.caption[shared], products, minlength=len(self.norm))
        norms = self.norm * self.norm[candidate_of]
        return np.divide(dot, norms, out=np.zeros(len(norms)), where=norms > 0)


def _flatten(captions: Sequence[Tokens], word_ids: dict[Hashable, int]) -> tuple[Ints, Ints]:
    """Return the numbers of all words (T,) and the caption that each belongs to (T,).

    New words are added to `word_ids`.
    """
    numbers = [word_ids.setdefault(word, len(word_ids)) for c in captions for word in c]
    caption_of = np.repeat(np.arange(len(captions)), _lengths(captions))
    return np.array(numbers, dtype=np.int64), caption_of


def _lengths(sequences: Sequence[Sequence[object]]) -> Ints:
    return np.array([len(sequence) for sequence in sequences], dtype=np.int64)


def _ngrams(
    words: Ints, caption_of: Ints, number: Callable[[int, Ints], Ints]
) -> Iterator[tuple[Ints, Ints]]:
    """Yield the caption and the n-gram that begins at each position, for the orders 1 to 4.

    The key of an n-gram combines the number of its first n - 1 words with its last word. Keys
    across two captions are computed too, to keep positions aligned, but not yielded.

    Args:
        words: (T,) word numbers of all captions.
        caption_of: (T,) their captions.
        number: Gives the n-grams of an order numbers, from their keys.
    """
    ngrams = np.zeros(len(words) + 1, dtype=np.int64)
    for order in range(1, MAX_ORDER + 1):
        last = words[order - 1 :]
        ngrams = number(order, ngrams[: len(last)] << 32 | last)
        first = caption_of[: len(last)]
        inside = first == caption_of[order - 1 :]
        yield first[inside], ngrams[inside]
