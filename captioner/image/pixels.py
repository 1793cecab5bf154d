"""Convert decoded images of any Pillow mode to upright 8-bit RGB in little memory."""

from __future__ import annotations

import numpy as np
from PIL import Image

_LARGE = 1 << 24  # pixels beyond which an image is converted tile by tile

_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright_rgb(image: Image.Image, shrink_to: int | None) -> Image.Image:
    """Return a decoded image as a new RGB image, turned as its EXIF block says.

    The block is read after decoding: by then Pillow has turned a TIFF itself and read an eXIf chunk
    at the end of a PNG. A damaged block is ignored.
    """
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        orientation = 1
    transpose = _UPRIGHT.get(orientation)
    large = image.width * image.height > _LARGE
    rgb = _to_rgb_in_tiles(image, shrink_to) if large else _to_rgb(image)
    return rgb if transpose is None else rgb.transpose(transpose)


def full_range(image: Image.Image) -> Image.Image:
    """Return a decoded TIFF of 16-bit greys with black at 0 and white at 65535.

    Pillow leaves out to turn those that count from white, and to widen those of 12 bits.
    """
    tags = getattr(image, "tag_v2", {}) if image.mode.startswith("I;16") else {}
    is_negative, is_narrow = tags.get(_PHOTOMETRIC) == 0, tags.get(_BITS) == (12,)
    if not (is_negative or is_narrow):
        return image
    values = np.asarray(image)
    if is_narrow:
        values = np.round(np.arange(4096) * (65535 / 4095)).astype(np.uint16)[values & 4095]
    return Image.fromarray(65535 - values if is_negative else values)


def _to_rgb_in_tiles(image: Image.Image, shrink_to: int | None) -> Image.Image:
    """Convert a small piece at a time, averaged down as far as `shrink_to` allows.

    At once, the intermediate steps would take up to five times the memory of the image itself.
    """
    width, height = image.size
    factor = max(1, min(width, height) // (3 * shrink_to)) if shrink_to else 1
    columns = factor * max(1, min(width, _LARGE // 8) // factor)
    rows = factor * max(1, _LARGE // 8 // columns // factor)
    tiles = [
        (left, top, min(left + columns, width), min(top + rows, height))
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    ends = [_extremes(image.crop(tile)) for tile in tiles] if _is_deep(image) else [(0.0, 0.0)]
    extremes = min(low for low, _ in ends), max(high for _, high in ends)
    result = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for tile in tiles:
        part = _to_rgb(image.crop(tile), extremes).reduce(factor)
        result.paste(part, (tile[0] // factor, tile[1] // factor))
    return result


def _to_rgb(image: Image.Image, extremes: tuple[float, float] | None = None) -> Image.Image:
    """Convert any Pillow mode to a new 8-bit RGB image.

    Args:
        image: The image.
        extremes: Least and greatest value for modes I and F; None takes those of this image.
    """
    if _is_deep(image):
        low, high = extremes or _extremes(image)
        grey = _grey_to_8_bits(_values(image), image.mode, low, high)
        return Image.fromarray(grey).convert("RGB")
    if image.mode.startswith("I;16"):
        return Image.fromarray(grey_16_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "La":  # premultiplied; Pillow goes from it to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
        return image
    return image.convert("RGB")  # copies when the mode is RGB already


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F")


def _values(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0.0, neginf=0.0)


def _extremes(image: Image.Image) -> tuple[float, float]:
    values = _values(image)
    return float(values.min()), float(values.max())


def _grey_to_8_bits(values: np.ndarray, mode: str, low: float, high: float) -> np.ndarray:
    """Scale a 32-bit or float greyscale image to uint8.

    The modes I and F do not say which value is white: it is the first of 1 (F only), 255 and 65535
    that no value exceeds. Values outside 0..65535 are stretched to the full range.
    """
    if low < 0 or high > 65535:
        values, white = values - low, (high - low) or 1.0
    else:
        white = next(w for w in (1, 255, 65535) if high <= w and (w > 1 or mode == "F"))
    return np.round(values * (255.0 / white)).astype(np.uint8)


def grey_16_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Round 0..65535 to 0..255 by table: no 32-bit copy of a large image is made."""
    table: np.ndarray = np.round(np.arange(65536) / 257).astype(np.uint8)
    return np.take(table, values)
