"""Messages of the library, in the words of a visitor, who cannot install anything here."""

from __future__ import annotations

import re

_GUESS = re.compile(r" \([^)]*bomb\?\)")  # that somebody attacks
_PIXELS = re.compile(r"= ([\d,]+) pixels is over the limit of ([\d,]+)")


def for_visitors(reason: str) -> str:
    """Return why an image cannot be used, as the page tells it.

    Args:
        reason: As `captioner.image.io` gives it, without the image's name.
    """
    if "HEIC" in reason:
        return (
            "iPhone photos in HEIC format cannot be read here: save this one as JPEG and try again"
        )
    if found := _PIXELS.search(reason):
        size, limit = (int(number.replace(",", "")) / 1e6 for number in found.groups())
        return f"it has {size:,.4g} megapixels, over the limit of {limit:,.4g}: make it smaller"
    return _GUESS.sub("", reason)
