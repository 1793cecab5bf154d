"""The losses of training. Every mean is over real tokens or captions; padding never counts.

A global batch may be split over several processes and into parts whose gradients are accumulated:
every sum is divided by the number of tokens or captions of the global batch (`BatchCounts`), so
that the result does not depend on how the batch was split.

Shapes: M real tokens, B images, C captions per image, T time, L locations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.config import LossConfig
from captioner.models.attention import map_entropy
from captioner.models.decoder import IGNORED, DecoderOutput
from captioner.training.distributed import sum_over_ranks


class BatchCounts(NamedTuple):
    """Counts of the global batch, per process, that sums are divided by.

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
        """Count a batch that is a global batch by itself, from its lengths (B, C) in targets."""
        return cls(lengths.sum(), (lengths > 0).sum())


class Losses(NamedTuple):
    """The loss to differentiate, and its parts for the log.

    Attributes:
        total: The weighted sum.
        parts: By name, without their weights; each the mean over the batch.
    """

    total: Tensor
    parts: dict[str, Tensor]


def caption_losses(
    result: DecoderOutput,
    config: LossConfig,
    counts: BatchCounts | None = None,
    wanted: Tensor | None = None,
) -> Losses:
    """Compute the cross-entropy and the losses of the attention.

    Args:
        result: Of a teacher-forced pass.
        config: The weights.
        counts: Of the global batch; None if this is all of it.
        wanted: (M, V) word probabilities of teachers, which take `config.distillation` of the place
            of the references' words.

    Returns:
        Losses with the parts `cross_entropy` (per token, with label smoothing, in nats),
        `imitation` if there are teachers, and those of `attention_losses`.
    """
    counts = counts or BatchCounts.of(result.mask.sum(-1))
    words = cross_entropy = word_loss(result, config, counts)
    parts = {"cross_entropy": cross_entropy.detach()}
    if wanted is not None:
        imitation = imitation_loss(result, wanted, counts)
        words = (1 - config.distillation) * cross_entropy + config.distillation * imitation
        parts["imitation"] = imitation.detach()
    attention = attention_losses(result.attention, result.mask, config, counts)
    return Losses(words + attention.total, {**parts, **attention.parts})


def word_loss(result: DecoderOutput, config: LossConfig, counts: BatchCounts) -> Tensor:
    """Return the cross-entropy of the true words with label smoothing, per token, in nats."""
    total = F.cross_entropy(
        result.logits.float(),
        result.targets,
        label_smoothing=config.label_smoothing,
        reduction="sum",
    )
    return total / counts.tokens


def imitation_loss(result: DecoderOutput, wanted: Tensor, counts: BatchCounts) -> Tensor:
    """Return the cross-entropy of probabilities that are wanted (M, V), per token, in nats."""
    per_word = -(wanted * result.logits.float().log_softmax(-1)).sum(-1)  # (M,)
    return (per_word * (result.targets != IGNORED)).sum() / counts.tokens


def attention_losses(
    attention: Tensor, mask: Tensor, config: LossConfig, counts: BatchCounts
) -> Losses:
    """Compute λ · coverage penalty + weight · max(0, attention entropy - target).

    The entropy is averaged over the words before it is compared with the target: the map of a word
    that names nothing may stay broad while others are sharp. Without a target the maps collapse to
    single cells.

    Args:
        attention: (B, C, T, L).
        mask: (B, C, T), true at real tokens.
        config: The weights.
        counts: Of the global batch.

    Returns:
        Losses with the parts `coverage`, per caption, and `attention_entropy`, per token and as a
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
    """Return the doubly stochastic penalty Σ_i (τ - Σ_t α_ti)² (Xu et al. 2015, Eq. 14).

    The sum runs over all L locations and all captions.

    Args:
        attention: (B, C, T, L).
        mask: (B, C, T), true at real tokens; α at padding is left out of Σ_t.
        target: τ. The paper's 1 can be reached only if T = L; None takes τ = T/L of each caption,
            so that the penalty is zero for attention that covers all locations equally.
    """
    real = mask.to(attention.dtype)
    received = (attention * real[..., None]).sum(2)  # (B, C, L)
    tokens = real.sum(2)  # (B, C)
    tau = tokens[..., None] / attention.shape[-1] if target is None else target
    penalty = (tau - received).square().sum(-1)  # (B, C)
    return (penalty * (tokens > 0)).sum()


def attention_entropy(attention: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of the entropies of attention maps, each as a share of a uniform map's.

    Args:
        attention: (..., T, L) weights.
        mask: (..., T), true at real tokens.
    """
    return (map_entropy(attention) * mask).sum()
