"""What beam search holds: sentences as arrays, and how they become results.

Shapes: B images, S searches (B images times G groups), K sentences of a search, T words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from captioner.decoding.constraints import missing_words
from captioner.decoding.hypothesis import Hypothesis, StepHistory
from captioner.decoding.options import DecodingOptions
from captioner.tokenizer import Vocabulary


@dataclass
class Beams:
    """Sentences of S searches, K each; a total of -inf marks an empty place.

    Attributes:
        totals: (S, K) fp64 summed log-probabilities; scores in the pool.
        words: (S, K, T) ids.
        log_probs: (S, K, T).
        places: (S, K, T) of the steps' rows in `StepHistory`.
    """

    totals: np.ndarray
    words: np.ndarray
    log_probs: np.ndarray
    places: np.ndarray

    @classmethod
    def blank(cls, searches: int, beams: int, total: float) -> Beams:
        """Return sentences without a word."""
        ids = np.zeros((searches, beams, 0), np.int64)
        return cls(np.full((searches, beams), total), ids, ids.astype(np.float32), ids)

    def take(self, index: np.ndarray) -> Beams:
        """Choose sentences of each search: index (S, K')."""
        rows = np.arange(len(index))[:, None]
        return Beams(*(getattr(self, field.name)[rows, index] for field in fields(self)))

    def images(self, index: np.ndarray, groups: int) -> Beams:
        """Choose images with all their groups: indices (B',) or a mask (B,)."""

        def choose(array: np.ndarray) -> np.ndarray:
            grouped = array.reshape(-1, groups, *array.shape[1:])[index]
            return grouped.reshape(-1, *array.shape[1:])

        return Beams(*(choose(getattr(self, field.name)) for field in fields(self)))

    def extended(self, words: np.ndarray, log_probs: np.ndarray, places: np.ndarray) -> Beams:
        """Return every sentence with one more word: (S, K) each."""

        def append(array: np.ndarray, last: np.ndarray) -> np.ndarray:
            return np.concatenate((array, last[..., None]), -1)

        return Beams(
            self.totals + log_probs,
            append(self.words, words),
            append(self.log_probs, log_probs),
            append(self.places, places),
        )

    def joined(self, other: Beams) -> Beams:
        """Return both sets of sentences; the shorter ones of self are padded: (S, K + K')."""
        extra = other.words.shape[-1] - self.words.shape[-1]

        def join(name: str) -> np.ndarray:
            padded = np.pad(getattr(self, name), ((0, 0), (0, 0), (0, extra)))
            return np.concatenate((padded, getattr(other, name)), 1)

        totals = np.concatenate((self.totals, other.totals), 1)
        return Beams(totals, join("words"), join("log_probs"), join("places"))


class Results:
    """The sentences of images that are done.

    Attributes:
        history: What every step so far gave.
    """

    def __init__(self, images: int, options: DecodingOptions):
        self.history = StepHistory(options.alternatives)
        self._options = options
        # Their `attention` holds places in `history` until all are collected.
        self._found: list[list[Hypothesis]] = [[] for _ in range(images)]
        self._rescued: list[list[Hypothesis]] = [[] for _ in range(images)]

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Return for each image its sentences, best first, with what their steps gave."""

        def complete(sentence: Hypothesis) -> Hypothesis:
            places = sentence.attention  # one for each log-probability
            return replace(
                sentence,
                attention=self.history.maps(places[: len(sentence.words)]),
                alternatives=self.history.alternatives(places),
            )

        return [list(map(complete, found)) for found in self._found]

    def collect(self, images: np.ndarray, pool: Beams, live: Beams) -> None:
        """Note the n best sentences of images: finished ones, then those that go on."""
        for beams, finished in ((pool, True), (self._scored(live), False)):
            self._add(self._found, images.tolist(), beams, finished)
        for image in images.tolist():
            for sentence in self._rescued[image]:
                self._append(self._found[image], sentence)

    def rescue(self, images: np.ndarray, before: Beams, live: Beams) -> None:
        """Keep the sentences of searches in which no sentence has an allowed next word."""
        stuck = np.isneginf(live.totals).all(1, keepdims=True)  # (S, 1)
        if stuck.any():
            scored = self._scored(before)
            scored.totals = np.where(stuck, scored.totals, -np.inf)
            self._add(self._rescued, images.tolist(), scored, finished=False)

    def _scored(self, live: Beams) -> Beams:
        """Return unfinished sentences with their scores: those with the most required words."""
        totals = live.totals / self._options.divisor(max(1, live.words.shape[-1]))
        if self._options.required:
            missing = missing_words(live.words, self._options).sum(-1)  # (S, K)
            missing[np.isneginf(totals)] = len(self._options.required)
            totals[missing > missing.min(1, keepdims=True)] = -np.inf
        return replace(live, totals=totals)

    def _add(
        self, sentences: list[list[Hypothesis]], images: list[int], beams: Beams, finished: bool
    ) -> None:
        """Note the sentences of images, best first, until each has as many as wanted."""
        wanted = self._options.candidates
        for place, image in enumerate(images):
            for search, k in self._order(beams.totals, place):
                if len(sentences[image]) == wanted:
                    break
                words = beams.words[search, k].tolist()
                length = words.index(Vocabulary.END) if finished else len(words)
                sentence = Hypothesis(
                    words=words[:length],
                    log_probs=beams.log_probs[search, k, : length + finished].tolist(),
                    score=float(beams.totals[search, k]),
                    finished=finished,
                    attention=beams.places[search, k, : length + finished],
                )
                self._append(sentences[image], sentence)

    def _order(self, scores: np.ndarray, place: int) -> Iterator[tuple[int, int]]:
        """Yield an image's sentences: the best of each group, then the second best, ..."""
        groups = self._options.groups
        ranked = []
        for search in range(place * groups, (place + 1) * groups):
            row = scores[search].tolist()
            best = sorted(range(len(row)), key=lambda k: -row[k])
            ranked += [(rank, -row[k], search, k) for rank, k in enumerate(best)]
        for _, score, search, k in sorted(ranked):
            if score < np.inf:
                yield search, k

    def _append(self, sentences: list[Hypothesis], sentence: Hypothesis) -> None:
        """Add a sentence if there is room, and if it is new.

        A sentence cut at `max_length` may have been found with its END as well; groups may find
        the same one.
        """
        known = any(sentence.words == other.words for other in sentences)
        if not known and len(sentences) < self._options.candidates:
            sentences.append(sentence)
