"""The additive score v·tanh(k + q), with the least work forward and backward.

It is the decoder's main cost: B·C·L·A tanh a step. tanh(x) = 2σ(2x) - 1, and PyTorch's logistic
function σ is several times faster on CPUs than its tanh. One buffer holds the sum, then σ, and in
the backward pass one more holds the slope, where plain autograd would write every intermediate
result to fresh memory (measured by ``scripts/bench/decoder_step.py``).

Shapes: B photos, C rows per photo, L locations, A attention size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 2**19  # numbers that stay in a CPU core's cache between two operations on them


def additive_score(query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    """Score every location against every row (Bahdanau et al. 2015; Xu et al. 2015, Eq. 4).

    Args:
        query: (B, C, A).
        keys: (B, L, A), shared by the C rows of a photo.
        weight: (A,), the vector v.

    Returns:
        (B, C, L) scores v·tanh(keys + query).
    """
    with torch.autocast(query.device.type, enabled=False):  # fp32 throughout
        if torch.compiler.is_compiling():  # fuses by itself; export wants plain operations
            return torch.tanh(keys[:, None] + query[:, :, None]) @ weight
        scores: Tensor
        if torch.is_grad_enabled() or query.device.type != "cpu":
            scores = _AdditiveScore.apply(query, keys, weight)
            return scores
        # Nothing is kept for a backward pass: a few photos at a time stay in the cache.
        photos = max(1, _BLOCK // (query[0].numel() * keys.shape[1]))
        blocks = zip(query.split(photos), keys.split(photos), strict=True)
        return torch.cat([_score(q, k, weight)[0] for q, k in blocks])


def _score(query: Tensor, keys: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The scores (B, C, L), and σ(2 (keys + query)): (B, C, L, A)."""
    half = torch.add(2 * query[:, :, None], keys[:, None], alpha=2).sigmoid_()
    return 2 * (half @ weight) - weight.sum(), half  # v·tanh = Σ v (2σ - 1)


class _AdditiveScore(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        scores, half = _score(query, keys, weight)
        ctx.save_for_backward(half, weight)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (half, weight), (gradient,) = ctx.saved_tensors, gradients
        size = weight.shape[0]
        weight_gradient = 2 * (gradient.reshape(-1) @ half.view(-1, size)) - gradient.sum()
        # tanh' = 4 (σ - σ²); 4v enters after the sums, where the tensors are L or C times smaller.
        slope = torch.addcmul(half, half, half, value=-1).mul_(gradient.unsqueeze(-1))
        by_row = slope.sum(2)  # (B, C, A)
        by_location = slope.sum(1) if slope.shape[1] > 1 else slope.squeeze(1)  # (B, L, A)
        weight = 4 * weight
        return by_row.mul_(weight), by_location.mul_(weight), weight_gradient
