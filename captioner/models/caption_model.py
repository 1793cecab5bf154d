"""The network as one module: what is trained, saved and loaded.

Shapes: B photos, S image side, C captions per photo, T time.
"""

from __future__ import annotations

from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.models.attention import Memory
from captioner.models.decoder import Decoder, DecoderOutput
from captioner.models.encoder import Encoder


class CaptionModel(nn.Module):
    """Encoder and decoder.

    Args:
        config: Of the network.
        vocabulary_size: V.
        pretrained: Overrides ``config.encoder.pretrained``.
    """

    def __init__(
        self, config: ModelConfig, vocabulary_size: int, *, pretrained: bool | None = None
    ):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, pretrained)
        self.decoder = Decoder(
            config.decoder, config.attention, self.encoder.feature_size, vocabulary_size
        )

    def remember(self, images: Tensor) -> Memory:
        """Encode photos for decoding: (B, 3, S, S) normalised pixels -> memory."""
        return self.decoder.remember(self.encoder(images))

    def forward(
        self,
        pictures: Tensor | list[Tensor],
        captions: Tensor,
        lengths: Tensor,
        sampling_prob: float = 0.0,
    ) -> DecoderOutput:
        """Teacher-forced pass for training.

        Args:
            pictures: Photos (B, 3, S, S), or the trunk's cached stages [(B, C, H, W), ...].
            captions: (B, C, T + 1) ids from START to END, then padding.
            lengths: (B, C) targets of each caption.
            sampling_prob: Share of scheduled sampling, see :meth:`Decoder.forward`.
        """
        stages = pictures if isinstance(pictures, list) else self.encoder.forward_features(pictures)
        memory = self.decoder.remember(self.encoder.forward_neck(stages))
        result: DecoderOutput = self.decoder(memory, captions, lengths, sampling_prob)
        return result
