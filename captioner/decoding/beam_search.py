"""Beam search over a batch of photos: tensors throughout, no Python loop over beams.

At every step the 2K best continuations of a photo's K live beams are taken. Those among the best K
that end the sentence join the photo's pool of finished sentences; the best K that go on stay live.
A photo is done when nothing live can still enter the n best of its pool (an exact bound, also
under a length penalty), and then leaves the batch.

With diverse groups (Vijayakumar et al. 2016) each photo has G such searches of K / G beams. In the
choice of words, a word loses ``diversity`` for every beam of an earlier group that goes on with it
at the same place; sums and scores stay the model's own.

Required words make C + 1 banks of K beams, by how many of them a sentence has (grid beam search,
Hokamp and Liu 2017, with the banks of Post and Vilar 2018): a sentence competes within its bank
only, and may end in the last one only.

Shapes: B photos still searched, S = B·G searches, R live beams of a search, K beams, V vocabulary,
T words so far, M chosen continuations of a search.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.decoding.beams import Beams, Results
from captioner.decoding.constraints import check_vocabulary, constrain, missing_words
from captioner.decoding.options import DecodingOptions
from captioner.decoding.stepper import Decoders, Hypothesis, Memories, Stepper
from captioner.tokenizer import Vocabulary


@torch.no_grad()
def beam_search(
    decoder: Decoders, memory: Memories, options: DecodingOptions | None = None
) -> list[list[Hypothesis]]:
    """Search for the best sentences of every photo.

    Args:
        decoder: In ``eval()``; several decode together.
        memory: Of the B photos; one per decoder if there are several.
        options: How to search.

    Returns:
        For each photo its best sentences, best first: at most ``options.candidates``, at least
        one. Where fewer ended within ``max_length``, the best unfinished ones follow with
        ``finished=False``. Of diverse groups the best of each come first, then the second best;
        a sentence that several groups found comes once.

    Raises:
        ConfigError: The options do not fit the vocabulary.
    """
    options = options or DecodingOptions()
    groups, width = options.groups, options.width
    # A group need not be done while its sentences, if among the returned ones, can get better.
    needed = options.candidates if groups == 1 else width
    stepper = Stepper(decoder, memory, groups)  # one beam per search until there is a word
    device = stepper.device
    searches = stepper.photos * groups
    live = Beams.blank(searches, 1, 0.0, device)
    pool = Beams.blank(searches, width, -torch.inf, device)
    photos = torch.arange(stepper.photos, device=device)
    results = Results(stepper.photos, options)
    words = torch.full((searches, 1), Vocabulary.START, device=device)
    can_stick = False
    for length in range(options.max_length + 1):
        log_probs, maps = stepper.step(words.reshape(len(photos), -1))
        if length == 0:
            can_stick = check_vocabulary(options, log_probs.shape[-1])
        beams = words.shape[1]
        log_probs = log_probs.view(-1, beams, log_probs.shape[-1])  # (S, R, V)
        log_probs = constrain(live.words, log_probs, options)
        totals = live.totals[..., None] + log_probs
        chosen = _choose(totals, live.words, options)
        parents = chosen.places // totals.shape[-1]  # (S, M)
        words = chosen.places % totals.shape[-1]
        after = live.take(parents).extended(
            chosen.scores if options.groups == 1 else totals.flatten(1).gather(1, chosen.places),
            words,
            log_probs.flatten(1).gather(1, chosen.places),
            results.maps.add(maps).view(-1, beams).gather(1, parents),
        )
        scores = after.totals / options.divisor(length + 1)
        ended = replace(after, totals=scores.masked_fill(~chosen.finished, -torch.inf))
        pool = pool.joined(ended)
        pool = pool.take(pool.totals.topk(width, 1).indices)
        if length == options.max_length:
            break
        before = live
        after.totals = after.totals.masked_fill(words == Vocabulary.END, -torch.inf)
        live = after.take(chosen.live)  # (S, R')
        parents = parents.gather(1, chosen.live)
        words = live.words[..., -1]
        if can_stick:
            results.rescue(photos, before, live)
        # A photo is done when all its searches are; log P can only fall, and is divided by most.
        bound = live.totals.amax(1) / options.largest_divisor(length + 1)
        done = (pool.totals[:, needed - 1] >= bound).view(-1, groups).all(1)  # (B,)
        if groups > 1:  # two may have found the same sentence: what is half done is no substitute
            live.totals = live.totals.masked_fill(
                done.repeat_interleave(groups)[:, None], -torch.inf
            )
        count = int(done.sum())
        if count == len(photos):
            break
        if groups > 1:  # the rows of a photo's searches lie side by side
            offsets = beams * (torch.arange(len(parents), device=device) % groups)
            parents = parents + offsets[:, None]
        stepper.reorder(parents.view(len(photos), -1))
        if count * 4 >= len(photos):  # leaving costs a copy of the memory: go in groups
            results.collect(photos[done], pool.photos(done, groups), live.photos(done, groups))
            stay = (~done).nonzero().squeeze(1)
            stepper.keep(stay)
            photos = photos[stay]
            live, pool = live.photos(stay, groups), pool.photos(stay, groups)
            words = live.words[..., -1]
    results.collect(photos, pool, live)
    return results.sentences


class _Choice(NamedTuple):
    """The M continuations of each search that are chosen, best first in each bank.

    Attributes:
        scores: (S, M) what they were chosen by.
        places: (S, M) which of the R·V continuations they are.
        finished: (S, M) whether the sentence ends there and is good enough for the pool.
        live: (S, R') which of the M go on.
    """

    scores: Tensor
    places: Tensor
    finished: Tensor
    live: Tensor


def _choose(totals: Tensor, words: Tensor, options: DecodingOptions) -> _Choice:
    """The best continuations of each search: sums (S, R, V) of sentences so far (S, R, T)."""
    banks = _banks(words, totals, options) if options.required else None
    if options.groups == 1:
        return _best(totals, banks, options)
    groups, vocabulary = options.groups, totals.shape[-1]
    shape = (-1, groups, *totals.shape[1:])
    uses = totals.new_zeros(len(totals) // groups, 1, vocabulary)  # (B, 1, V) by earlier groups
    each = []
    for group in range(groups):
        scores = totals.view(shape)[:, group] - options.diversity * uses
        part = None if banks is None else banks.view(shape)[:, group]
        choice = _best(scores, part, options)
        each.append(choice)
        next_words = (choice.places % vocabulary).gather(1, choice.live)
        alive = choice.scores.gather(1, choice.live) > -torch.inf
        uses[:, 0].scatter_add_(1, next_words, alive.to(uses.dtype))
    return _Choice(*(torch.stack(field, 1).flatten(0, 1) for field in zip(*each, strict=True)))


def _best(scores: Tensor, banks: Tensor | None, options: DecodingOptions) -> _Choice:
    """The 2K best of all R·V continuations, in each bank if there are banks (S, R, V)."""
    vocabulary = scores.shape[-1]
    flat = scores.flatten(1)  # (S, R·V)
    if banks is None:
        return _best_of_bank(flat, options.width, vocabulary)
    each = []
    for bank in range(len(set(options.required)) + 1):
        others = banks.flatten(1) != bank
        choice = _best_of_bank(flat.masked_fill(others, -torch.inf), options.width, vocabulary)
        each.append(choice._replace(live=choice.live + bank * choice.places.shape[1]))
    return _Choice(*(torch.cat(field, 1) for field in zip(*each, strict=True)))


def _best_of_bank(flat: Tensor, width: int, vocabulary: int) -> _Choice:
    """The 2K best continuations (S, R·V); at most K of them end, so K can go on."""
    best, index = flat.topk(min(2 * width, flat.shape[1]), 1)
    ends = index % vocabulary == Vocabulary.END
    # Only an end among the best K is one that a K-wide search would have chosen.
    finished = ends & (torch.arange(ends.shape[1], device=ends.device) < width)
    live = best.masked_fill(ends, -torch.inf).topk(min(width, ends.shape[1]), 1).indices
    return _Choice(best, index, finished, live)


def _banks(words: Tensor, totals: Tensor, options: DecodingOptions) -> Tensor:
    """How many required words each continuation has: (S, R, V)."""
    required = sorted(set(options.required))
    missing = missing_words(words, options)  # (S, R, C)
    banks = (len(required) - missing.sum(-1))[..., None].expand(totals.shape).clone()
    banks[..., required] += missing
    return banks
