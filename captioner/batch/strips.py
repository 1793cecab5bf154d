"""Attention strips as files: one PNG per photo, each word under the place the model looked at."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.batch.item import Item
from captioner.batch.sources import STRIP_SUFFIX
from captioner.errors import CaptionerError
from captioner.utils.files import write_atomically

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
        self._announced: deque[tuple[int | None, Path]] = deque()  # own ones, not yet claimed
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaptionerError(f"cannot make the folder {folder}: {error.strerror}") from None

    def announce(self, item: Item, *, own: bool) -> None:
        """Settle the name of an item's strip before its turn.

        Processes that share the folder each announce all items in order, whether they can be
        captioned or not, so they agree on names.

        Args:
            item: The photo.
            own: Whether this process captions it.
        """
        path = self._new_path(item)
        if own:
            self._announced.append((item.index, path))

    def claim(self, item: Item) -> Path:
        """The path of an item's strip; called once for each captioned item, in order."""
        while self._announced:  # some may have failed and were never claimed
            index, path = self._announced.popleft()
            if index == item.index:
                return path
        return self._new_path(item)

    def _new_path(self, item: Item) -> Path:
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
