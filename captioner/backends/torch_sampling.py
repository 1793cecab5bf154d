"""Sampling and greedy decoding on a device: as `captioner.decoding.sampling`, and the same words.

The random numbers are made on the host, by the key of each image, and go to the device once, so an
image gets the same draws as from the search on the host, up to the rounding of the probabilities.

Shapes: B images, N rows per image, T steps, V vocabulary, L locations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioner.backends.torch_rows import Repeated, Rows, to_host
from captioner.decoding.hypothesis import Hypothesis, StepHistory
from captioner.decoding.options import DecodingOptions
from captioner.decoding.sampling import DRAW_BLOCK, Written, random_numbers, to_hypotheses
from captioner.models.attention import Memory
from captioner.models.decoder import Decoder
from captioner.tokenizer import Vocabulary


class Drawn(NamedTuple):
    """Sentences of B images, on the device.

    Attributes:
        words: (B, N, T) ids after START: words, END (unless `max_length` cut the sentence), PAD.
        lengths: (B, N) how many of them are words or END.
    """

    words: Tensor
    lengths: Tensor


class DeviceSampling:
    """Writes N sentences per image, one word of each at a time; see `Rows`.

    Args:
        decoder: In `eval()`.
        memory: Of the largest batch to come.
        options: How to draw; without `sample` the likeliest word is taken.
    """

    def __init__(self, decoder: Decoder, memory: Memory, options: DecodingOptions):
        count = options.candidates if options.sample else 1
        self._options = options
        self.rows = Rows(decoder, memory, count, options)
        self.repeated = Repeated(self._step, self.rows.steps, self.rows.over)
        shape, device = (self.rows.steps, *self.rows.words.shape), memory.values.device
        self._numbers = torch.zeros(shape, dtype=torch.float64, device=device)
        self._done = torch.zeros(shape[1:], dtype=torch.bool, device=device)
        self._words = torch.zeros(shape, dtype=torch.int64, device=device)
        self._scores = torch.zeros(shape, device=device)

    def load(self, memory: Memory, options: DecodingOptions, keys: Sequence[int]) -> None:
        """Start on a batch.

        Args:
            memory: Of at most as many images as the first.
            options: As at first, except for the seed.
            keys: One number per image, which selects its random stream; unused without `sample`.
        """
        self.rows.load(memory)
        self._done.fill_(True)
        self._done[: len(memory.values)] = False
        self._words.fill_(Vocabulary.PAD)
        if self._options.sample:
            numbers = torch.from_numpy(random_numbers(keys, options))  # (B, N, T)
            self._numbers[:, : len(numbers)].copy_(numbers.permute(2, 0, 1))

    def drawn(self, images: int) -> Drawn:
        """Return the sentences of the batch's images, after all steps."""
        words = self._words[:, :images].permute(1, 2, 0).contiguous()  # (B, N, T)
        words[..., -1].masked_fill_(words[..., -1] != Vocabulary.END, Vocabulary.PAD)
        return Drawn(words, (words != Vocabulary.PAD).sum(-1))

    def hypotheses(self, images: int, steps: int) -> list[list[Hypothesis]]:
        """Return the sentences of the batch's images with their maps, fetched at once.

        Args:
            images: Of the batch.
            steps: How many were computed.
        """
        words, scores, maps = to_host(
            [each[:steps, :images] for each in (self._words, self._scores, self.rows.maps)]
        )
        found = StepHistory()
        places = found.add(maps.flatten(0, 1).numpy()).reshape(words.shape)

        def by_image(steps: np.ndarray) -> np.ndarray:  # (T, B, N) -> (B, N, T)
            return steps.transpose(1, 2, 0)

        written = Written(
            by_image(words.numpy()), by_image(scores.numpy()), by_image(places), found
        )
        return to_hypotheses(written, self._options)

    def _step(self) -> None:
        rows = self.rows
        log_probs = rows.predict()
        if self._options.sample:
            numbers = self._numbers.index_select(0, rows.time)[0]  # (B, N)
            words = draw(truncate(log_probs, self._options), numbers)
        else:
            words = log_probs.argmax(-1)
        scores = log_probs.gather(-1, words[..., None])[..., 0]
        over = self._done | scores.isneginf()  # nothing is allowed: cut like by max_length
        words = words.masked_fill(over, Vocabulary.PAD)
        self._words.index_copy_(0, rows.time, words[None])
        self._scores.index_copy_(0, rows.time, scores[None])
        self._done.copy_(over | (words == Vocabulary.END))
        rows.say(words)
        rows.over.copy_(self._done.all())
        rows.time += 1


def truncate(log_probs: Tensor, options: DecodingOptions) -> Tensor:
    """Turn log-probabilities (B, N, V) into fp64 weights to draw by.

    `captioner.decoding.sampling.truncate` for tensors.
    """
    peak = log_probs.amax(-1, keepdim=True)
    peak = peak.masked_fill(peak.isneginf(), 0)  # nothing is allowed: all weights are 0
    weights = log_probs.double() - peak
    if options.temperature != 1:
        weights /= options.temperature
    weights.exp_()
    size = weights.shape[-1]
    if not options.top_k and options.top_p == 1:
        return weights
    most = min(options.top_k or size, size)
    ordered = weights.sort(-1, descending=True).values
    kept = torch.full_like(ordered[..., 0], most, dtype=torch.int64)
    if options.top_p < 1:
        ordered[..., most:] = 0
        before = ordered.cumsum(-1) - ordered
        fewest = (before < options.top_p * ordered.sum(-1, keepdim=True)).sum(-1)
        kept = kept.minimum(fewest)
    last = ordered.gather(-1, kept.clamp(min=1)[..., None] - 1)  # smallest kept
    ties = weights == last  # of equal weights the first ids stay
    room = kept[..., None] - (weights > last).sum(-1, keepdim=True)
    return weights.masked_fill_((weights < last) | (ties & (ties.cumsum(-1) > room)), 0)


def draw(weights: Tensor, numbers: Tensor) -> Tensor:
    """Draw by the inverse of the cumulative distribution: ids (B, N).

    `captioner.decoding.sampling.draw` for tensors, which sums in the same blocks.

    Args:
        weights: (B, N, V) fp64, at least 0; need not sum to 1.
        numbers: (B, N) fp64, at least 0 and below 1.
    """
    size = weights.shape[-1]
    weights = torch.nn.functional.pad(weights, (0, -size % DRAW_BLOCK))
    weights = weights.unflatten(-1, (-1, DRAW_BLOCK))  # (B, N, V / block, block)
    blocks = weights.sum(-1).cumsum(-1)
    points = (numbers * blocks[..., -1])[..., None]  # (B, N, 1)
    # Rounding must not lead beyond the last block that weighs anything.
    block = (blocks <= points).sum(-1).minimum((blocks < blocks[..., -1:]).sum(-1))[..., None]
    before = torch.nn.functional.pad(blocks, (1, 0)).gather(-1, block)
    place = block[..., None].expand(*block.shape, DRAW_BLOCK)
    within = weights.gather(-2, place)[..., 0, :].cumsum(-1)
    found = (before + within <= points).sum(-1).minimum((within < within[..., -1:]).sum(-1))
    return block[..., 0] * DRAW_BLOCK + found
