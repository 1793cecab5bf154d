"""Attention strips as files: one PNG per photo, each word under the place the model looked at."""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.batch.atomic import write_atomically
from captioner.batch.items import Item
from captioner.batch.sources import STRIP_SUFFIX
from captioner.errors import CaptionerError

if TYPE_CHECKING:
    from captioner.api import Caption

_LONGEST = 50  # characters of a file name, at most 4 bytes each: 255 bytes are the usual limit


class StripFolder:
    """A folder of ``photo.attention.png`` files.

    Photos of the same name in different folders get a few digits more; which ones depends only on
    the order of the photos, so a resumed run gives the same names.

    Args:
        folder: Made if it is absent.

    Raises:
        CaptionerError: It cannot be made.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self._taken: set[int] = set()  # hashes, not names: there may be a million
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaptionerError(f"cannot make the folder {folder}: {error.strerror}") from None

    def claim(self, item: Item) -> Path:
        """The path of an item's strip; called once for each captioned item, in order."""
        stem = os.path.splitext(re.split(r"[/\\]", item.name)[-1])[0]
        plain = re.sub(r"[^\w.-]+", "_", stem).strip("._")[:_LONGEST] or "photo"
        digest = hashlib.sha256(os.fsencode(item.name)).hexdigest()[:8]
        name, number = plain, 1
        while _key(name) in self._taken:
            name = f"{plain}-{digest}" if number == 1 else f"{plain}-{digest}-{number}"
            number += 1
        self._taken.add(_key(name))
        return self.folder / (name + STRIP_SUFFIX)

    def write(self, item: Item, caption: Caption) -> None:
        """Draw and save the strip of an item.

        Raises:
            ImageError: The photo has vanished since it was captioned.
            CaptionerError: The strip cannot be written.
        """
        buffer = io.BytesIO()
        caption.strip().save(buffer, "PNG")
        write_atomically(self.claim(item), buffer.getvalue())


def _key(name: str) -> int:
    """A number for a file name that is the same in upper and lower case, as some disks are."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name.casefold())).digest()[:7], "big")
