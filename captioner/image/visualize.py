"""Draw attention maps over an image, with Pillow and NumPy only.

`overlay` lays one map over the image, `word_strip` shows image and words as a sheet of panels,
`animate` plays the sentence word by word. Maps are (H, W) arrays of weights >= 0, one per word,
as in `Caption.attention`. `grid_to_image`, the exact inverse of the encoder's resizing, spreads
them over the image; `captioner.image.look` says how weights become light, colour and an outline.

Scale: each map is divided by its own largest value, so that its peak has full strength. To compare
words, give all of them one `peak` (or `shared_scale=True`). NaN, infinite and negative values count
as 0; a map of zeros dims the whole image.

Text is set in Pillow's own font, which covers Latin with accents. For other scripts a system font
is searched for; `font="/path/to/font.ttf"` chooses one.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from captioner.errors import ConfigError
from captioner.image.fonts import Font, find_font, load_font
from captioner.image.io import open_image
from captioner.image.look import (
    PALE,
    STRENGTH,
    half_level,
    heat_colours,
    heat_opacity,
    light,
    outline,
)
from captioner.image.transforms import grid_to_image
from captioner.metrics.coco_categories import word_class

STYLES = ("spotlight", "heatmap")

_PAPER, _INK, _PALE_INK = (255, 255, 255), (28, 28, 32), (176, 176, 184)
_PANEL_AREA = 240 * 180  # pixels: panoramas get wider panels, portraits narrower, equal in weight
_LABEL_SIZE = 20  # pixels
_GAP = 14  # pixels between panels; twice this around the sheet


# --------------------------------------------------------------------------------------- overlays


def overlay(
    image: Image.Image,
    attention_map: np.ndarray,
    style: str = "spotlight",
    *,
    floor: float = 0.5,
    strength: float = STRENGTH,
    outlined: bool = True,
    peak: float | None = None,
    interpolation: str = "bicubic",
) -> Image.Image:
    """Lay one attention map over an image.

    Args:
        image: The image, of any mode; turned upright if it carries an EXIF orientation.
        attention_map: (H, W) weights.
        style: "spotlight" dims cells of low weight; "heatmap" tints cells, from violet (low weight)
            to yellow (high).
        floor: Spotlight: brightness kept where the weight is 0; the peak keeps its full brightness.
        strength: Heat map: opacity of the tint at the peak.
        outlined: Whether to draw a line around the cells of largest weight that together hold half
            of the map's mass.
        peak: The weight shown at full strength; None takes the map's own largest.
        interpolation: "bicubic", "bilinear", or "nearest" for the bare grid cells.

    Returns:
        An RGB image of the image's size.

    Raises:
        ConfigError: The style is unknown, a share is outside 0..1, or the map is not (H, W).
    """
    if style not in STYLES:
        raise ConfigError(f"overlay style {style!r} is unknown: use {' or '.join(STYLES)}")
    for name, share in (("floor", floor), ("strength", strength)):
        if not 0 <= share <= 1:
            raise ConfigError(f"overlay: {name} must lie within 0..1, not {share!r}")
    image = open_image(image)
    pixels = np.asarray(image, dtype=np.float32)  # (height, width, 3)
    weights = spread_weights(attention_map, image.size, peak, interpolation)
    levels = np.round(weights * 255).astype(np.uint8)
    if style == "spotlight":
        mixed = pixels * (floor + (1 - floor) * light()[levels])[..., None]
    else:
        # Where the weight is 0, the image stays unchanged.
        opacity = strength * heat_opacity()[levels][..., None]
        mixed = pixels * (1 - opacity) + heat_colours()[levels] * opacity
    if outlined:
        mixed = outline(mixed, weights, half_level(weights))
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def spread_weights(
    attention_map: np.ndarray,
    size: tuple[int, int],
    peak: float | None = None,
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Spread a map over an image of (width, height).

    Returns:
        (height, width) weights from 0 to 1, divided as `overlay` describes.
    """
    cells = np.nan_to_num(_map(attention_map), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    spread = grid_to_image(cells, size, interpolation)
    # The map's peak is taken after spreading: a cell's centre may fall between two pixels.
    top = float(spread.max()) if peak is None else float(peak)
    return (spread / top).clip(0, 1) if top > 0 else np.zeros_like(spread)


def _map(attention_map: np.ndarray) -> np.ndarray:
    cells = np.asarray(attention_map, dtype=np.float32)
    if cells.ndim != 2 or cells.size == 0:
        raise ConfigError(f"an attention map must have shape (rows, columns), not {cells.shape}")
    return cells


# ------------------------------------------------------------------------------------ word strips


def word_strip(
    image: Image.Image,
    words: Sequence[str],
    maps: np.ndarray | Sequence[np.ndarray],
    *,
    columns: int | None = None,
    panel_width: int | None = None,
    style: str = "heatmap",
    shared_scale: bool = False,
    font: str | None = None,
    **options: Any,
) -> Image.Image:
    """Draw a sheet of panels: the image, then one overlay per word with the word below it.

    Panels of function words ("a", "of"), whose maps mean little, are pale.

    Args:
        image: The image.
        words: The caption's words.
        maps: One (H, W) map per word.
        columns: Panels per row; None chooses a number that makes the sheet about 16:10.
        panel_width: In pixels; None chooses by the image's shape.
        style: As for `overlay`; a spotlight is hard to read in small panels.
        shared_scale: Scale all maps by the largest weight of any word, not each by its own.
        font: A TrueType or OpenType file; None chooses one that has the letters.
        **options: Passed to `overlay`.

    Returns:
        An RGB image.

    Raises:
        ConfigError: Words and maps differ in number, or an option is wrong.
    """
    image = open_image(image)
    maps = _one_per_word(words, maps)
    if shared_scale:
        options["peak"] = _common_peak(maps)
    panel = _panel_size(image.size, panel_width)
    image = _fit(image, panel)
    panels = [image] + [overlay(image, cells, style, **options) for cells in maps]
    if columns is None:
        columns = _good_columns(len(panels), panel)
    elif columns < 1:
        raise ConfigError(f"word strip: columns must be at least 1, not {columns}")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    label = round(_LABEL_SIZE * 1.7)
    step_x, step_y = panel[0] + _GAP, panel[1] + label + _GAP
    font = font or find_font("".join(words))
    sheet = Image.new("RGB", (columns * step_x + 3 * _GAP, rows * step_y + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (drawn, text) in enumerate(zip(panels, ["", *words], strict=True)):
        x = 2 * _GAP + index % columns * step_x
        y = 2 * _GAP + index // columns * step_y
        left, top = x + (panel[0] - drawn.width) // 2, y + panel[1] - drawn.height
        pale = word_class(text) == "function"
        if pale:
            drawn = Image.blend(Image.new("RGB", drawn.size, _PAPER), drawn, PALE)
        sheet.paste(drawn, (left, top))  # centred, directly above its word
        ink = _PALE_INK if pale else _INK
        text, typeface = _fitted(text, panel[0], font)
        draw.text((x + panel[0] / 2, y + panel[1] + label / 2), text, ink, typeface, anchor="mm")
    return sheet


def _one_per_word(
    words: Sequence[str], maps: np.ndarray | Sequence[np.ndarray]
) -> list[np.ndarray]:
    if len(words) != len(maps):
        raise ConfigError(f"{len(words)} words but {len(maps)} attention maps: give one per word")
    return [_map(cells) for cells in maps]


def _common_peak(maps: list[np.ndarray]) -> float:
    return max((float(np.max(m, where=np.isfinite(m), initial=0.0)) for m in maps), default=0.0)


def _panel_size(size: tuple[int, int], width: int | None) -> tuple[int, int]:
    """Return the (width, height) of a panel: the image's aspect ratio, kept within 1:4 and 6:1."""
    aspect = min(max(size[0] / size[1], 1 / 4), 6.0)
    if width is None:
        width = round(math.sqrt(_PANEL_AREA * aspect))
    elif width < 16:
        raise ConfigError(f"panel_width must be at least 16 pixels, not {width}")
    return width, max(1, round(width / aspect))


def _fit(image: Image.Image, panel: tuple[int, int]) -> Image.Image:
    """Resize the whole image to fit into the panel, never to a size of 0."""
    scale = min(panel[0] / image.width, panel[1] / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _good_columns(panels: int, panel: tuple[int, int]) -> int:
    """Return the number of columns whose sheet is closest to 16:10; empty places are penalised."""

    def ugliness(columns: int) -> float:
        rows = math.ceil(panels / columns)
        aspect = columns * panel[0] / (rows * (panel[1] + 1.7 * _LABEL_SIZE))
        return abs(math.log(aspect / 1.6)) + 0.5 * (rows * columns - panels) / panels

    return min(range(1, panels + 1), key=ugliness)


def _fitted(text: str, width: int, path: str | None) -> tuple[str, Font]:
    """Return the text and a font in which it fits the width: first smaller, then cut short."""
    text = " ".join(text.split())
    for size in range(_LABEL_SIZE, 11, -2):
        font = load_font(size, path)
        if font.getlength(text) <= width:
            return text, font
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "...", font


# -------------------------------------------------------------------------------------- animation


def animate(
    image: Image.Image,
    words: Sequence[str],
    maps: np.ndarray | Sequence[np.ndarray],
    *,
    size: int = 480,
    seconds: float = 0.8,
    style: str = "spotlight",
    shared_scale: bool = False,
    font: str | None = None,
    **options: Any,
) -> bytes:
    """Draw an endless GIF: the image, then each word's overlay with the word lit below.

    The overlay of a function word is pale.

    Args:
        image: The image.
        words: The caption's words.
        maps: One (H, W) map per word.
        size: Longer side of the image in the GIF, in pixels.
        seconds: Duration of each word.
        style: As for `overlay`.
        shared_scale: As for `word_strip`.
        font: As for `word_strip`.
        **options: Passed to `overlay`.

    Returns:
        The GIF file's bytes.

    Raises:
        ConfigError: Words and maps differ in number, or an option is wrong.
    """
    if size < 64 or not 0.02 <= seconds <= 600:
        raise ConfigError(f"animation: needs size >= 64 and seconds >= 0.02: {size}, {seconds}")
    image = open_image(image)
    maps = _one_per_word(words, maps)
    if shared_scale:
        options["peak"] = _common_peak(maps)
    image = _fit(image, (size, size))
    typeface = load_font(_LABEL_SIZE, font or find_font("".join(words)))
    width = max(image.width, size // 2)
    places, text_height = _flow(words, width - 2 * _GAP, typeface)
    frames = []
    for now in range(-1, len(words)):
        frame = Image.new("RGB", (width, image.height + text_height + 2 * _GAP), _PAPER)
        drawn = image if now < 0 else overlay(image, maps[now], style, **options)
        if now >= 0 and word_class(words[now]) == "function":
            drawn = Image.blend(image, drawn, PALE)
        frame.paste(drawn, ((width - image.width) // 2, 0))
        draw = ImageDraw.Draw(frame)
        for index, (word, (x, y)) in enumerate(zip(words, places, strict=True)):
            # The plain image has the whole sentence lit; then the words light up one by one.
            colour = _INK if now in (-1, index) else _PALE_INK
            draw.text((_GAP + x, image.height + _GAP + y), word, colour, typeface)
        # An octree palette keeps small patches of colour that median cut loses; dithering hides
        # its coarse steps in the dimmed parts.
        palette = frame.quantize(256, Image.Quantize.FASTOCTREE)
        frames.append(frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    buffer = io.BytesIO()
    lengths = [round(seconds * 1000 * 1.5)] + [round(seconds * 1000)] * len(words)
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=lengths, loop=0)
    return buffer.getvalue()


def _flow(words: Sequence[str], width: float, font: Font) -> tuple[list[tuple[float, float]], int]:
    """Return where each word starts when the text is set in lines of this width, and its height."""
    places: list[tuple[float, float]] = []
    x = y = 0.0
    line = 1.4 * _LABEL_SIZE
    for word in words:
        length = font.getlength(word)
        if x and x + length > width:
            x, y = 0.0, y + line
        places.append((x, y))
        x += length + font.getlength(" ")
    return places, round(y + line) if words else 0
