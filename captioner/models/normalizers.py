"""Maps from scores to attention weights: softmax, and two that give exact zeros.

All work over the last axis in fp32. Sparsemax (Martins and Astudillo 2016) is the Euclidean
projection onto the simplex; 1.5-entmax (Peters, Niculae and Martins 2019) lies half way between
it and softmax.

Shapes: L locations; any leading axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captioner.config import Normalizer


def normalize(scores: Tensor, normalizer: Normalizer) -> Tensor:
    """Turn scores (..., L) into weights (..., L) that sum to 1."""
    if normalizer == "softmax":
        return scores.softmax(-1)
    weights: Tensor = (_Sparsemax if normalizer == "sparsemax" else _Entmax15).apply(scores)
    return weights


class _Sparsemax(torch.autograd.Function):
    """p = max(z - τ, 0) with τ such that p sums to 1 (Martins and Astudillo 2016, Algorithm 1)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        scores = scores - scores.amax(-1, keepdim=True)
        ordered = scores.sort(-1, descending=True).values
        ranks = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
        sums = ordered.cumsum(-1)
        support = (1 + ranks * ordered > sums).sum(-1, keepdim=True)
        threshold = (sums.gather(-1, support - 1) - 1) / support
        weights = (scores - threshold).clamp(min=0)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weights,), (gradient,) = ctx.saved_tensors, gradients
        support = (weights > 0).to(gradient)
        mean = (gradient * support).sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
        return support * (gradient - mean)


class _Entmax15(torch.autograd.Function):
    """p = max(z/2 - τ, 0)² with τ such that p sums to 1 (Peters et al. 2019, Algorithm 2)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        scores = (scores - scores.amax(-1, keepdim=True)) / 2
        ordered = scores.sort(-1, descending=True).values
        ranks = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
        mean = ordered.cumsum(-1) / ranks
        mean_square = ordered.square().cumsum(-1) / ranks
        spread = (1 - ranks * (mean_square - mean.square())) / ranks
        thresholds = mean - spread.clamp(min=0).sqrt()
        support = (thresholds <= ordered).sum(-1, keepdim=True)
        weights = (scores - thresholds.gather(-1, support - 1)).clamp(min=0).square()
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weights,), (gradient,) = ctx.saved_tensors, gradients
        root = weights.sqrt()  # the Jacobian is diag(s) - s sᵀ / Σs with s = √p
        mean = (gradient * root).sum(-1, keepdim=True) / root.sum(-1, keepdim=True)
        return root * (gradient - mean)
