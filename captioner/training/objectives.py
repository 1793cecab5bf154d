"""An objective: the model together with what is minimised, as the one module that a step runs.

DistributedDataParallel wraps it, so all that needs gradients happens in its ``forward``.

Shapes: B photos, C captions per photo, T time, S image side.
"""

from __future__ import annotations

from torch import Tensor, nn

from captioner.config import Config, LossConfig
from captioner.data.dataset import CaptionBatch, CaptionDataset
from captioner.errors import ConfigError
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.models.decoder import DecoderOutput
from captioner.training.losses import BatchCounts, Losses, caption_losses


def build_objective(
    model: CaptionModel,
    preprocess: Preprocess,
    config: Config,
    data: CaptionDataset,
    total_steps: int,
) -> Objective:
    """The objective that a recipe names.

    Raises:
        ConfigError: It does not go with the model's attention.
    """
    hard = config.model.attention.mode == "hard"
    if config.loss.objective == "cross_entropy":
        if not hard:
            return Objective(model, preprocess, config.loss, total_steps)
        from captioner.training.hard_attention import HardAttention

        return HardAttention(model, preprocess, config.loss, total_steps)
    if hard:
        raise ConfigError("loss.objective=self_critical needs attention.mode=soft")

    from captioner.metrics.cider import DocumentFrequency
    from captioner.training.self_critical import SelfCritical

    references = [ids for ids in data.references() if ids]
    if len(references) < 2:
        raise ConfigError("loss.objective=self_critical needs two captioned photos or more")
    frequency = DocumentFrequency(references)
    longest = config.validation.max_length
    return SelfCritical(model, preprocess, config.loss, total_steps, frequency, longest)


class Objective(nn.Module):
    """Cross-entropy of the captions that people wrote.

    Args:
        model: What learns.
        preprocess: Normalises photos.
        config: The weights of the loss.
        total_steps: Of the training, for what changes on the way.
    """

    def __init__(
        self, model: CaptionModel, preprocess: Preprocess, config: LossConfig, total_steps: int
    ):
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.config = config
        self.total_steps = total_steps

    def count(self, batch: CaptionBatch) -> tuple[int, int]:
        """Targets and captions of a batch: what the sums of its losses are divided by."""
        return int(batch.lengths.sum()), int((batch.lengths > 0).sum())

    def forward(self, batch: CaptionBatch, counts: BatchCounts, step: int) -> Losses:
        """The losses of one batch.

        Args:
            batch: On the model's device.
            counts: What sums are divided by.
            step: Of the training, for what is drawn at random and for what changes on the way.
        """
        return caption_losses(self.teacher_forced(batch, step), self.config, counts)

    def teacher_forced(self, batch: CaptionBatch, step: int) -> DecoderOutput:
        """The model's pass over the captions of a batch."""
        sampling_prob = self.config.scheduled_sampling * step / self.total_steps
        result: DecoderOutput = self.model(
            self.pictures(batch), batch.captions, batch.lengths, sampling_prob
        )
        return result

    def pictures(self, batch: CaptionBatch) -> Tensor | list[Tensor]:
        """Normalised photos (B, 3, S, S), or cached stages in fp32."""
        if batch.features is not None:
            return [stage.float() for stage in batch.features]
        assert batch.images is not None
        return self.preprocess.normalize(batch.images)

    def memory_state(self) -> dict[str, Tensor]:
        """What the objective remembers beside the model, for exact resume."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("model.")}
