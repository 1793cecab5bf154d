"""Many photos of a visitor, captioned: single files and zips become results in order.

Each photo is opened once, in a thread: what goes on is the square that the model sees and a
thumbnail, so that memory does not depend on how large the photos are.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from captioner.api import Captioner
from captioner.batch.item import Item, Result, reason
from captioner.batch.runner import caption_items
from captioner.demo import limits
from captioner.demo.private import uploaded
from captioner.demo.unzip import count_photos, read_photos, shown_name
from captioner.demo.view import MOST_PIXELS
from captioner.errors import ImageError
from captioner.image.io import open_image
from captioner.utils.parallel import map_ahead

_TOGETHER = 8  # photos a batch: few, so that others get their turn and the table grows steadily
_THUMBNAIL = (192, 144)  # pixels, at most


class Upload(NamedTuple):
    """A file that a visitor has sent.

    Attributes:
        path: Where Gradio has put it; checked by :func:`uploaded`.
        name: What the visitor calls it.
    """

    path: str
    name: str

    @classmethod
    def of(cls, path: str, name: str | None) -> Upload:
        """Check a file that a browser or a program names.

        Raises:
            gradio.Error: It is not an upload.
        """
        return cls(uploaded(path), shown_name((name or path).replace("\\", "/").split("/")[-1]))

    @property
    def item(self) -> Item:
        """The file as a photo."""
        return Item(self.name, self.path)

    @property
    def is_zip(self) -> bool:
        """Whether its name says so."""
        return self.name.lower().endswith(".zip")


@dataclass(frozen=True)
class Photo(Item):
    """An item whose source is the model's square.

    Attributes:
        thumbnail: JPEG; empty where there is no photo.
    """

    thumbnail: bytes = b""


def count_uploads(files: Sequence[Upload]) -> int:
    """How many results :func:`caption_uploads` will give, about: damage may end a zip early."""
    count = sum(count_photos(file.path) if file.is_zip else 1 for file in files)
    return min(count, limits.PHOTOS + 1)


def caption_uploads(
    captioner: Captioner, files: Sequence[Upload], search: Mapping[str, Any]
) -> Iterator[tuple[Photo, Result]]:
    """Caption files and the photos in zips, in order.

    Args:
        captioner: The model.
        files: What was uploaded.
        search: Search options, as for :meth:`Captioner.stream`.

    Yields:
        Each photo with its caption or, as a string, the reason why it has none.

    Raises:
        ConfigError: The options contradict each other.
    """
    work = partial(open_photo, captioner)
    with closing(map_ahead(work, _items(files), workers=2, depth=_TOGETHER)) as photos:  # type: ignore[type-var]
        # One batch a call: `Captioner.stream` would share out the cores among several, and other
        # visitors' photos need theirs.
        while batch := list(itertools.islice(photos, _TOGETHER)):
            for photo, result in caption_items(captioner, batch, batch_size=_TOGETHER, **search):
                assert isinstance(photo, Photo)
                yield photo, result


def _items(files: Sequence[Upload]) -> Iterator[Item]:
    """The photos, up to the limit."""
    items = itertools.chain.from_iterable(
        read_photos(file.path, file.name) if file.is_zip else [file.item] for file in files
    )
    for number, item in enumerate(items):
        if number == limits.PHOTOS:
            yield Item("…", error=f"only {limits.PHOTOS} photos at a time: the rest is left out")
            return
        yield item


def open_photo(captioner: Captioner, item: Item) -> Photo:
    """Open a photo, or say why not; the model sees of it what it sees on the command line."""
    shape = captioner.preprocess
    if item.error is not None:
        return Photo(item.name, error=item.error)
    try:
        image = open_image(item.source, max_pixels=MOST_PIXELS, shrink_to=shape.size)
    except ImageError as error:
        return Photo(item.name, error=reason(item.source, str(error)))
    square = shape.to_uint8(image)
    image.thumbnail(_THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return Photo(item.name, square, thumbnail=buffer.getvalue())
