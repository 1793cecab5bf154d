"""Write the caption files of a data set after checking that it is complete."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from captioner.data.annotations import Example
from captioner.data.fields import some
from captioner.errors import DataError
from captioner.prepare.registry import FileIndex, relative_to
from captioner.utils.files import replacing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """One way to split a data set: a caption file to write.

    Attributes:
        name: `karpathy`, `official`, ...: the file is `captions_NAME.jsonl`.
        examples: Images with captions and splits; `image` is a file name, yet to be found.
        expected: Images in each split of the complete set.
    """

    name: str
    examples: Sequence[Example]
    expected: Mapping[str, int]


@dataclass(frozen=True)
class Written:
    """A caption file that was written.

    Attributes:
        path: The file.
        images: Number of images in each split.
        captions: Number of captions in all.
    """

    path: Path
    images: Mapping[str, int]
    captions: int

    def line(self) -> str:
        """Return the file and its counts in one line."""
        splits = ", ".join(f"{name} {count:,}" for name, count in self.images.items())
        return f"{self.path}: {splits} photos, {self.captions:,} captions"


def write_versions(
    versions: Iterable[Version], index: FileIndex, root: Path, *, partial: bool = False
) -> list[Written]:
    """Find the images and write `captions_NAME.jsonl` into `root` for each version.

    Args:
        versions: What to write.
        index: Where the images are.
        root: Folder of the data set.
        partial: Accept an incomplete set and write what is there.

    Raises:
        DataError: Images or captions are missing, and `partial` is off or nothing is left.
    """
    ready: list[tuple[Version, list[Example]]] = []
    lacks: dict[str, None] = {}  # in order, each once
    for version in versions:
        found, lost = _find_images(version.examples, index)
        if lost:
            lacks[f"{len(lost):,} of {len(version.examples):,} photos ({some(lost)})"] = None
        counts = Counter(example.split for example in version.examples)
        for split, expected in version.expected.items():
            if counts[split] != expected:
                text = f"{version.name} {split}: captions of {counts[split]:,} photos"
                lacks[f"{text} where {expected:,} are expected"] = None
        ready.append((version, found))
    for text in lacks:
        logger.warning("missing: %s", text)
    if lacks and not partial:
        raise DataError(
            f"{' and '.join(str(folder) for folder in index.folders)}: not complete, see"
            f" above; --partial takes what is there"
        )
    if not any(found for _, found in ready):
        raise DataError("none of the photos is there")
    return [
        write_captions(root / f"captions_{version.name}.jsonl", found) for version, found in ready
    ]


def write_captions(path: Path, examples: Sequence[Example]) -> Written:
    """Write images with captions as JSONL, which `read_captions` reads; whole or not at all.

    Images below the file's folder are named relative to it, others by their absolute path.

    Args:
        path: The file.
        examples: What to write; `image` is an existing file.
    """
    # A file name that is not UTF-8 is kept as a JSON escape, which is read as the same name.
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for example in examples:
            record = {
                "image": relative_to(example.image, path.parent),
                "captions": list(example.captions),
                "split": example.split,
                "image_id": example.image_id,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    captions = sum(len(example.captions) for example in examples)
    return Written(path, count_splits(examples), captions)


def count_splits(examples: Iterable[Example]) -> dict[str, int]:
    """Return the number of images in each split, in the usual order."""
    counts = Counter(example.split for example in examples)
    order = dict.fromkeys(["train", "val", "test", *sorted(counts)])
    return {name: counts[name] for name in order if counts[name]}


def _find_images(examples: Iterable[Example], index: FileIndex) -> tuple[list[Example], list[str]]:
    """Return the examples with paths, and the names of images that are missing."""
    found, lost = [], []
    for example in examples:
        names = [example.image]
        if isinstance(example.image_id, int):  # COCO names the same image in three ways
            number = f"{example.image_id:012}.jpg"
            names += [number, f"COCO_train2014_{number}", f"COCO_val2014_{number}"]
        path = index.find(*names)
        if path is None:
            lost.append(example.image)
        else:
            found.append(replace(example, image=path))
    return found, lost
