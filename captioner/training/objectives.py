"""Which objective a recipe trains."""

from __future__ import annotations

from captioner.config import Config
from captioner.data.dataset import CaptionDataset
from captioner.errors import ConfigError
from captioner.image.transforms import Preprocess
from captioner.metrics.cider import DocumentFrequency
from captioner.models.caption_model import CaptionModel
from captioner.training.distillation import Teachers
from captioner.training.objective import HardAttention, Objective
from captioner.training.self_critical import SelfCritical


def build_objective(
    model: CaptionModel,
    preprocess: Preprocess,
    config: Config,
    data: CaptionDataset,
    total_steps: int,
    teachers: Teachers | None = None,
) -> Objective:
    """Build the objective that a recipe names.

    Raises:
        ConfigError: The model's attention does not allow it, or there are too few images.
    """
    hard = config.model.attention.mode == "hard"
    if config.loss.objective == "cross_entropy":
        kind = HardAttention if hard else Objective
        objective = kind(model, preprocess, config.loss, total_steps)
        if hard and teachers is not None:
            raise ConfigError("loss.teachers need model.attention.mode=soft")
        objective.teachers = teachers
        return objective
    if teachers is not None:
        raise ConfigError("loss.teachers are for loss.objective=cross_entropy")
    if hard:
        raise ConfigError("loss.objective=self_critical needs model.attention.mode=soft")
    references = [captions for captions in data.references() if captions]
    if len(references) < 2:
        raise ConfigError("loss.objective=self_critical needs at least two captioned images")
    frequency = DocumentFrequency(references)
    longest = config.validation.max_length
    return SelfCritical(model, preprocess, config.loss, total_steps, frequency, longest)
