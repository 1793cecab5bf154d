"""Captioned images: read a captions file, choose a split and find the images on the disk."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from captioner.data.fields import Row, mend_text, some
from captioner.data.records import read_rows
from captioner.errors import DataError

logger = logging.getLogger(__name__)

Missing = Literal["error", "skip", "ignore"]
"""What to do about images that a captions file names and the disk does not have.

`ignore` does not look: only the captions are wanted, and names stay as the file has them.
"""


@dataclass(frozen=True)
class Example:
    """An image and what people wrote about it.

    Attributes:
        image: Path of the image file.
        captions: Its captions as written (raw case and punctuation), in the order of the file.
        split: The split it belongs to, for example `train`, `val` or `test`.
        image_id: The id in the captions file (COCO: an integer), unique within one list.
    """

    image: str
    captions: tuple[str, ...]
    split: str
    image_id: int | str


@dataclass
class _Entry:
    """The content of all rows about one image."""

    first: Row
    captions: list[str] = field(default_factory=list)
    ids: set[int | str | None] = field(default_factory=set)


def read_captions(
    path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    split: str | None = None,
    *,
    missing: Missing = "error",
) -> list[Example]:
    """Read a captions file in any form that `records.read_rows` knows.

    Args:
        path: The file.
        image_root: Folder of the images; None looks in `images` beside the file, then beside it.
        split: Only this split; None takes all. A file without splits is a single one, which gets
            this name (`train` for None).
        missing: `error`, `skip` to leave out images that do not exist, or `ignore` not to look
            for them; then a COCO file need not name them.


    Returns:
        One example per image with captions, in the order of the file.

    Raises:
        DataError: The file is of no known form, has no such split, an id occurs twice, a line is
            wrong (the message has its number), or images are missing.
    """
    path = Path(path)
    entries = _merge(read_rows(path, captioned=True), missing)
    # Ids of images, unless they turn out to be ids of rows.
    by_id = all(len(entry.ids) == 1 for entry in entries)
    examples = []
    places: dict[int | str, str] = {}  # image id -> where it is
    for entry in entries:
        row = entry.first
        name, own_split = row.image or "", row.split or split or "train"
        if own_split == "restval":  # Karpathy's, used for training as usual
            own_split = "train"
        image_id = row.image_id if by_id and row.image_id is not None else name
        first = places.setdefault(image_id, row.place)
        if first != row.place:
            raise DataError(f"{row.place}: {image_id} is in {first} already; keep one of them")
        examples.append(Example(name, tuple(entry.captions), own_split, image_id))
    return find_images(_choose_split(examples, path, split), path, image_root, missing)


def _merge(rows: Iterable[Row], missing: Missing) -> list[_Entry]:
    """Gather the rows of each image, and check them.

    Raises:
        DataError: A row is wrong.
    """
    entries: list[_Entry] = []
    by_name: dict[int | str | None, _Entry] = {}
    lost = 0
    for row in rows:
        if row.error is None and row.image is None and missing != "ignore":
            row = replace(row, error="no image named: expected 'image' or 'file_name'")
        if row.error is None and not row.captioned:
            row = replace(row, error="no captions: expected 'captions' or 'caption'")
        if row.error is not None:
            raise DataError(f"{row.place}: {row.error}")
        entry = None if row.complete else by_name.get(row.image or row.image_id)
        if entry is None:
            entry = _Entry(row)
            entries.append(entry)
            by_name[row.image or row.image_id] = entry
        elif entry.first.split != row.split:
            raise DataError(f"{row.place}: {row.image} is in another split in {entry.first.place}")
        entry.captions += [text for caption in row.captions if (text := caption.strip())]
        entry.ids.add(row.image_id)
        lost += row.missing
    if lost:
        logger.warning("left out %d missing caption(s) (null, nan, None)", lost)
    return entries


def find_images(
    examples: Sequence[Example],
    source: Path,
    image_root: str | os.PathLike[str] | None,
    missing: Missing = "error",
) -> list[Example]:
    """Replace the file names in examples by paths that exist.

    Images without captions are left out, with a warning.

    Args:
        examples: As the file has them: `image` is a file name, perhaps with folders.
        source: The captions file.
        image_root: Folder of the images; None looks in `images` beside the file, then beside it.
            Only the last part of a name is looked for where the whole is not found.
        missing: `error`, `skip` to leave images out that do not exist (with a warning), or
            `ignore` to leave all names as they are.

    Raises:
        DataError: Images are missing, or nothing is left.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing must be 'error', 'skip' or 'ignore', not {missing!r}")
    captioned = [example for example in examples if example.captions]
    if len(captioned) < len(examples):
        silent = [example.image for example in examples if not example.captions]
        logger.warning(
            "%s: left out %d image(s) without a caption: %s", source, len(silent), some(silent)
        )
    if not captioned:
        raise DataError(f"{source}: no image with a caption in it")
    if missing == "ignore":
        return captioned
    finder = ImageFinder(source, image_root)
    found, lost = [], []
    for example in captioned:
        path = finder.find(example.image, by_last_part=True)
        if path is None:
            lost.append(example.image)
        else:
            found.append(replace(example, image=path))
    if lost:
        places = " and ".join(root or "." for root in finder.roots)
        message = f"{source}: {len(lost)} of {len(captioned)} images not found: {some(lost)}"
        if missing == "error" or not found:
            raise DataError(
                f"{message}; looked in {places}: name their folder by --images (in a recipe by"
                " images, below data.root; in Python by image_root, or leave them out with"
                " missing='skip')"
            )
        logger.warning("%s; looked in %s; left out", message, places)
    return found


class ImageFinder:
    r"""Finds listed images on the disk.

    Names may have `\` between folders, and letters of another encoding.

    Args:
        source: The file that lists them.
        image_root: Folder of the images; None looks in `images` beside the file (in any case of
            letters), then beside it.
        cwd: With no `image_root`, look beside the file first, then in the working directory and in
            `images`.

    Attributes:
        folder: Where an image that is nowhere should have been.
        roots: The folders, in the order in which they are searched.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        image_root: str | os.PathLike[str] | None = None,
        *,
        cwd: bool = False,
    ) -> None:
        self.folder = os.path.dirname(source) if image_root is None else os.fspath(image_root)
        self.roots = [self.folder]
        if image_root is None:
            try:
                names = sorted(n for n in os.listdir(self.folder or ".") if n.lower() == "images")
            except OSError:
                names = []
            inside = [os.path.join(self.folder, name) for name in names or ["images"]]
            self.roots = [self.folder, "", *inside] if cwd else [*inside, self.folder]

    def find(self, name: str, *, by_last_part: bool = False) -> str | None:
        """Return the path of an image, None if it is in none of the folders.

        Args:
            name: As the file has it; absolute ones are taken as they are.
            by_last_part: Where the whole name is not found, look for its last part alone, and for
                COCO's images in the folders that COCO has.
        """
        names = dict.fromkeys([name, mend_text(name), mend_text(name).replace("\\", "/")])
        if by_last_part:
            last = re.split(r"[/\\]", mend_text(name))[-1]
            names[os.path.basename(name)] = names[last] = None
            if match := re.match(r"COCO_([a-z]+\d{4})_", last):
                names[f"{match[1]}/{last}"] = None
        for each in names:
            for root in self.roots:
                path = os.path.join(root, each)
                try:
                    if os.path.isfile(path):
                        return path
                except ValueError:  # a NUL in the name
                    return None
        return None


def _choose_split(examples: Sequence[Example], source: Path, split: str | None) -> list[Example]:
    """Return the examples of one split, or all of them for None.

    Raises:
        DataError: The file has no such split; the message lists those that it has.
    """
    chosen = [example for example in examples if split in (None, example.split)]
    if examples and not chosen:
        names = ", ".join(sorted({example.split for example in examples}))
        raise DataError(f"{source}: no split {split!r} in it, only {names}")
    return chosen
