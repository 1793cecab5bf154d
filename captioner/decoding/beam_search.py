"""Beam search over a batch of images: arrays throughout, no Python loop over beams or images.

At every step the 2K best continuations of an image's K live beams are taken. Those among the best K
that end the sentence join the image's pool of finished sentences; the best K that go on stay live.
An image is done when nothing live can still enter the n best of its pool (an exact bound, also
under a length penalty), and then leaves the batch.

With diverse groups (Vijayakumar et al. 2016) each image has G such searches of K / G beams. When
words are chosen, a word loses `diversity` for every beam of an earlier group that goes on with it
at the same place; sums and scores stay the model's own.

Required words make C + 1 banks of K beams, by how many of them a sentence has (grid beam search,
Hokamp and Liu 2017, with the banks of Post and Vilar 2018): a sentence competes only within its
bank, and may end only in the last one.

Shapes: B images still searched, S = B·G searches, R live beams of a search, K beams, V vocabulary,
T words so far, M chosen continuations of a search.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from captioner.backends.base import Stepper
from captioner.decoding.beams import Beams, Results
from captioner.decoding.constraints import check_vocabulary, constrain, missing_words
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import DecodingOptions
from captioner.tokenizer import Vocabulary

_CHUNK = 24  # words of which only the best is compared at first
_SMALL = 1 << 15  # continuations of a batch that are compared one by one


def beam_search(stepper: Stepper, options: DecodingOptions | None = None) -> list[list[Hypothesis]]:
    """Search for the best sentences of every image.

    Args:
        stepper: At the start of B images.
        options: How to search.

    Returns:
        For each image its best sentences, best first: at most `options.candidates`, at least one.
        Where fewer ended within `max_length`, the best unfinished ones follow with
        `finished=False`. Of diverse groups the best of each come first, then the second best; a
        sentence that several groups found comes once.

    Raises:
        ConfigError: The options do not fit the vocabulary.
    """
    options = options or DecodingOptions()
    groups, width = options.groups, options.width
    # A group need not be done while its sentences, if among the returned ones, can get better.
    needed = options.candidates if groups == 1 else width
    images = np.arange(stepper.images)
    results = Results(len(images), options)
    live = Beams.blank(len(images) * groups, 1, 0.0)  # one beam until there is a word
    pool = Beams.blank(len(images) * groups, width, -np.inf)
    words = np.full((len(images), groups), Vocabulary.START)
    if groups > 1:
        stepper.reorder(np.zeros_like(words))
    can_stick = False
    for length in range(options.max_length + 1):
        log_probs, maps = stepper.step(words)
        if length == 0:
            can_stick = check_vocabulary(options, log_probs.shape[-1])
        searches, beams = live.totals.shape
        places = results.history.add(maps, log_probs).reshape(searches, beams)
        log_probs = log_probs.reshape(searches, beams, -1)  # (S, R, V)
        constrain(live.words, log_probs, options)
        chosen = _choose(log_probs, live, options)
        places = np.take_along_axis(places, chosen.parents, 1)
        after = live.take(chosen.parents).extended(chosen.words, chosen.log_probs, places)
        scores = after.totals / options.divisor(length + 1)
        scores[~chosen.finished] = -np.inf
        pool = pool.joined(replace(after, totals=scores))
        pool = pool.take(_largest(pool.totals, width))
        if length == options.max_length:
            break
        before = live
        after.totals[chosen.words == Vocabulary.END] = -np.inf
        live = after.take(chosen.live)  # (S, R')
        if can_stick:
            results.rescue(images, before, live)
        # An image is done when all its searches are; log P can only fall, and is divided by most.
        bound = live.totals.max(1) / options.largest_divisor(length + 1)
        done = (pool.totals[:, needed - 1] >= bound).reshape(-1, groups).all(1)  # (B,)
        if groups > 1:  # two may have found the same sentence: what is half done is no substitute
            live.totals[done.repeat(groups)] = -np.inf
        count = int(done.sum())
        if count == len(images):
            break
        parents = np.take_along_axis(chosen.parents, chosen.live, 1).reshape(len(images), -1)
        if groups > 1:  # the rows of an image's searches lie side by side
            parents += beams * np.arange(groups).repeat(live.totals.shape[1])
        stepper.reorder(parents)
        if count * 4 >= len(images):  # leaving costs a copy of the memory: go in groups
            results.collect(images[done], pool.images(done, groups), live.images(done, groups))
            (stay,) = (~done).nonzero()
            stepper.keep(stay)
            images = images[stay]
            live, pool = live.images(stay, groups), pool.images(stay, groups)
        words = live.words[..., -1].reshape(len(images), -1)
    results.collect(images, pool, live)
    return results.hypotheses()


class _Choice(NamedTuple):
    """The M continuations of each search that are chosen, best first (in each bank).

    Attributes:
        scores: (S, M) what they were chosen by.
        parents: (S, M) which of the R live beams each continues.
        words: (S, M) with which word.
        log_probs: (S, M) of that word.
        finished: (S, M) whether the sentence ends there and is good enough for the pool.
        live: (S, R') which of the M go on.
    """

    scores: np.ndarray
    parents: np.ndarray
    words: np.ndarray
    log_probs: np.ndarray
    finished: np.ndarray
    live: np.ndarray


def _choose(log_probs: np.ndarray, live: Beams, options: DecodingOptions) -> _Choice:
    """Choose the best continuations of each search by log-probabilities (S, R, V)."""
    missing = missing_words(live.words, options) if options.required else None  # (S, R, C)
    if options.groups == 1:
        return _best(log_probs, log_probs, live.totals, missing, options)
    groups = options.groups

    def group_of(array: np.ndarray, group: int) -> np.ndarray:
        return array.reshape(-1, groups, *array.shape[1:])[:, group]

    images, vocabulary = len(log_probs) // groups, log_probs.shape[-1]
    uses = np.zeros((images, vocabulary), log_probs.dtype)  # by beams of earlier groups
    each = []
    for group in range(groups):
        own = group_of(log_probs, group)
        choice = _best(
            own - options.diversity * uses[:, None],
            own,
            group_of(live.totals, group),
            None if missing is None else group_of(missing, group),
            options,
        )
        each.append(choice)
        words, scores = (
            np.take_along_axis(array, choice.live, 1) for array in (choice.words, choice.scores)
        )
        alive = (scores > -np.inf) & (words != Vocabulary.END)
        np.add.at(uses, (np.arange(images)[:, None], words), alive)
    return _Choice(
        *(np.stack(parts, 1).reshape(images * groups, -1) for parts in zip(*each, strict=True))
    )


def _best(
    chosen_by: np.ndarray,
    log_probs: np.ndarray,
    totals: np.ndarray,
    missing: np.ndarray | None,
    options: DecodingOptions,
) -> _Choice:
    """Choose the 2K best continuations of each search, in each bank if words are required.

    Args:
        chosen_by: (S, R, V) log-probabilities to choose by.
        log_probs: (S, R, V) those of the model.
        totals: (S, R) sums so far.
        missing: (S, R, C) which required words each beam lacks; None without required words.
        options: How to search.
    """
    width, rows = options.width, np.arange(len(totals))[:, None]
    if missing is None:
        scores, parents, words = _best_continuations(chosen_by, totals, 2 * width)
        banks = [np.arange(scores.shape[1])[None]]
    else:
        scores, parents, words, bank_of = _bank_candidates(chosen_by, totals, missing, options)
        banks = [
            _largest(np.where(bank_of == bank, scores, -np.inf), 2 * width)
            for bank in range(missing.shape[-1] + 1)
        ]
        scores = np.concatenate(
            [
                np.where(bank_of == bank, scores, -np.inf)[rows, index]
                for bank, index in enumerate(banks)
            ],
            1,
        )
        index = np.concatenate(banks, 1)
        parents, words = parents[rows, index], words[rows, index]
    ends = words == Vocabulary.END
    finished, live, first = ends.copy(), [], 0
    for bank_size in (bank.shape[1] for bank in banks):
        # Only an end among the best K is one that a K-wide search would have chosen.
        finished[:, first + width : first + bank_size] = False
        go_on = ends[:, first : first + bank_size].argsort(1, kind="stable")  # in the same order
        live.append(first + go_on[:, :width])
        first += bank_size
    chosen = log_probs[rows, parents, words]
    chosen[np.isneginf(scores)] = -np.inf  # not of this bank
    return _Choice(scores, parents, words, chosen, finished, np.concatenate(live, 1))


def _bank_candidates(
    log_probs: np.ndarray, totals: np.ndarray, missing: np.ndarray, options: DecodingOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what can be among the 2K best of a bank: each beam's best words and required words.

    Returns:
        Scores, parents, words and banks, each (S, ·). A bank is the number of required words that
        the sentence has.
    """
    searches, beams, size = log_probs.shape
    required = np.array(sorted(set(options.required)))
    has = len(required) - missing.sum(-1)  # (S, R)
    others = log_probs.copy()
    others[..., required] = -np.inf
    best, _, words = _best_continuations(
        others.reshape(-1, 1, size), totals.reshape(-1, 1), 2 * options.width
    )
    shape = (searches, beams, -1)
    scores = np.concatenate(
        (best.reshape(shape), totals[..., None] + log_probs[..., required]), -1
    )  # (S, R, 2K + C)
    asked = np.broadcast_to(required, (searches, beams, len(required)))
    words = np.concatenate((words.reshape(shape), asked), -1)
    banks = np.concatenate(
        (np.broadcast_to(has[..., None], best.reshape(shape).shape), has[..., None] + missing), -1
    )
    parents = np.broadcast_to(np.arange(beams)[:, None], words.shape)
    return tuple(array.reshape(searches, -1) for array in (scores, parents, words, banks))  # type: ignore[return-value]


def _best_continuations(
    log_probs: np.ndarray, totals: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the largest of `totals[..., None] + log_probs` over all beams and words.

    In a large vocabulary the words are first compared in chunks: the best ones are all in the
    chunks with the largest maxima. A chunk has every n-th word, so maxima are taken over whole
    rows of n, and memory is read once.

    Args:
        log_probs: (S, R, V).
        totals: (S, R).
        count: How many to find.

    Returns:
        Scores (S, M) fp64, best first, their beams and their words (S, M).
    """
    searches, beams, size = log_probs.shape
    rows = np.arange(searches)[:, None]
    chunks = size // _CHUNK
    if log_probs.size <= _SMALL or beams * chunks <= count:
        scores = (totals[..., None] + log_probs).reshape(searches, -1)
        best = _largest(scores, count)
        parents, words = np.divmod(best, size)
        return scores[rows, best], parents, words
    full, rest = divmod(size, chunks)  # words per chunk; the first chunks have one more
    body = log_probs[..., : full * chunks].reshape(searches, beams, full, chunks)
    peaks = body.max(2)  # (S, R, chunks)
    np.maximum(peaks[..., :rest], log_probs[..., full * chunks :], out=peaks[..., :rest])
    totaled = (totals[..., None] + peaks).reshape(searches, -1)
    best = totaled.argpartition(totaled.shape[1] - count, 1)[:, -count:]
    parents, chunk = (array[..., None] for array in np.divmod(best, chunks))
    words = chunk + chunks * np.arange(full + (rest > 0))  # (S, count, words of a chunk)
    beyond = words >= size
    words[beyond] = 0
    scores = totals[rows[..., None], parents] + log_probs[rows[..., None], parents, words]
    scores[beyond] = -np.inf
    scores, words = scores.reshape(searches, -1), words.reshape(searches, -1)
    best = _largest(scores, count)
    parents = parents[rows, best // (full + (rest > 0)), 0]
    return scores[rows, best], parents, words[rows, best]


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the largest scores (S, N) of each row, largest first: (S, count)."""
    size = scores.shape[1]
    if count >= size:
        return (-scores).argsort(1, kind="stable")
    best = scores.argpartition(size - count, 1)[:, size - count :]
    best.sort(1)  # equal scores in the order of their places
    order = (-np.take_along_axis(scores, best, 1)).argsort(1, kind="stable")
    return np.take_along_axis(best, order, 1)
