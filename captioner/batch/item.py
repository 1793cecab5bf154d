"""What travels through a batch run: an item from a source, and the result that a sink takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from captioner.image import io as images
from captioner.image.io import ImageSource

if TYPE_CHECKING:
    from captioner.api import Caption

Result: TypeAlias = "Caption | str"
"""A caption or, in one line, why there is none."""


@dataclass(frozen=True)
class Item:
    """One photo to caption.

    Attributes:
        name: What results call it: the path as the user gave it, or the name in the manifest.
        source: The photo itself.
        id: Its id in the manifest, if it has one.
        error: Why the source cannot give this photo; ``source`` is then not looked at.
        index: Its place in the whole run, from 0, where several processes share it.
    """

    name: str
    source: ImageSource = b""
    id: int | str | None = None
    error: str | None = None
    index: int | None = None


_CONTROL = {c: repr(chr(c))[1:-1] for c in (*range(32), *range(127, 160), 0x2028, 0x2029)}


def escaped(name: str) -> str:
    r"""A name as one line of valid text: tab, newline and the like become ``\t``, ``\n``, ...

    Bytes of a file name that are not UTF-8 become ``\xNN``. Backslashes stay as they are, since
    they are the separators of Windows paths.
    """
    return "".join(
        f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c
        for c in name.translate(_CONTROL)
    )


def reason(source: ImageSource, error: str) -> str:
    """An image error without the name of the picture, which a row has in another field."""
    return error.removeprefix(f"{images._name(source)}: ")
