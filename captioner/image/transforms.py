"""Shape an image for an encoder, and map the encoder's grid cells back onto the image.

The whole image is resized, uncropped, to the encoder's square. So the model sees all of it, and
each cell of an (H, W) feature grid covers the same share of the image; `grid_to_image` is the exact
inverse.

Shapes: B batch, S side of the encoder's square, H x W feature grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from captioner.errors import ConfigError

if TYPE_CHECKING:
    import torch

_AREA = (0.6, 1.0)  # of a crop, as a share of the image
_RATIO = (0.8, 1.25)  # width to height of a crop, relative to the image's own
_JITTER = 0.2  # brightness, contrast and saturation change by up to this share
_TRIES = 10
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of an encoder, stored in the checkpoint with its weights.

    The whole image is resized (antialiased, no crop, aspect ratio not kept) to size x size, then
    each channel becomes (p / 255 - mean) / std. `to_uint8` and `normalize` are the two halves:
    workers send bytes, a quarter of the size of floats, and the device normalises whole batches.

    Attributes:
        size: Side S of the square, in pixels.
        mean, std: Per RGB channel, on the scale 0..1.
        interpolation: "bilinear", "bicubic", "lanczos" or "nearest".
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ConfigError(
                f"preprocessing: size must be a whole number of pixels, not {self.size!r}"
            )
        for key in ("mean", "std"):
            object.__setattr__(self, key, _three_numbers(key, getattr(self, key)))
        if min(self.std) <= 0:
            raise ConfigError(f"preprocessing: std must be positive, not {self.std!r}")
        if str(self.interpolation) not in _RESAMPLING:
            raise ConfigError(
                f"preprocessing: interpolation {self.interpolation!r} is unknown: "
                f"use one of {', '.join(_RESAMPLING)}"
            )

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Preprocess one upright RGB image, as `open_image` returns it: (3, S, S) float32."""
        import torch

        return self.normalize(torch.from_numpy(self.to_uint8(image))[None])[0]

    def to_uint8(self, image: Image.Image) -> np.ndarray:
        """Resize the whole image to the square: (S, S, 3) uint8."""
        if image.mode != "RGB":
            image = image.convert("RGB")
        # reducing_gap: very large images are first averaged down to 3 times the square.
        square = image.resize(
            (self.size, self.size), _RESAMPLING[self.interpolation], reducing_gap=3.0
        )
        return np.array(square)

    def normalize(self, batch: torch.Tensor) -> torch.Tensor:
        """Normalise (B, S, S, 3) uint8 to (B, 3, S, S) float32, on the batch's own device.

        A contiguous batch becomes channels_last, the fastest memory order for convolutions.
        """
        import torch

        def channels(values: tuple[float, float, float]) -> torch.Tensor:
            # Made on the device: a CUDA graph cannot hold a copy from the host.
            return torch.stack([torch.full((1, 1), v, device=batch.device) for v in values])

        std, mean = channels(self.std), channels(self.mean)  # (3, 1, 1)
        pixels = batch.permute(0, 3, 1, 2).to(torch.float32)  # (B, 3, S, S)
        return pixels.mul_(1 / (255 * std)).sub_(mean / std)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Rebuild from `to_dict`'s result.

        Raises:
            ConfigError: Keys are missing or unknown, or a value is of the wrong kind.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"preprocessing: expected keys and values, not {values!r}")
        known = {field.name for field in fields(cls)}
        wrong = sorted(str(key) for key in values.keys() - known)
        missing = sorted(known - values.keys() - {"interpolation"})
        if wrong or missing:
            raise ConfigError(
                f"preprocessing: unknown keys {wrong}, missing keys {missing}; "
                f"it takes {', '.join(sorted(known))}"
            )
        return cls(**values)


def _three_numbers(key: str, values: Any) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        red = math.nan
    if not math.isfinite(red) or not math.isfinite(green + blue):
        raise ConfigError(
            f"preprocessing: {key} must be three numbers, one per channel: {values!r}"
        )
    return red, green, blue


class Augmentation:
    """Random resized crop (Szegedy et al. 2015) and colour jitter; the dataset mirrors images.

    Hue is not changed, because captions name colours.

    Args:
        preprocess: Of the encoder: its size and interpolation.
    """

    version = 1
    """To be raised when a seed gives other images, so that caches of their features are rebuilt."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    @property
    def shrink_to(self) -> int:
        """Return the side to which a large image may be shrunk while it is read.

        It exceeds the encoder's square because crops are enlarged again.
        """
        return self.preprocess.size * 3 // 2

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> np.ndarray:
        """Augment one upright RGB image: (S, S, 3) uint8."""
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
    """Draw left, top, width and height of a crop in pixels; the whole image if none fits."""
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*_AREA)
        # The crop is resized to a square later, so the image's own aspect ratio counts as 1.
        ratio = width / height * math.exp(generator.uniform(*np.log(_RATIO)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = int(generator.integers(width - across + 1))
            top = int(generator.integers(height - down + 1))
            return left, top, across, down
    return 0, 0, width, height


def grid_to_image(
    grid: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic"
) -> np.ndarray:
    """Spread a map over the image: the exact inverse of `Preprocess`'s resizing.

    Cell (r, c) covers rows r*height/H .. (r+1)*height/H and likewise columns; cell centres lie in
    the middle of that (`align_corners=False`). Values stay within the map's own range.

    Args:
        grid: (H, W) values.
        size: (width, height) of the image.
        interpolation: "nearest" gives each pixel the value of the cell in which its centre lies;
            "bilinear" and "bicubic" are smooth.

    Returns:
        (height, width) float32.
    """
    grid = np.asarray(grid, dtype=np.float32)
    if grid.ndim != 2 or grid.size == 0:
        raise ConfigError(f"a map must have shape (rows, columns), not {grid.shape}")
    width, height = size
    if interpolation == "nearest":
        rows = (2 * np.arange(height) + 1) * grid.shape[0] // (2 * height)
        cols = (2 * np.arange(width) + 1) * grid.shape[1] // (2 * width)
        return np.take(np.take(grid, rows, axis=0), cols, axis=1)
    if interpolation not in _RESAMPLING:
        raise ConfigError(
            f"interpolation {interpolation!r} is unknown: use one of {', '.join(_RESAMPLING)}"
        )
    smooth = Image.fromarray(grid).resize((width, height), _RESAMPLING[interpolation])
    # Bicubic overshoots beside sharp cells.
    return np.asarray(smooth).clip(grid.min(), grid.max())
