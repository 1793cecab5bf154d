"""What beam search holds: sentences as tensors, and how they become results.

Shapes: S searches (B photos times G groups), K sentences of a search, T words, L locations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.decoding.constraints import missing_words
from captioner.decoding.options import DecodingOptions
from captioner.decoding.stepper import Hypothesis
from captioner.tokenizer import Vocabulary


@dataclass
class Beams:
    """Sentences of S searches, K each; -inf marks an empty place.

    Attributes:
        totals: (S, K) summed log-probabilities, or scores in the pool.
        words: (S, K, T) ids.
        log_probs: (S, K, T).
        maps: (S, K, T) places in :class:`Maps`.
    """

    totals: Tensor
    words: Tensor
    log_probs: Tensor
    maps: Tensor

    @classmethod
    def blank(cls, searches: int, beams: int, total: float, device: torch.device) -> Beams:
        """Sentences without a word."""
        return cls(
            torch.full((searches, beams), total, device=device),
            torch.zeros(searches, beams, 0, dtype=torch.long, device=device),
            torch.zeros(searches, beams, 0, device=device),
            torch.zeros(searches, beams, 0, dtype=torch.long, device=device),
        )

    def take(self, index: Tensor) -> Beams:
        """Choose sentences of each search: index (S, K')."""
        rows = torch.arange(index.shape[0], device=index.device)[:, None]
        return Beams(*(getattr(self, name)[rows, index] for name in _FIELDS))

    def photos(self, index: Tensor, groups: int) -> Beams:
        """Choose photos with all their groups: index (B',)."""
        fields = (getattr(self, name).unflatten(0, (-1, groups)) for name in _FIELDS)
        return Beams(*(field[index].flatten(0, 1) for field in fields))

    def extended(self, totals: Tensor, words: Tensor, log_probs: Tensor, maps: Tensor) -> Beams:
        """Every sentence with one more word: (S, K) each."""
        return Beams(
            totals,
            torch.cat((self.words, words[..., None]), -1),
            torch.cat((self.log_probs, log_probs[..., None]), -1),
            torch.cat((self.maps, maps[..., None]), -1),
        )

    def joined(self, other: Beams) -> Beams:
        """Both sets of sentences; the shorter ones of self are padded: (S, K + K')."""
        extra = other.words.shape[-1] - self.words.shape[-1]
        return Beams(
            torch.cat((self.totals, other.totals), 1),
            torch.cat((F.pad(self.words, (0, extra)), other.words), 1),
            torch.cat((F.pad(self.log_probs, (0, extra)), other.log_probs), 1),
            torch.cat((F.pad(self.maps, (0, extra)), other.maps), 1),
        )


_FIELDS = ("totals", "words", "log_probs", "maps")


class Maps:
    """The attention maps of all steps; sentences hold places in it, so no step copies a map."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []
        self._count = 0

    def add(self, maps: Tensor) -> Tensor:
        """Keep the maps of a step (B, K, L); the places (B, K) where they are kept."""
        places = torch.arange(self._count, self._count + maps[..., 0].numel(), device=maps.device)
        self._steps.append(maps.flatten(0, 1))
        self._count += len(places)
        return places.view(maps.shape[:2])

    def at(self, places: Tensor) -> Tensor:
        """The maps (..., L) at places (...), in fp32 on the CPU."""
        self._steps = [torch.cat(self._steps)]
        return self._steps[0][places].float().cpu()


class Results:
    """The sentences of photos that are done.

    Attributes:
        sentences: For each photo, best first.
        maps: The maps of every step so far.
    """

    def __init__(self, photos: int, options: DecodingOptions):
        self.sentences: list[list[Hypothesis]] = [[] for _ in range(photos)]
        self.maps = Maps()
        self.options = options
        self._rescued: list[list[Hypothesis]] = [[] for _ in range(photos)]

    def collect(self, photos: Tensor, pool: Beams, live: Beams) -> None:
        """Write down the n best sentences of photos: finished ones, then those that go on."""
        for beams, finished in ((pool, True), (self._scored(live), False)):
            self._add(self.sentences, photos.tolist(), beams, finished)
        for photo in photos.tolist():
            for sentence in self._rescued[photo]:
                self._append(self.sentences[photo], sentence)

    def rescue(self, photos: Tensor, before: Beams, live: Beams) -> None:
        """Keep the sentences of searches in which no sentence has an allowed next word."""
        alive = (live.totals > -torch.inf).any(1, keepdim=True)  # (S, 1)
        scored = self._scored(before)
        stuck = replace(scored, totals=scored.totals.masked_fill(alive, -torch.inf))
        self._add(self._rescued, photos.tolist(), stuck, finished=False)

    def _scored(self, live: Beams) -> Beams:
        """Unfinished sentences with their scores, only those with the most required words."""
        totals = live.totals / self.options.divisor(max(1, live.words.shape[-1]))
        if self.options.required:
            missing = missing_words(live.words, self.options).sum(-1)  # (S, K)
            missing = missing.masked_fill(totals == -torch.inf, len(self.options.required))
            totals = totals.masked_fill(missing > missing.amin(1, keepdim=True), -torch.inf)
        return replace(live, totals=totals)

    def _add(
        self, sentences: list[list[Hypothesis]], photos: list[int], beams: Beams, finished: bool
    ) -> None:
        """Write the sentences of photos, best first, until each has as many as wanted."""
        if all(len(sentences[photo]) == self.options.candidates for photo in photos):
            return
        scores, words = beams.totals.tolist(), beams.words.tolist()
        log_probs, maps = beams.log_probs.tolist(), self.maps.at(beams.maps)
        for place, photo in enumerate(photos):
            for search, k in self._order(scores, place):
                if len(sentences[photo]) == self.options.candidates:
                    break
                row = words[search][k]
                length = row.index(Vocabulary.END) if finished else len(row)
                sentence = Hypothesis(
                    words=row[:length],
                    log_probs=log_probs[search][k][: length + finished],
                    score=scores[search][k],
                    finished=finished,
                    attention=maps[search, k, :length].clone(),
                )
                self._append(sentences[photo], sentence)

    def _order(self, scores: list[list[float]], place: int) -> Iterator[tuple[int, int]]:
        """Places of a photo's sentences: the best of each group, then the second best, ..."""
        groups = self.options.groups
        ranked = []
        for search in range(place * groups, (place + 1) * groups):
            row = scores[search]
            best = sorted(range(len(row)), key=lambda k: -row[k])
            ranked += [(rank, -row[k], search, k) for rank, k in enumerate(best)]
        for _, score, search, k in sorted(ranked):
            if score < torch.inf:
                yield search, k

    def _append(self, sentences: list[Hypothesis], sentence: Hypothesis) -> None:
        """Add a sentence if there is room, and if it is new.

        A sentence cut at ``max_length`` may have been found with its END as well; groups may find
        the same one.
        """
        known = any(sentence.words == other.words for other in sentences)
        if not known and len(sentences) < self.options.candidates:
            sentences.append(sentence)
