"""Distillation: a model learns what several others know (Hinton et al. 2015).

The targets are the teachers' mean probabilities of each next word of the reference captions,
instead of the one word that a person wrote.

Shapes: B images, C captions per image, T time, M tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.checkpoint import load_checkpoint
from captioner.errors import ConfigError
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.models.decoder import DecoderOutput
from captioner.models.encoder import Encoder
from captioner.tokenizer import Vocabulary
from captioner.training.data import trunk_fingerprint


class Teachers:
    """Models that show what the next word may be.

    Args:
        models: At least one; they do not change.
    """

    def __init__(self, models: Sequence[CaptionModel]):
        self._models = [model.eval().requires_grad_(False) for model in models]

    @torch.no_grad()
    def probabilities(
        self, inputs: Tensor | list[Tensor], captions: Tensor, lengths: Tensor, *, static: bool
    ) -> Tensor:
        """Return the mean probabilities of each next word, laid out as the student's: (M, V).

        Args:
            inputs: What `CaptionModel.forward` takes.
            captions: (B, C, T + 1).
            lengths: (B, C).
            static: As in the student's pass.
        """
        total: Tensor | None = None
        for model in self._models:
            result: DecoderOutput = model(inputs, captions, lengths, static=static)
            shares = result.logits.float().softmax(-1)
            total = shares if total is None else total.add_(shares)
        assert total is not None
        return total / len(self._models)


def load_teachers(
    paths: Sequence[str],
    vocabulary: Vocabulary,
    preprocess: Preprocess,
    encoder: Encoder | None,
    device: torch.device,
) -> Teachers | None:
    """Load the models of `loss.teachers`; None if there are none.

    Args:
        paths: Model files.
        vocabulary: Of the student.
        preprocess: Of the student.
        encoder: Of the student, if it reads features of a frozen trunk, which the teachers then
            read as well.
        device: Where they are to run.

    Raises:
        CheckpointError: A file cannot be loaded.
        ConfigError: A teacher has another vocabulary, preprocessing or trunk.
    """
    models = []
    trunk = None if encoder is None else trunk_fingerprint(encoder)
    for path in paths:
        model, header = load_checkpoint(path)
        if header.vocabulary != vocabulary:
            raise ConfigError(f"loss.teachers: {path} has another vocabulary than the student")
        if header.preprocess != preprocess:
            raise ConfigError(f"loss.teachers: {path} reads images in another size or scale")
        if trunk is not None and trunk_fingerprint(model.encoder) != trunk:
            raise ConfigError(
                f"loss.teachers: {path} has another CNN than the one whose features are cached: "
                "set data.cache=null"
            )
        models.append(model.to(device))
    return Teachers(models) if models else None
