"""Sampling: words drawn at random by their probability.

Every photo has a random stream of its own, drawn on the CPU, and every word takes one number of
it: the same photo gets the same sentences in any batch, at any place of it and on any device (up
to the rounding of the probabilities themselves).

Shapes: B photos, N sentences per photo, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.decoding.options import DecodingOptions
from captioner.decoding.rows import follow_rows
from captioner.decoding.stepper import Decoders, Hypothesis, Memories


def photo_key(content: bytes) -> int:
    """A number that stands for a photo: the same for the same content."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


@torch.no_grad()
def sample(
    decoder: Decoders, memory: Memories, options: DecodingOptions, keys: Sequence[int]
) -> list[list[Hypothesis]]:
    """Draw sentences of every photo.

    Args:
        decoder: In ``eval()``; several decode together.
        memory: Of the B photos; one per decoder if there are several.
        options: How to draw.
        keys: One number per photo, its random stream together with ``options.seed``.

    Returns:
        For each photo ``options.candidates`` sentences as they were drawn; the same one may occur
        twice. Their ``log_probs`` are the model's, without temperature and truncation.
    """
    rows = options.candidates
    draws = torch.stack([_draws(key, rows, options) for key in keys])  # (B, N, T)

    def pick(log_probs: Tensor, time: int, photos: Tensor) -> Tensor:
        words = draw(truncate(log_probs.cpu(), options), draws[photos.cpu(), :, time])
        return words.to(log_probs.device)

    return follow_rows(decoder, memory, options, rows, pick)


def _draws(key: int, rows: int, options: DecodingOptions) -> Tensor:
    """Numbers from 0 to 1, one per word of each sentence of a photo: (N, T)."""
    seed = photo_key(f"{options.seed} {key}".encode())
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.rand(rows, options.max_length + 1, dtype=torch.float64, generator=generator)


def truncate(log_probs: Tensor, options: DecodingOptions) -> Tensor:
    """Weights to draw by: temperature, then the top k, then the top p; (B, N, V) -> the same."""
    log_probs = log_probs.double()
    relative = (log_probs - log_probs.amax(-1, keepdim=True)) / options.temperature
    weights = relative.exp_().nan_to_num_(0.0)  # not a number: nothing is allowed
    if not options.top_k and options.top_p == 1:
        return weights
    ordered, index = weights.sort(dim=-1, descending=True, stable=True)
    if options.top_k:
        ordered[..., options.top_k :] = 0
    total = ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered  # the likeliest word always stays: none is before it
    ordered[before >= options.top_p * total] = 0
    return torch.zeros_like(weights).scatter_(-1, index, ordered)


def draw(weights: Tensor, numbers: Tensor) -> Tensor:
    """Draw by the inverse of the cumulative distribution.

    Args:
        weights: (B, N, V), at least 0; need not sum to 1.
        numbers: (B, N), at least 0 and below 1.

    Returns:
        (B, N) ids, none of them of weight 0 unless all are.
    """
    cumulative = weights.cumsum(-1)
    places = numbers[..., None] * cumulative[..., -1:]
    words = torch.searchsorted(cumulative, places, right=True).squeeze(-1)
    last = (
        weights.shape[-1] - 1 - (weights.flip(-1) > 0).long().argmax(-1)
    )  # rounding: not beyond it
    return words.minimum(last)
