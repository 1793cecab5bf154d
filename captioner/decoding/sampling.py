"""Sampling and greedy decoding: each row picks one word at a time until all rows have ended.

The two differ only in how a row picks. An image whose rows have all ended leaves the batch.

Each image has a random stream of its own, and each word takes one number of it. So an image gets
the same sentences in any batch, at any place of it and on any device (up to the rounding of the
probabilities themselves).

Shapes: B images, B' of them still decoded, N rows per image, T words so far, V vocabulary,
L locations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from captioner.backends.base import Stepper
from captioner.decoding.constraints import check_vocabulary, constrain
from captioner.decoding.hypothesis import Hypothesis, StepHistory
from captioner.decoding.options import DecodingOptions
from captioner.errors import ConfigError
from captioner.tokenizer import Vocabulary

_ENDS = (Vocabulary.END, Vocabulary.PAD)
DRAW_BLOCK = 64
"""Words whose weights are summed together before a draw."""


def greedy_search(stepper: Stepper, options: DecodingOptions | None = None) -> list[Hypothesis]:
    """Take the likeliest word at every step.

    Args:
        stepper: At the start of B images.
        options: Lengths and forbidden words.

    Returns:
        One hypothesis per image.

    Raises:
        ConfigError: Words are required, which needs beam search.
    """
    options = options or DecodingOptions()
    if options.required:
        raise ConfigError("required words need beam search")
    found = _decode_rows(stepper, options, 1, lambda log_probs, *_: log_probs.argmax(-1))
    return [sentence for (sentence,) in found]


def sample(
    stepper: Stepper, options: DecodingOptions, keys: Sequence[int]
) -> list[list[Hypothesis]]:
    """Draw sentences for every image.

    Args:
        stepper: At the start of B images.
        options: How to draw.
        keys: One number per image; with `options.seed` it selects the image's random stream.

    Returns:
        For each image `options.candidates` sentences in the order drawn; one may occur twice.
        Their `log_probs` are the model's, without temperature and truncation.
    """
    numbers = random_numbers(keys, options)

    def pick(log_probs: np.ndarray, time: int, images: np.ndarray) -> np.ndarray:
        return draw(truncate(log_probs, options), numbers[images, :, time])

    return _decode_rows(stepper, options, options.candidates, pick)


def image_key(content: bytes) -> int:
    """Return a number that stands for an image: the same for the same content."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def random_numbers(keys: Sequence[int], options: DecodingOptions) -> np.ndarray:
    """Return numbers in [0, 1), one per word of each sentence of each image: (B, N, T)."""
    shape = (options.candidates, options.max_length + 1)
    numbers = np.empty((len(keys), *shape))
    for image, key in enumerate(keys):
        digest = hashlib.blake2b(f"{options.seed} {key}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        numbers[image] = generator.random(shape)
    return numbers


def truncate(log_probs: np.ndarray, options: DecodingOptions) -> np.ndarray:
    """Turn log-probabilities (B, N, V) into weights to draw by, of the same shape.

    The temperature comes first, then the top k, then the top p.
    """
    peak = log_probs.max(-1, keepdims=True)
    peak[np.isneginf(peak)] = 0  # nothing is allowed: all weights are 0
    weights = np.subtract(log_probs, peak, dtype=np.float64)
    if options.temperature != 1:
        weights /= options.temperature
    np.exp(weights, out=weights)
    if not options.top_k and options.top_p == 1:
        return weights
    ordered = -np.sort(-weights, -1)
    kept = np.full(weights.shape[:-1], min(options.top_k or weights.shape[-1], weights.shape[-1]))
    if options.top_p < 1:
        if options.top_k:
            ordered[..., options.top_k :] = 0
        before = ordered.cumsum(-1) - ordered  # the likeliest word always stays: 0 is before it
        fewest = (before < options.top_p * ordered.sum(-1, keepdims=True)).sum(-1)
        kept = np.minimum(kept, fewest)
    last = np.take_along_axis(ordered, np.maximum(kept, 1)[..., None] - 1, -1)  # smallest kept
    ties = weights == last  # of equal weights the first ids stay
    room = kept[..., None] - (weights > last).sum(-1, keepdims=True)
    weights[(weights < last) | (ties & (ties.cumsum(-1) > room))] = 0
    return weights


def draw(weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Draw by the inverse of the cumulative distribution.

    Args:
        weights: (B, N, V), at least 0; need not sum to 1.
        numbers: (B, N), at least 0 and below 1.

    Returns:
        (B, N) ids, none of them of weight 0 unless all are.
    """
    size = weights.shape[-1]
    starts = np.arange(0, size, DRAW_BLOCK)
    blocks = np.add.reduceat(weights, starts, -1).cumsum(-1)  # (B, N, V / block)
    points = (numbers * blocks[..., -1])[..., None]  # (B, N, 1)
    # Rounding must not lead beyond the last block that weighs anything.
    block = np.minimum((blocks <= points).sum(-1), (blocks < blocks[..., -1:]).sum(-1))[..., None]
    before = np.where(block > 0, np.take_along_axis(blocks, np.maximum(block - 1, 0), -1), 0)
    ids = block * DRAW_BLOCK + np.arange(DRAW_BLOCK)  # (B, N, block)
    inside = np.take_along_axis(weights, np.minimum(ids, size - 1), -1) * (ids < size)
    within = inside.cumsum(-1)
    place = (before + within <= points).sum(-1)
    place = np.minimum(place, (within < within[..., -1:]).sum(-1))
    return np.asarray(block[..., 0] * DRAW_BLOCK + place)


def _decode_rows(
    stepper: Stepper,
    options: DecodingOptions,
    rows: int,
    pick: Callable[[np.ndarray, int, np.ndarray], np.ndarray],
) -> list[list[Hypothesis]]:
    """Write N sentences per image.

    Args:
        stepper: At the start of B images.
        options: Lengths and forbidden words.
        rows: N.
        pick: Returns the next words (B', N), given their constrained log-probabilities (B', N, V),
            the time step, and the indices (B',) of the images.

    Returns:
        For each image its N sentences, in the order of the rows.
    """
    batch = stepper.images
    images = np.arange(batch)  # those that go on
    words = np.full((batch, rows), Vocabulary.START)
    shape = (batch, rows, options.max_length + 1)
    history, places = np.full(shape, Vocabulary.PAD), np.zeros(shape, np.int64)
    scores = np.zeros(shape)
    done = np.zeros((batch, rows), bool)
    steps = StepHistory(options.alternatives)
    if rows > 1:
        stepper.reorder(np.zeros((batch, rows), np.int64))
    for time in range(options.max_length + 1):
        log_probs, attention = stepper.step(words)
        if time == 0:
            check_vocabulary(options, log_probs.shape[-1])
        places[images, :, time] = steps.add(attention, log_probs)
        constrain(history[images, :, :time], log_probs, options)
        words = pick(log_probs, time, images)  # (B', N)
        score = np.take_along_axis(log_probs, words[..., None], -1)[..., 0]  # (B', N)
        over = done[images] | np.isneginf(score)  # nothing is allowed: cut like by max_length
        words[over] = Vocabulary.PAD
        history[images, :, time] = words
        scores[images, :, time] = score
        done[images] = over | (words == Vocabulary.END)
        (stay,) = (~done[images].all(1)).nonzero()
        if not len(stay):
            break
        if len(stay) * 4 <= len(images) * 3:  # leaving costs a copy of the memory: go in groups
            stepper.keep(stay)
            images, words = images[stay], words[stay]

    return to_hypotheses(Written(history, scores, places, steps), options)


class Written(NamedTuple):
    """What N rows of each of B images have written in T steps.

    Attributes:
        words: (B, N, T) ids; from END or PAD on they mean nothing.
        log_probs: (B, N, T) of them.
        places: (B, N, T) of their rows in `steps`.
        steps: What all steps gave.
    """

    words: np.ndarray
    log_probs: np.ndarray
    places: np.ndarray
    steps: StepHistory


def to_hypotheses(written: Written, options: DecodingOptions) -> list[list[Hypothesis]]:
    """Return for each image its N sentences, in the order of the rows."""

    def hypothesis(image: int, row: int) -> Hypothesis:
        ids = written.words[image, row].tolist()
        found = list(takewhile(lambda word: word not in _ENDS, ids[: options.max_length]))
        finished = len(found) < len(ids) and ids[len(found)] == Vocabulary.END
        log_probs = written.log_probs[image, row, : len(found) + finished].tolist()
        score = sum(log_probs) / options.divisor(len(log_probs))
        taken = written.places[image, row, : len(log_probs)]
        attention = written.steps.maps(taken[: len(found)])
        others = written.steps.alternatives(taken)
        return Hypothesis(found, log_probs, score, finished, attention, others)

    images, rows, _ = written.words.shape
    return [[hypothesis(image, row) for row in range(rows)] for image in range(images)]
