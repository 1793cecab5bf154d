"""One captioned photo, and what all readers of caption files have in common: finding the photos."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from captioner.errors import DataError

logger = logging.getLogger(__name__)

Missing = Literal["error", "skip", "ignore"]
"""What to do about photos that a caption file names and the disk does not have.

`ignore` does not look: only the captions are wanted, and names stay as the file has them.
"""

_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Example:
    """A photo and what people wrote about it.

    Attributes:
        image: Path of the image file.
        captions: Its captions as written (raw case and punctuation), in the order of the file.
        split: The split it belongs to, for example `train`, `val` or `test`.
        image_id: The id in the caption file (COCO: an integer), unique within one list.
    """

    image: str
    captions: tuple[str, ...]
    split: str
    image_id: int | str


def find_images(
    examples: Iterable[Example],
    source: Path,
    image_root: str | os.PathLike[str] | None,
    missing: Missing = "error",
) -> list[Example]:
    """Check the examples of one file and replace the file names in them by paths that exist.

    Photos without captions are left out, with a warning.

    Args:
        examples: As the file has them: `image` is a file name, perhaps with folders.
        source: The caption file.
        image_root: Folder of the photos; None looks in `images` beside the file, then beside it.
            Only the last part of a name is looked for where the whole is not found.
        missing: `error`, `skip` to leave photos out that do not exist (with a warning), or
            `ignore` to leave all names as they are.

    Raises:
        DataError: An id occurs twice, photos are missing, or nothing is left.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing must be 'error', 'skip' or 'ignore', not {missing!r}")
    examples = list(examples)
    ids = Counter(example.image_id for example in examples)
    twice = [image_id for image_id, count in ids.items() if count > 1]
    if twice:
        raise DataError(f"{source}: {len(twice)} image id(s) occur more than once: {_some(twice)}")
    captioned = [example for example in examples if example.captions]
    if len(captioned) < len(examples):
        silent = [example.image for example in examples if not example.captions]
        logger.warning(
            "%s: left out %d photo(s) without a caption: %s", source, len(silent), _some(silent)
        )
    if not captioned:
        raise DataError(f"{source}: no photo with a caption in it")
    if missing == "ignore":
        return captioned
    beside = source.parent
    roots = [Path(image_root)] if image_root is not None else [beside / "images", beside]
    found, lost = [], []
    for example in captioned:
        path = _find(example.image, roots)
        if path is None:
            lost.append(example.image)
        else:
            found.append(Example(path, example.captions, example.split, example.image_id))
    if lost:
        places = " and ".join(str(root) for root in roots)
        message = f"{source}: {len(lost)} of {len(captioned)} photos not found: {_some(lost)}"
        if missing == "error" or not found:
            raise DataError(
                f"{message}; looked in {places}: name their folder by --images (in a recipe by"
                " images, below data.root; in Python by image_root, or leave them out with"
                " missing='skip')"
            )
        logger.warning("%s; looked in %s; left out", message, places)
    return found


def choose_split(examples: Sequence[Example], source: Path, split: str | None) -> list[Example]:
    """The examples of one split, or all of them for None.

    Raises:
        DataError: The file has no such split; the message lists those that it has.
    """
    chosen = [example for example in examples if split in (None, example.split)]
    if examples and not chosen:
        names = ", ".join(sorted({example.split for example in examples}))
        raise DataError(f"{source}: no split {split!r} in it, only {names}")
    return chosen


def read_text(path: str | os.PathLike[str]) -> str:
    """A caption file's text; UTF-8 whatever the locale is, with or without a byte-order mark.

    Raises:
        DataError: The file cannot be read or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{os.fspath(path)}: cannot read this caption file ({error})") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON file's content.

    Raises:
        DataError: The file cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{os.fspath(path)}: not a JSON file ({error})") from error


def clean_captions(captions: Iterable[Any]) -> tuple[str, ...]:
    """The captions without those that are empty, stripped of white space at both ends.

    Raises:
        TypeError: One of them is not a string.
    """
    captions = list(captions)
    for caption in captions:
        if not isinstance(caption, str):
            raise TypeError(f"a caption must be a string, not {caption!r}")
    return tuple(stripped for caption in captions if (stripped := caption.strip()))


def _find(name: str, roots: Sequence[Path]) -> str | None:
    """The path of an image file: root/folders/name, else root/name; absolute names as they are."""
    for tail in dict.fromkeys([name, Path(name).name]):
        for root in roots:
            path = os.path.join(root, tail)
            if os.path.isfile(path):
                return path
    return None


def _some(names: Sequence[object]) -> str:
    return ", ".join(str(name) for name in names[:_SHOWN]) + (
        ", ..." if len(names) > _SHOWN else ""
    )
