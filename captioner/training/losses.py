"""What training minimises. Every mean is over real tokens or captions; padding never counts.

A global batch may be spread over several processes and over several steps that are accumulated:
every sum is divided by the global batch's own number of tokens or captions (`BatchCounts`), so that
it does not matter how the batch was cut.

Shapes: M real tokens, B photos, C captions per photo, T time, L locations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.config import LossConfig
from captioner.models.decoder import DecoderOutput
from captioner.training.distributed import sum_over_ranks


class BatchCounts(NamedTuple):
    """What sums are divided by: the counts of the global batch, per process.

    The mean over W processes of (their sum / (global count / W)) is the mean over the global
    batch.

    Attributes:
        tokens: Targets of the global batch / W.
        captions: Captions of the global batch that have words / W.
    """

    tokens: Tensor
    captions: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> BatchCounts:
        """Of a batch that is alone: (B, C) targets of each caption."""
        return cls(lengths.sum(), (lengths > 0).sum())


class Losses(NamedTuple):
    """The total, and its parts without their weights, for the log.

    Attributes:
        total: What is differentiated.
        parts: By name; each the mean over the batch.
    """

    total: Tensor
    parts: dict[str, Tensor]


def caption_losses(
    result: DecoderOutput, config: LossConfig, counts: BatchCounts | None = None
) -> Losses:
    """Cross-entropy + what is asked of the attention.

    Returns:
        With the parts ``cross_entropy`` (per token, with label smoothing, in nats), and those of
        :func:`attention_losses`.
    """
    counts = counts or BatchCounts.of(result.mask.sum(-1))
    cross_entropy = F.cross_entropy(
        result.logits.float(),
        result.targets,
        label_smoothing=config.label_smoothing,
        reduction="sum",
    )
    cross_entropy = cross_entropy / counts.tokens
    looks = attention_losses(result.attention, result.mask, config, counts)
    parts = {"cross_entropy": cross_entropy.detach(), **looks.parts}
    return Losses(cross_entropy + looks.total, parts)


def attention_losses(
    attention: Tensor, mask: Tensor, config: LossConfig, counts: BatchCounts
) -> Losses:
    """λ · coverage penalty + weight · max(0, attention entropy - target).

    The entropy is averaged over the words before it is compared: a map of a word that names
    nothing may stay broad while others are sharp. Without a target the maps collapse to one cell.

    Args:
        attention: (B, C, T, L).
        mask: (B, C, T), true at real tokens.
        config: The weights.
        counts: Of the global batch.

    Returns:
        With the parts ``coverage``, per caption, and ``attention_entropy``, per token and as a
        share of the uniform map's.
    """
    with torch.set_grad_enabled(config.coverage > 0):
        coverage = coverage_penalty(attention, mask, config.coverage_target) / counts.captions
    with torch.set_grad_enabled(config.entropy > 0):
        entropy = attention_entropy(attention, mask) / counts.tokens
    total = config.coverage * coverage
    if config.entropy:
        tokens = mask.sum() / counts.tokens
        here, count = sum_over_ranks(torch.stack((entropy, tokens)))
        too_broad = here / count > config.entropy_target
        total = total + config.entropy * too_broad * (entropy - config.entropy_target * tokens)
    parts = {"coverage": coverage.detach(), "attention_entropy": entropy.detach()}
    return Losses(total, parts)


def coverage_penalty(attention: Tensor, mask: Tensor, target: float | None = None) -> Tensor:
    """The doubly stochastic penalty Σ_i (τ - Σ_t α_ti)² (Xu et al. 2015, Eq. 14).

    The sum runs over all L locations and all captions.

    Args:
        attention: (B, C, T, L).
        mask: (B, C, T), true at real tokens; α at padding is left out of Σ_t.
        target: τ. The paper's 1 can be met only if T = L; None takes τ = T/L of each caption, so
            that the penalty is zero for attention that covers all places alike.
    """
    real = mask.to(attention.dtype)
    looked = (attention * real[..., None]).sum(2)  # (B, C, L)
    tokens = real.sum(2)  # (B, C)
    tau = tokens[..., None] / attention.shape[-1] if target is None else target
    penalty = (tau - looked).square().sum(-1)  # (B, C)
    return (penalty * (tokens > 0)).sum()


def attention_entropy(attention: Tensor, mask: Tensor) -> Tensor:
    """Summed entropy of the maps of real tokens, over log L: 1 a token is uniform, 0 one cell."""
    entropy = -torch.special.xlogy(attention, attention.clamp(min=1e-12)).sum(-1)  # (B, C, T)
    return (entropy * mask).sum() / math.log(attention.shape[-1])
