"""COCO 2014 and 2017: the same 123,287 captioned photos, dealt out differently.

Two versions are written: the official split (train and val; the captions of the test photos were
never published) and Karpathy's, which papers compare on. His ids are part of the package; the
captions come from the annotation files, or from his own `dataset_coco.json` where there is no
other.
"""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from captioner.data.annotations import Example, read_captions
from captioner.errors import DataError
from captioner.prepare.file_index import FileIndex
from captioner.prepare.registry import ARCHIVES
from captioner.prepare.write import Version

logger = logging.getLogger(__name__)

_PHOTOS = {
    "2014": {"train": 82_783, "val": 40_504},
    "2017": {"train": 118_287, "val": 5_000},
}
_KARPATHY = {"train": 113_287, "val": 5_000, "test": 5_000}


def coco_versions(year: str, index: FileIndex) -> list[Version]:
    """Read COCO's captions.

    Args:
        year: `2014` or `2017`.
        index: Where the files are: `captions_train2014.json` (or `captions_train.json`) and the
            same for val, else `dataset_coco.json`.

    Raises:
        DataError: No captions, or a damaged file.
    """
    official: list[Example] = []
    absent = []
    for split in ("train", "val"):
        name = f"captions_{split}{year}.json"
        path = index.find(name, f"captions_{split}.json")
        if path is None:
            absent.append(name)
        else:
            logger.info("reading %s", path)
            official += read_captions(path, split=split, missing="ignore")
    karpathy_json = index.find("dataset_coco.json")
    if absent and karpathy_json is not None:
        return _from_karpathy(Path(karpathy_json), year)
    if not official:
        archive = ARCHIVES[f"coco{year}"][0]
        raise DataError(
            f"{index.folders[0]}: neither {' and '.join(absent)} (in {archive.name}:"
            f" {archive.describe()}, {archive.url}) nor dataset_coco.json"
        )
    return [_karpathy(official), Version("official", official, _PHOTOS[year])]


def _karpathy(examples: Sequence[Example]) -> Version:
    examples = [replace(item, split=karpathy_split(item.image_id)) for item in examples]
    return Version("karpathy", examples, _KARPATHY)


def _from_karpathy(path: Path, year: str) -> list[Version]:
    """From Karpathy's file, whose photo names tell the official split of 2014."""
    logger.info("reading %s", path)
    examples = read_captions(path, missing="ignore")
    # Not by its own split names: a file that somebody has changed would go unnoticed.
    versions = [_karpathy(examples)]
    if year == "2014":
        official = [
            replace(item, split="val" if "val2014" in item.image else "train") for item in examples
        ]
        versions.append(Version("official", official, _PHOTOS[year]))
    return versions


@functools.cache
def karpathy_ids() -> tuple[frozenset[int], frozenset[int]]:
    """COCO image ids of the validation and the test photos."""
    packed = resources.files(__package__).joinpath("karpathy_ids.bin").read_bytes()
    val, test = _unpack_ids(packed)
    return frozenset(val), frozenset(test)


def karpathy_split(image_id: int | str) -> str:
    """`val`, `test`, or `train` (restval among it) for a COCO image id."""
    val, test = karpathy_ids()
    return "val" if image_id in val else "test" if image_id in test else "train"


def _unpack_ids(packed: bytes) -> list[list[int]]:
    """The lists of a packed file, each in ascending order.

    A list is stored as the gaps between neighbours, seven bits to a byte with the lowest first (the
    high bit says that the number goes on); a gap of 0 ends it, and all is compressed by zlib.
    """
    lists: list[list[int]] = []
    current: list[int] = []
    previous, gap, shift = -1, 0, 0
    for byte in zlib.decompress(packed):
        gap |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            continue
        if gap:
            previous += gap
            current.append(previous)
        else:
            lists.append(current)
            current, previous = [], -1
        gap = shift = 0
    return lists
