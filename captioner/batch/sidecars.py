"""A text file beside each photo, as many training tools expect captions."""

from __future__ import annotations

import os
from collections import OrderedDict

from captioner.batch.formats import Kept, sentences
from captioner.batch.item import Item, Result
from captioner.batch.journal import Mode
from captioner.utils.files import write_atomically

_CLAIMS = 100_000  # far more than photos are in work at once


class SidecarSink:
    """``photo.txt`` beside each ``photo.jpg``, with one caption a line.

    Args:
        mode: ``new`` takes a sidecar that is there for a failure, ``resume`` for done.
    """

    shows_errors = False

    def __init__(self, mode: Mode = "new"):
        self.mode = mode
        self._claimed: OrderedDict[str, None] = OrderedDict()  # latest last

    def kept(self, item: Item) -> Kept | None:
        """See `sinks.Sink.kept`."""
        path = _sidecar(item)
        if self.mode != "resume" or path is None or not os.path.exists(path):
            return None
        self._claimed.pop(path, None)
        return Kept(item.name, None)

    def refuse(self, item: Item) -> str | None:
        """See `sinks.Sink.refuse`."""
        path = _sidecar(item)
        if path is None:
            return "has no folder of its own for a sidecar"
        if path in self._claimed:
            return f"another photo has the sidecar {os.path.basename(path)} too"
        if self.mode == "new" and os.path.lexists(path):
            return "its sidecar exists already (--resume keeps it, --overwrite replaces it)"
        self.claim(item)
        return None

    def claim(self, item: Item) -> None:
        """Reserve an item's sidecar until it is written; another process may do that."""
        if (path := _sidecar(item)) is not None:
            self._claimed[path] = None
            if len(self._claimed) > _CLAIMS:  # the others' are never seen written
                self._claimed.popitem(last=False)

    def write(self, item: Item, result: Result) -> None:
        """See `sinks.Sink.write`."""
        path = _sidecar(item)
        if path is None:
            return
        self._claimed.pop(path, None)
        if isinstance(result, str):
            return
        write_atomically(path, "\n".join([*sentences(result), ""]).encode())

    def close(self, complete: bool) -> None:
        """See `sinks.Sink.close`."""


def _sidecar(item: Item) -> str | None:
    """Path of the text file beside a photo, None if the photo is no file."""
    if not isinstance(item.source, (str, os.PathLike)):
        return None
    return os.path.splitext(os.fspath(item.source))[0] + ".txt"
