"""Hard attention: one location per word, learnt by REINFORCE (Xu et al. 2015, Section 4.1).

The locations are drawn, so no gradient flows through the choice. Instead the log-probability of the
chosen locations is raised where the sentence came out better than usual (Eq. 12, with the moving
average baseline and the entropy term that the paper gives there).

Shapes: B photos, C captions per photo, T time, M real tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.config import LossConfig
from captioner.data.dataset import CaptionBatch
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.training.distributed import sum_over_ranks
from captioner.training.losses import BatchCounts, Losses, attention_entropy, caption_losses
from captioner.training.objectives import Objective

_KEEP = 0.9  # of the old baseline, at each batch; the paper's figure


class HardAttention(Objective):
    """Cross-entropy, and REINFORCE for where to look.

    The reward of all locations of a sentence is the mean log-probability of its words (the paper
    takes the sum, which would weigh long sentences more).

    Args:
        model: With ``attention.mode=hard``.
        preprocess: Normalises photos.
        config: Weights; ``exploration`` is the paper's λ_e, λ_r is 1.
        total_steps: Of the training.
    """

    baseline: Tensor

    def __init__(
        self, model: CaptionModel, preprocess: Preprocess, config: LossConfig, total_steps: int
    ):
        super().__init__(model, preprocess, config, total_steps)
        self.register_buffer("baseline", torch.tensor(torch.nan))

    def forward(self, batch: CaptionBatch, counts: BatchCounts, step: int) -> Losses:
        """The losses of one batch; see :class:`Objective`."""
        result = self.teacher_forced(batch, step)
        losses = caption_losses(result, self.config, counts)
        assert result.chosen is not None
        log_probs = result.logits.detach().float().log_softmax(-1)
        log_probs = log_probs.gather(-1, result.targets[:, None]).squeeze(-1)  # (M,)
        per_word = log_probs.new_zeros(result.mask.shape)  # (B, C, T)
        per_word[result.mask] = log_probs
        words = result.mask.sum(-1)  # (B, C)
        reward = per_word.sum(-1) / words.clamp(min=1)
        total, count = sum_over_ranks(torch.stack((reward.sum(), (words > 0).sum())))
        mean = torch.where(count > 0, total / count, self.baseline)  # no caption, no news
        baseline = torch.where(self.baseline.isnan(), mean, self.baseline)
        self.baseline.copy_(_KEEP * baseline + (1 - _KEEP) * mean)

        drawn = result.chosen >= 0  # (M,)
        weights = result.attention[result.mask]  # (M, L)
        picked = weights.gather(-1, result.chosen.clamp(min=0)[:, None]).squeeze(-1)
        better = (reward - baseline)[..., None].expand(result.mask.shape)[result.mask]  # (M,)
        reinforce = -(better * picked.clamp(min=1e-12).log() * drawn).sum() / counts.tokens
        entropy = attention_entropy(result.attention, result.mask) / counts.tokens
        added = reinforce - self.config.exploration * entropy
        parts = {**losses.parts, "word_log_prob": reward.sum() / counts.captions}
        return Losses(losses.total + added, parts)
