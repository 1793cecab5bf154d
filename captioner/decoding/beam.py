"""Beam search over a batch of photos: tensors throughout, no Python loop over beams.

At every step the 2K best continuations of a photo's K live beams are taken. Those among the best K
that end the sentence join the photo's pool of finished sentences; the best K that go on stay live.
A photo is done when nothing live can still enter the n best of its pool (an exact bound, also
under a length penalty), and then leaves the batch.

Shapes: B photos still searched, K beams, V vocabulary, T words so far, L locations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.decoding.greedy import SPECIALS
from captioner.decoding.stepper import Hypothesis, Stepper
from captioner.models.attention import Memory
from captioner.models.decoder import Decoder
from captioner.text import Vocabulary


@dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """How to search.

    Attributes:
        beam: K, beams per photo.
        num_captions: How many sentences to return per photo, at most K.
        max_length: Most words of a sentence.
        min_length: Fewest words of a sentence.
        length_penalty: α of the score log P / ((5 + n) / 6)^α over n tokens with END
            (Wu et al. 2016, Eq. 14); 0 ranks by plain probability, larger values favour
            longer sentences.
        banned: Ids that are never produced.
    """

    beam: int = 3
    num_captions: int = 1
    max_length: int = 24
    min_length: int = 1
    length_penalty: float = 0.0
    banned: Sequence[int] = SPECIALS

    def divisor(self, tokens: int) -> float:
        """The length penalty of a sentence of so many tokens."""
        return float(((5 + tokens) / 6) ** self.length_penalty)


@dataclass
class _Beams:
    """Sentences of B photos, K each; -inf marks an empty place.

    Attributes:
        totals: (B, K) summed log-probabilities, or scores in the pool.
        words: (B, K, T) ids.
        log_probs: (B, K, T).
        maps: (B, K, T, L).
    """

    totals: Tensor
    words: Tensor
    log_probs: Tensor
    maps: Tensor

    def take(self, index: Tensor) -> _Beams:
        """Choose sentences of each photo: index (B, K')."""
        rows = torch.arange(index.shape[0], device=index.device)[:, None]
        return _Beams(*(getattr(self, name)[rows, index] for name in _FIELDS))

    def photos(self, index: Tensor) -> _Beams:
        """Choose photos: index (B',)."""
        return _Beams(*(getattr(self, name)[index] for name in _FIELDS))

    def extended(self, totals: Tensor, words: Tensor, log_probs: Tensor, maps: Tensor) -> _Beams:
        """Every sentence with one more word: (B, K) each, maps (B, K, L)."""
        return _Beams(
            totals,
            torch.cat((self.words, words[..., None]), -1),
            torch.cat((self.log_probs, log_probs[..., None]), -1),
            torch.cat((self.maps, maps[:, :, None]), 2),
        )

    def joined(self, other: _Beams) -> _Beams:
        """Both sets of sentences; the shorter ones of self are padded: (B, K + K')."""
        extra = other.words.shape[-1] - self.words.shape[-1]
        return _Beams(
            torch.cat((self.totals, other.totals), 1),
            torch.cat((F.pad(self.words, (0, extra)), other.words), 1),
            torch.cat((F.pad(self.log_probs, (0, extra)), other.log_probs), 1),
            torch.cat((F.pad(self.maps, (0, 0, 0, extra)), other.maps), 1),
        )


_FIELDS = ("totals", "words", "log_probs", "maps")


def _blank(batch: int, beams: int, locations: int, total: float, device: torch.device) -> _Beams:
    """Sentences without a word."""
    return _Beams(
        torch.full((batch, beams), total, device=device),
        torch.zeros(batch, beams, 0, dtype=torch.long, device=device),
        torch.zeros(batch, beams, 0, device=device),
        torch.zeros(batch, beams, 0, locations, device=device),
    )


@torch.no_grad()
def beam_search(
    decoder: Decoder, memory: Memory, options: BeamOptions | None = None
) -> list[list[Hypothesis]]:
    """Search for the best sentences of every photo.

    Args:
        decoder: In ``eval()``.
        memory: Of the B photos.
        options: How to search.

    Returns:
        For each photo its best sentences, best first: at most ``num_captions``, at least one. Where
        fewer ended within ``max_length``, the best unfinished ones follow with ``finished=False``.
    """
    options = options or BeamOptions()
    options = replace(options, num_captions=min(options.num_captions, options.beam))
    batch, locations = memory.values.shape[0], memory.values.shape[1]
    width, device = options.beam, memory.values.device
    stepper = Stepper(decoder, memory, 1, options.banned)  # one beam until there is a word
    live = _blank(batch, 1, locations, 0.0, device)
    pool = _blank(batch, width, locations, -torch.inf, device)
    photos = torch.arange(batch, device=device)
    results: list[list[Hypothesis]] = [[] for _ in range(batch)]
    words = torch.full((batch, 1), Vocabulary.START, device=device)
    for length in range(options.max_length + 1):
        log_probs, maps = stepper.step(words)  # (B, K, V), (B, K, L)
        if length < options.min_length:
            log_probs[..., Vocabulary.END] = -torch.inf
        chosen = _best_continuations(live.totals, log_probs, width)
        ends = chosen.words == Vocabulary.END
        after = live.take(chosen.parents).extended(
            chosen.totals,
            chosen.words,
            chosen.log_probs,
            _gather_maps(maps, chosen.parents),
        )
        # Only an end among the best K is one that a K-wide search would have chosen.
        places = torch.arange(ends.shape[1], device=device)
        finished = ends & (places < width)
        scores = after.totals / options.divisor(length + 1)
        after.totals = torch.where(finished, scores, -torch.inf)
        pool = pool.joined(after)
        pool = pool.take(pool.totals.topk(width, 1).indices)
        if length == options.max_length:
            break
        after.totals = chosen.totals.masked_fill(ends, -torch.inf)
        best = after.totals.topk(min(width, ends.shape[1]), 1).indices  # (B, K)
        live = after.take(best)
        parents = chosen.parents.gather(1, best)
        words = live.words[..., -1]
        done = _is_done(live, pool, length + 1, options)  # (B,)
        count = int(done.sum())
        if count == len(photos):
            break
        stepper.reorder(parents)
        if count * 4 >= len(photos):  # leaving costs a copy of the memory: go in groups
            _collect(results, photos[done], pool.photos(done), live.photos(done), options)
            stay = (~done).nonzero().squeeze(1)
            stepper.keep(stay)
            photos, words = photos[stay], words[stay]
            live, pool = live.photos(stay), pool.photos(stay)
    _collect(results, photos, pool, live, options)
    return results


@dataclass
class _Continuations:
    """The best 2K continuations of each photo, best first: (B, 2K) each."""

    totals: Tensor
    words: Tensor
    log_probs: Tensor
    parents: Tensor


def _best_continuations(totals: Tensor, log_probs: Tensor, width: int) -> _Continuations:
    """The 2K best of all K·V continuations; at most K of them end, so K can go on."""
    vocabulary = log_probs.shape[2]
    flat = (totals[..., None] + log_probs).flatten(1)  # (B, K·V)
    best, index = flat.topk(min(2 * width, flat.shape[1]), 1)
    parents, words = index // vocabulary, index % vocabulary
    return _Continuations(best, words, log_probs.flatten(1).gather(1, index), parents)


def _gather_maps(maps: Tensor, parents: Tensor) -> Tensor:
    """Map of each continuation's parent: (B, K, L) -> (B, 2K, L)."""
    return maps.gather(1, parents[..., None].expand(-1, -1, maps.shape[-1]))


def _is_done(live: _Beams, pool: _Beams, length: int, options: BeamOptions) -> Tensor:
    """Whether no live beam of a photo can still enter the n best of its pool: (B,) bool."""
    tokens = options.max_length + 1 if options.length_penalty > 0 else length + 1
    bound = live.totals.amax(1) / options.divisor(tokens)  # log P can only fall
    worst = pool.totals[:, options.num_captions - 1]
    return worst >= bound


def _collect(
    results: list[list[Hypothesis]],
    photos: Tensor,
    pool: _Beams,
    live: _Beams,
    options: BeamOptions,
) -> None:
    """Write the n best sentences of the photos that are done into ``results``."""
    count = options.num_captions
    unfinished = replace(live, totals=live.totals / options.divisor(live.words.shape[-1]))
    for beams, finished in ((pool, True), (unfinished, False)):
        scores, words = beams.totals.tolist(), beams.words.tolist()
        log_probs, maps = beams.log_probs.tolist(), beams.maps.float().cpu()
        for place, photo in enumerate(photos.tolist()):
            for k, score in enumerate(scores[place]):
                if score == -torch.inf or len(results[photo]) == count:
                    break
                row = words[place][k]
                length = row.index(Vocabulary.END) if finished else len(row)
                if any(row[:length] == other.words for other in results[photo]):
                    continue  # cut at max_length, but found with its END as well
                results[photo].append(
                    Hypothesis(
                        words=row[:length],
                        log_probs=log_probs[place][k][: length + finished],
                        score=score,
                        finished=finished,
                        attention=maps[place, k, :length].clone(),
                    )
                )
