"""The network as one module: what is trained, saved and loaded.

Shapes: B images, S image side, C captions per image, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captioner.config import ModelConfig
from captioner.models.attention import Memory
from captioner.models.decoder import Decoder, DecoderOutput
from captioner.models.encoder import Encoder


class CaptionModel(nn.Module):
    """Encoder and decoder.

    Args:
        config: Of the network.
        vocabulary_size: V.
        pretrained: Overrides `config.encoder.pretrained`.
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

    @classmethod
    def from_weights(
        cls, config: ModelConfig, vocabulary_size: int, weights: Mapping[str, Tensor]
    ) -> CaptionModel:
        """Build the network around given weights, without drawing initial ones first.

        Args:
            config: Of the network.
            vocabulary_size: V.
            weights: Its `state_dict`; the network takes these very tensors.

        Raises:
            ConfigError: The configuration cannot be built.
            RuntimeError: The weights do not fit the configuration.
        """
        with _SkipInit():
            model = cls(config, vocabulary_size, pretrained=False)
        model.load_state_dict(weights, assign=True)
        model.decoder.tie()
        return model

    def remember(self, images: Tensor) -> Memory:
        """Encode images for decoding: (B, 3, S, S) normalised pixels -> memory."""
        return self.decoder.remember(self.encoder(images))

    def forward(
        self,
        images: Tensor | list[Tensor],
        captions: Tensor,
        lengths: Tensor,
        sampling_prob: float | Tensor = 0.0,
        *,
        static: bool = False,
    ) -> DecoderOutput:
        """Teacher-forced pass for training.

        Args:
            images: (B, 3, S, S), or the trunk's cached stages [(B, C, H, W), ...].
            captions: (B, C, T + 1) ids from START to END, then padding.
            lengths: (B, C) targets of each caption.
            sampling_prob: Probability of scheduled sampling, see `Decoder.forward`.
            static: Read nothing back from the device, see `Decoder.forward`.
        """
        stages = images if isinstance(images, list) else self.encoder.forward_features(images)
        memory = self.decoder.remember(self.encoder.forward_neck(stages))
        result: DecoderOutput = self.decoder(
            memory, captions, lengths, sampling_prob, static=static
        )
        return result


class _SkipInit(TorchFunctionMode):
    """Leave the memory of new parameters as it is: `load_state_dict` replaces all of them.

    Buffers are computed as usual. (The meta device would do without the memory, too, but its first
    operation imports the compiler of PyTorch, which takes two seconds.)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        in_init = getattr(func, "__module__", None) == "torch.nn.init"
        if in_init or func in (Tensor.normal_, Tensor.uniform_):
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **kwargs)
