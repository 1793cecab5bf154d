"""An image to caption and the result of captioning it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from captioner.image import io as images
from captioner.image.io import ImageSource
from captioner.outputs import Caption, Failure

Result: TypeAlias = Caption | Failure
"""The caption of an item, or why there is none."""


@dataclass(frozen=True)
class Item:
    """One image to caption.

    Attributes:
        name: Its name in the results: the path as the user gave it, or the name in the list.
        source: The image itself.
        id: Its id in the list, if it has one.
        error: Why the source cannot provide this image; `source` is then ignored.
        index: Its position in the whole run, from 0, if several processes share the run.
    """

    name: str
    source: ImageSource = b""
    id: int | str | None = None
    error: str | None = None
    index: int | None = None


_CONTROL = {c: repr(chr(c))[1:-1] for c in (*range(32), *range(127, 160), 0x2028, 0x2029)}


def escaped(name: str) -> str:
    r"""Return a name as one line of valid text: a tab becomes `\t`, a line feed `\n`, and so on.

    Bytes of a file name that are not UTF-8 become `\xNN`. Backslashes stay as they are, because
    they separate folders in Windows paths.
    """
    return "".join(
        f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c
        for c in name.translate(_CONTROL)
    )


def reason(source: ImageSource, error: str) -> str:
    """Return an image error without the name of the image, which a row has in another field."""
    return error.removeprefix(f"{images._name(source)}: ")
