"""Objectives: the model together with its loss, as the one module that a training step runs.

DistributedDataParallel wraps it, so all that needs gradients happens in its `forward`. There are
three: cross-entropy and cross-entropy with hard attention, which are here, and self-critical
training (`captioner.training.self_critical`).

Shapes: B images, C captions per image, T time, M tokens of a pass (see `DecoderOutput`),
L locations, S image side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.config import LossConfig
from captioner.data.caption_batch import CaptionBatch
from captioner.image.transforms import Preprocess
from captioner.models.attention import Memory
from captioner.models.caption_model import CaptionModel
from captioner.models.decoder import DecoderOutput
from captioner.training.distillation import Teachers
from captioner.training.distributed import sum_over_ranks
from captioner.training.losses import BatchCounts, Losses, attention_entropy, caption_losses

_BASELINE_DECAY = 0.9  # of the moving average at each batch; the paper's figure


class Objective(nn.Module):
    """Cross-entropy of the reference captions.

    Args:
        model: The model to train.
        preprocess: Normalizes images.
        config: The weights of the loss.
        total_steps: Of the training; scheduled sampling rises to its full rate over them.

    Attributes:
        teachers: Models to imitate, or None.
        static: Run the decoder in its static form, which reads nothing back from the device.
    """

    teachers: Teachers | None = None

    def __init__(
        self, model: CaptionModel, preprocess: Preprocess, config: LossConfig, total_steps: int
    ):
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.config = config
        self.total_steps = total_steps
        self.static = False

    def count(self, batch: CaptionBatch) -> Tensor:
        """Count the tokens and captions of a batch, for `BatchCounts`: (2,)."""
        return torch.stack((batch.lengths.sum(), (batch.lengths > 0).sum()))

    def prepare(self, batch: CaptionBatch, step: int) -> CaptionBatch:
        """Compute what needs no gradient, and bring the batch to one of few shapes.

        Args:
            batch: On the model's device.
            step: Of the training; it seeds sampled sentences.
        """
        return batch.to_bucket()

    def forward(self, batch: CaptionBatch, counts: BatchCounts, step: int | Tensor) -> Losses:
        """Compute the losses of a batch, or of a part of one.

        Args:
            batch: On the model's device; it may be one that `prepare` returned.
            counts: Of the global batch.
            step: Of the training; it seeds sampled sentences and schedules scheduled sampling.
        """
        result = self.teacher_forced(batch, step)
        wanted = None
        if self.teachers is not None:
            wanted = self.teachers.probabilities(
                self.inputs(batch), batch.captions, batch.lengths, static=self.static
            )
        return caption_losses(result, self.config, counts, wanted)

    def teacher_forced(self, batch: CaptionBatch, step: int | Tensor) -> DecoderOutput:
        """Run the model over the reference captions."""
        rate = self.config.scheduled_sampling
        result: DecoderOutput = self.model(
            self.inputs(batch),
            batch.captions,
            batch.lengths,
            rate * step / self.total_steps if rate else 0.0,
            static=self.static,
        )
        return result

    def inputs(self, batch: CaptionBatch) -> Tensor | list[Tensor]:
        """Return normalized images (B, 3, S, S), or cached stages in fp32."""
        if batch.features is not None:
            return [stage.float() for stage in batch.features]
        assert batch.images is not None
        return self.preprocess.normalize(batch.images)

    def remember(self, batch: CaptionBatch) -> Memory:
        """Encode the images of a batch."""
        inputs, encoder = self.inputs(batch), self.model.encoder
        stages = inputs if isinstance(inputs, list) else encoder.forward_features(inputs)
        return self.model.decoder.remember(encoder.forward_neck(stages))

    def extra_state(self) -> dict[str, Tensor]:
        """Return the buffers beside the model, for exact resume."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("model.")}


class HardAttention(Objective):
    """Cross-entropy, and REINFORCE for where to look (Xu et al. 2015, Section 4.1).

    One location is sampled per word, so no gradient flows through the choice. Instead the
    log-probability of the chosen locations is raised where the caption came out better than the
    baseline, a moving average (Eq. 12), and an entropy term keeps the choice varied.

    The reward of all locations of a caption is the mean log-probability of its words (the paper
    takes the sum, which would weigh long captions more).

    Args:
        model: With `attention.mode=hard`.
        preprocess: Normalizes images.
        config: Weights; `exploration` is the paper's λ_e, λ_r is 1.
        total_steps: Of the training.
    """

    baseline: Tensor

    def __init__(
        self, model: CaptionModel, preprocess: Preprocess, config: LossConfig, total_steps: int
    ):
        super().__init__(model, preprocess, config, total_steps)
        self.register_buffer("baseline", torch.tensor(torch.nan))

    def forward(self, batch: CaptionBatch, counts: BatchCounts, step: int | Tensor) -> Losses:
        """Compute the losses of a batch; see `Objective.forward`."""
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
        mean = torch.where(count > 0, total / count, self.baseline)
        baseline = torch.where(self.baseline.isnan(), mean, self.baseline)
        self.baseline.copy_(_BASELINE_DECAY * baseline + (1 - _BASELINE_DECAY) * mean)

        sampled = result.chosen >= 0  # (M,)
        weights = result.attention[result.mask]  # (M, L)
        chosen = weights.gather(-1, result.chosen.clamp(min=0)[:, None]).squeeze(-1)
        better = (reward - baseline)[..., None].expand(result.mask.shape)[result.mask]  # (M,)
        reinforce = -(better * chosen.clamp(min=1e-12).log() * sampled).sum() / counts.tokens
        entropy = attention_entropy(result.attention, result.mask) / counts.tokens
        added = reinforce - self.config.exploration * entropy
        parts = {**losses.parts, "word_log_prob": reward.sum() / counts.captions}
        return Losses(losses.total + added, parts)
