"""How attention becomes visible: the one source for files and for the demo's page.

A weight of 0 to 1 becomes light (spotlight) or a colour and its opacity (heat map) by tables of 256
levels, which the page gets as they are. The outline surrounds half of a map's mass.
"""

from __future__ import annotations

import functools
import math

import numpy as np

STRENGTH = 0.8  # opacity of the heat map at its peak
PALE = 0.4  # opacity of what is shown of a function word

_DARK, _LIT = 0.1, 0.8  # weights up to the first get no light, from the second on all of it
_RISE = 0.05, 0.7  # the same for the opacity of the heat map
_LINE = 1 / 380  # width of the outline, as a share of the image's longer side
_CASING = 0.45  # opacity of the dark line below the white one
_FLAT = 1e-4  # a slope, in weight per pixel, below which no line can be told


@functools.cache
def light() -> np.ndarray:
    """Return the spotlight's share of full light at each of 256 levels of weight."""
    return _smooth_step(_DARK, _LIT)


@functools.cache
def heat_opacity() -> np.ndarray:
    """Return the heat map's share of full opacity at each of 256 levels of weight."""
    return _smooth_step(*_RISE)


def _smooth_step(low: float, high: float) -> np.ndarray:
    """Return a table that rises from 0 to 1 between two weights; steep, as maps are mostly low."""
    t = ((np.linspace(0, 1, 256) - low) / (high - low)).clip(0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


@functools.cache
def heat_colours() -> np.ndarray:
    """Return the heat map's 256 colours, (256, 3) uint8 RGB, from dark violet to pale yellow.

    Lightness and hue run in equal steps through OKLCH (Ottosson 2020), a perceptual colour space:
    equal steps of attention look equal, and the order survives a black-and-white print.
    """
    t = np.linspace(0, 1, 256)
    lightness = 0.25 + 0.68 * t
    hue = np.radians(-65 + 170 * t)
    chroma = 0.13 + 0.08 * np.sin(math.pi * t)
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cone = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_linear_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (to_linear_rgb @ cone**3).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(srgb.T * 255).astype(np.uint8)


def half_level(weights: np.ndarray) -> float:
    """Return the weight from which on the largest weights hold half of the sum.

    Args:
        weights: (height, width), spread over the image.

    Returns:
        A level, such as 0.4 of a peak of 1; infinity for a map of zeros.
    """
    ordered = np.sort(weights, axis=None)[::-1]
    sums = np.cumsum(ordered, dtype=np.float64)
    return float(ordered[np.searchsorted(sums, sums[-1] / 2)]) if sums[-1] > 0 else math.inf


def outline(pixels: np.ndarray, weights: np.ndarray, level: float) -> np.ndarray:
    """Draw the line where weights cross a level: white, on a wider dark one.

    Args:
        pixels: (height, width, 3), 0 to 255.
        weights: (height, width).
        level: As of `half_level`.

    Returns:
        New pixels of the same shape.
    """
    if min(weights.shape) < 2:
        return pixels  # no slope to follow
    slope = np.hypot(*np.gradient(weights))
    near = np.abs(weights - level) / np.maximum(slope, _FLAT)  # pixels to the line, close to it
    away = np.where(slope > _FLAT, near, np.inf)
    width = max(weights.shape) * _LINE
    for colour, reach, opacity in ((0, 1.6 * width + 1, _CASING), (255, width / 2 + 0.5, 1.0)):
        share = (reach + 0.5 - away).clip(0, 1)[..., None] * opacity
        pixels = pixels * (1 - share) + colour * share
    return pixels
