"""A batch of images x captions, as tensors.

Shapes: B images in a batch, C captions per image, T time, S side of the encoder's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.tokenizer import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self

_BUCKET = 4  # steps from one length to the next; few lengths need few CUDA graphs


@dataclass
class CaptionBatch:
    """Images with their captions.

    Attributes:
        images: (B, S, S, 3) uint8 for `Preprocess.normalize`, or None where features are given.
        features: One fp16 or bf16 tensor (B, C_s, H_s, W_s) per encoder stage, or None.
        captions: (B, C, T) int64: START, words, END, then PAD; the longest of an image first.
        lengths: (B, C) int64, number of targets (words and END); 0 for an absent caption.
        indices: (B,) int64, places of the images in the dataset.
    """

    images: Tensor | None
    features: list[Tensor] | None
    captions: Tensor
    lengths: Tensor
    indices: Tensor

    _padded: ClassVar[tuple[str, ...]] = ("captions",)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """Return the batch on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def split(self, parts: int) -> list[Self]:
        """Split the batch into at most `parts` parts; part p takes items p, p + parts, ..."""
        parts = min(parts, len(self.indices))
        return [self.map(itemgetter(slice(part, None, parts))) for part in range(parts)]

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory (called by the DataLoader)."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the batch with each tensor replaced by what a function makes of it."""

        def apply(value: Any) -> Any:
            if isinstance(value, list):
                return [function(tensor) for tensor in value]
            return None if value is None else function(value)

        return type(self)(**{name: apply(value) for name, value in vars(self).items()})

    @property
    def shapes(self) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        """Return shape and type of each tensor."""
        return tuple((tensor.shape, tensor.dtype) for tensor in self._tensors())

    def copy_(self, other: CaptionBatch) -> None:
        """Copy another batch of the same shapes into the tensors of this one."""
        for into, tensor in zip(self._tensors(), other._tensors(), strict=True):
            into.copy_(tensor)

    def to_bucket(self) -> Self:
        """Pad captions so that few lengths occur: T + 1 with T the next multiple of four."""

        def pad(name: str, value: Any) -> Any:
            if name not in self._padded:
                return value
            return F.pad(value, (0, (1 - value.shape[-1]) % _BUCKET), value=Vocabulary.PAD)

        return type(self)(**{name: pad(name, value) for name, value in vars(self).items()})

    def _tensors(self) -> Iterator[Tensor]:
        for value in vars(self).values():
            if isinstance(value, list):
                yield from value
            elif value is not None:
                yield value
