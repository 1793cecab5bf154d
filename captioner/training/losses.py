"""What training minimises. Every mean is over real tokens or captions; padding never counts.

Shapes: M real tokens, B photos, C captions per photo, T time, L locations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.config import LossConfig
from captioner.models.decoder import TeacherForced


class Losses(NamedTuple):
    """The total, and its parts without their weights, for the log.

    Attributes:
        total: What is differentiated.
        cross_entropy: Per token, with label smoothing, in nats.
        coverage: The doubly stochastic penalty per caption.
        entropy: Of the attention per token, as a share of the uniform map's.
    """

    total: Tensor
    cross_entropy: Tensor
    coverage: Tensor
    entropy: Tensor


def caption_losses(result: TeacherForced, config: LossConfig) -> Losses:
    """Cross-entropy + λ · coverage penalty + weight · max(0, attention entropy - target).

    The entropy is averaged over the words before it is compared: a map of a word that names
    nothing may stay broad while others are sharp. Without a target the maps collapse to one cell.
    """
    cross_entropy = F.cross_entropy(
        result.logits.float(), result.targets, label_smoothing=config.label_smoothing
    )
    with torch.set_grad_enabled(config.coverage > 0):
        coverage = coverage_penalty(result.attention, result.mask, config.coverage_target)
    with torch.set_grad_enabled(config.entropy > 0):
        entropy = attention_entropy(result.attention, result.mask)
    total = cross_entropy
    if config.coverage:
        total = total + config.coverage * coverage
    if config.entropy:
        total = total + config.entropy * F.relu(entropy - config.entropy_target)
    return Losses(total, cross_entropy, coverage, entropy)


def coverage_penalty(attention: Tensor, mask: Tensor, target: float | None = None) -> Tensor:
    """The doubly stochastic penalty Σ_i (τ - Σ_t α_ti)² (Xu et al. 2015, Eq. 14).

    The sum runs over all L locations; the result is its mean over captions that have words.

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
    present = tokens > 0
    return (penalty * present).sum() / present.sum()


def attention_entropy(attention: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy of the maps of real tokens, divided by log L: 1 is uniform, 0 a single cell."""
    entropy = -torch.special.xlogy(attention, attention.clamp(min=1e-12)).sum(-1)  # (B, C, T)
    real = mask.to(attention.dtype)
    return (entropy * real).sum() / real.sum() / math.log(attention.shape[-1])
