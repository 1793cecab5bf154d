"""The additive score v·tanh(k + q), with a backward pass that does the least work.

It is the decoder's main cost: B·C·L·A tanh a step. Plain autograd would write the sum, the tanh
and each of their gradients to fresh memory; here one buffer holds them all in turn (measured by
``scripts/bench/decoder_step.py``).

Shapes: B photos, C rows per photo, L locations, A attention size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
        scores: Tensor = _AdditiveScore.apply(query, keys, weight)
        return scores


class _AdditiveScore(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        activation = (keys[:, None] + query[:, :, None]).tanh_()  # (B, C, L, A)
        ctx.save_for_backward(activation, weight)
        return activation @ weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (activation, weight), (gradient,) = ctx.saved_tensors, gradients
        size = weight.shape[0]
        weight_gradient = gradient.reshape(-1) @ activation.view(-1, size)
        # tanh' = 1 - tanh²; v enters after the sums, where the tensors are L or C times smaller.
        slope = activation.square().neg_().add_(1).mul_(gradient.unsqueeze(-1))
        return slope.sum(2) * weight, slope.sum(1) * weight, weight_gradient
