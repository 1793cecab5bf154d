"""Augmentation of training photos: mild crops and colours, so that the captions stay true.

Every change is drawn from a generator that is handed in, so that a photo's augmentation depends on
nothing else and threads may augment side by side.

Shapes: S side of the encoder's input.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from captioner.image.transforms import Preprocess

__all__ = ["Augmentation"]

_AREA = (0.6, 1.0)  # of a crop, as a share of the photo
_RATIO = (0.8, 1.25)  # width to height, beside the photo's own
_JITTER = 0.2  # brightness, contrast and saturation change by up to this share
_TRIES = 10


class Augmentation:
    """Random resized crop (Szegedy et al. 2015) and colour jitter; mirroring is the dataset's.

    Hue stays: captions name colours.

    Args:
        preprocess: Of the encoder: its size and interpolation.
    """

    version = 1
    """Grows when the pictures change that a seed gives: caches of their features are then old."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    @property
    def shrink_to(self) -> int:
        """Side to which a large photo may be shrunk while it is read: a crop is enlarged again."""
        return self.preprocess.size * 3 // 2

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> np.ndarray:
        """A photo, augmented: (S, S, 3) uint8."""
        from torchvision.transforms import InterpolationMode  # slow to import
        from torchvision.transforms.v2 import functional

        left, top, width, height = draw_crop(*image.size, generator)
        size = self.preprocess.size
        mode = InterpolationMode(self.preprocess.interpolation)
        image = functional.resized_crop(image, top, left, height, width, [size, size], mode)
        changes = [
            functional.adjust_brightness,
            functional.adjust_contrast,
            functional.adjust_saturation,
        ]
        for number in generator.permutation(len(changes)):
            image = changes[number](image, generator.uniform(1 - _JITTER, 1 + _JITTER))
        return np.array(image)


def draw_crop(width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop, in pixels; the whole photo if none fits."""
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*_AREA)
        # The photo will be squashed into a square: a crop of the photo's own shape is ratio 1.
        ratio = width / height * math.exp(generator.uniform(*np.log(_RATIO)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = int(generator.integers(width - across + 1))
            top = int(generator.integers(height - down + 1))
            return left, top, across, down
    return 0, 0, width, height
