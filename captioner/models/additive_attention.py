"""The additive score v·tanh(k + q), with the least work forward and backward.

It is the decoder's main cost: B·C·L·A tanh a step. tanh(x) = 2σ(2x) - 1, and PyTorch's logistic
function σ is several times faster on CPUs than its tanh. The sum and σ share one buffer, which is
not kept: to compute it anew in the backward pass costs less than to write it to fresh memory and
read it again, and saves T such buffers. On a CPU a few images at a time are taken, so that the
buffer stays in the cores' caches (measured by `benchmarks/train.py` and
`benchmarks/decoder_step.py`).

Shapes: B images, C rows per image, L locations, A attention size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 2**18  # numbers that stay in a CPU core's cache between two operations on them


def additive_score(query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    """Score every location against every row (Bahdanau et al. 2015; Xu et al. 2015, Eq. 4).

    Args:
        query: (B, C, A).
        keys: (B, L, A), shared by the C rows of an image.
        weight: (A,), the vector v.

    Returns:
        (B, C, L) scores v·tanh(keys + query).
    """
    with torch.autocast(query.device.type, enabled=False):  # fp32 throughout
        # A compiler fuses by itself, and an ONNX graph is made of plain operations.
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            # As a matrix of one column: ONNX Runtime is four times slower with a vector.
            return (torch.tanh(keys[:, None] + query[:, :, None]) @ weight[:, None]).squeeze(-1)
        scores: Tensor = _AdditiveScore.apply(query, keys, weight)
        return scores


def _half(query: Tensor, keys: Tensor) -> Tensor:
    """σ(2 (keys + query)): (B, C, L, A)."""
    return torch.add(2 * query[:, :, None], keys[:, None], alpha=2).sigmoid_()


def _images(query: Tensor, keys: Tensor) -> int:
    """How many images to take at a time."""
    if query.device.type != "cpu":
        return len(query)
    numbers = query[0].numel() * keys.shape[1]  # C·L·A
    return max(1, _BLOCK * torch.get_num_threads() // numbers)


class _AdditiveScore(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(query, keys, weight)
        images, total = _images(query, keys), weight.sum()
        blocks = zip(query.split(images), keys.split(images), strict=True)
        # v·tanh = Σ v (2σ - 1)
        return torch.cat([2 * (_half(q, k) @ weight) - total for q, k in blocks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, keys, weight = ctx.saved_tensors
        (gradient,) = gradients
        images = _images(query, keys)
        by_row, by_location = torch.empty_like(query), torch.empty_like(keys)
        by_weight = torch.zeros_like(weight)
        blocks = (x.split(images) for x in (query, keys, gradient, by_row, by_location))
        for q, k, g, row, location in zip(*blocks, strict=True):
            slope = _half(q, k)
            by_weight.addmv_(slope.view(-1, len(weight)).t(), g.reshape(-1))
            # tanh' = 4 (σ - σ²); 4v enters after the sums, where the tensors are L or C times
            # smaller.
            slope.addcmul_(slope, slope, value=-1).mul_(g.unsqueeze(-1))
            torch.sum(slope, 2, out=row)  # (B, C, A)
            torch.sum(slope, 1, out=location)  # (B, L, A)
        by_weight = 2 * by_weight - gradient.sum()
        return by_row.mul_(4 * weight), by_location.mul_(4 * weight), by_weight
