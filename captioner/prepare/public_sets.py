"""Captions and splits of the public data sets, from any of the files in which they are passed on.

COCO 2014 and 2017 hold the same 123,287 captioned images in different splits. Two versions are
written: the official split (train and val; the captions of the test images were never published)
and Karpathy's, which papers compare on. His ids are part of the package; the captions come from the
annotation files, or from his own `dataset_coco.json` where there are none.

Flickr8k and Flickr30k. Captions: Karpathy's `dataset_flickr8k.json`, the token files
(`Flickr8k.token.txt`, `results_20130124.token`: `photo.jpg#0 <tab> caption`) or Kaggle's tables
(`captions.txt`, `results.csv`). Splits: Karpathy's file, `Flickr_8k.trainImages.txt` and its like,
or the lists of Flickr30k Entities (`train.txt`, `val.txt`, `test.txt`: image numbers).
"""

from __future__ import annotations

import functools
import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from captioner.data.annotations import Example, read_captions
from captioner.data.fields import some
from captioner.data.records import read_text
from captioner.errors import DataError
from captioner.prepare.custom import read_table
from captioner.prepare.registry import ARCHIVES, KARPATHY, FileIndex
from captioner.prepare.write import Version

logger = logging.getLogger(__name__)

# Images in each split of the complete sets.
_COCO_OFFICIAL = {
    "2014": {"train": 82_783, "val": 40_504},
    "2017": {"train": 118_287, "val": 5_000},
}
_COCO_KARPATHY = {"train": 113_287, "val": 5_000, "test": 5_000}
_FLICKR_KARPATHY = {
    "flickr8k": {"train": 6_000, "val": 1_000, "test": 1_000},
    "flickr30k": {"train": 29_000, "val": 1_014, "test": 1_000},
}
_FLICKR_LISTED = {
    "flickr8k": ("official", {"train": 6_000, "val": 1_000, "test": 1_000}),
    "flickr30k": ("entities", {"train": 29_783, "val": 1_000, "test": 1_000}),
}
_FLICKR_CAPTIONS = {
    "flickr8k": ("Flickr8k.token.txt", "captions.txt", "captions.csv"),
    "flickr30k": ("results_20130124.token", "results.csv", "captions.txt", "captions.csv"),
}
_FLICKR_LISTS = {
    "flickr8k": {
        "train": "Flickr_8k.trainImages.txt",
        "val": "Flickr_8k.devImages.txt",
        "test": "Flickr_8k.testImages.txt",
    },
    "flickr30k": {"train": "train.txt", "val": "val.txt", "test": "test.txt"},
}


# ------------------------------------------------------------------------------------------- COCO


def coco_versions(year: str, index: FileIndex) -> list[Version]:
    """Read COCO's captions.

    Args:
        year: `2014` or `2017`.
        index: Where the files are: `captions_train2014.json` (or `captions_train.json`) and the
            same for val, or else `dataset_coco.json`.

    Raises:
        DataError: There are no captions, or a file is damaged.
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
    return [_karpathy(official), Version("official", official, _COCO_OFFICIAL[year])]


def _karpathy(examples: Sequence[Example]) -> Version:
    examples = [replace(item, split=karpathy_split(item.image_id)) for item in examples]
    return Version("karpathy", examples, _COCO_KARPATHY)


def _from_karpathy(path: Path, year: str) -> list[Version]:
    """Read Karpathy's file; its image names tell the official split of 2014."""
    logger.info("reading %s", path)
    examples = read_captions(path, missing="ignore")
    # Splits come from the ids, not from the file: a file that somebody has changed would go
    # unnoticed.
    versions = [_karpathy(examples)]
    if year == "2014":
        official = [
            replace(item, split="val" if "val2014" in item.image else "train") for item in examples
        ]
        versions.append(Version("official", official, _COCO_OFFICIAL[year]))
    return versions


@functools.cache
def karpathy_ids() -> tuple[frozenset[int], frozenset[int]]:
    """Return the COCO ids of the 5,000 validation and the 5,000 test images."""
    # The file holds the gaps between sorted ids, 16 bits each.
    packed = resources.files(__package__).joinpath("karpathy_ids.bin").read_bytes()
    gaps = np.frombuffer(zlib.decompress(packed), "<u2").reshape(2, -1)
    val, test = gaps.cumsum(axis=1).tolist()
    return frozenset(val), frozenset(test)


def karpathy_split(image_id: int | str) -> str:
    """Return `val`, `test`, or `train` (which includes restval) for a COCO image id."""
    val, test = karpathy_ids()
    return "val" if image_id in val else "test" if image_id in test else "train"


# ----------------------------------------------------------------------------------------- Flickr


def flickr_versions(name: str, index: FileIndex) -> list[Version]:
    """Read the captions and splits of Flickr8k or Flickr30k.

    Args:
        name: `flickr8k` or `flickr30k`.
        index: Where the files are.

    Raises:
        DataError: There are no captions or no split, or a file is damaged.
    """
    versions = []
    karpathy = index.find(f"dataset_{name}.json")
    if karpathy is not None:
        logger.info("reading %s", karpathy)
        examples = [
            # Its numbers mean nothing outside of the file, so the image's name becomes the id.
            replace(item, image_id=Path(item.image).name)
            for item in read_captions(karpathy, missing="ignore")
        ]
        versions.append(Version("karpathy", examples, _FLICKR_KARPATHY[name]))
    tokens = index.find(*_FLICKR_CAPTIONS[name])
    lists = {split: index.find(file) for split, file in _FLICKR_LISTS[name].items()}
    if tokens is not None and all(lists.values()):
        logger.info("reading %s", tokens)
        captions = read_token_file(Path(tokens))
        splits = {split: _read_list(Path(path)) for split, path in lists.items() if path}
        title, expected = _FLICKR_LISTED[name]
        versions.append(Version(title, _join(captions, splits), expected))
    if not versions:
        raise DataError(_advice(name, index, tokens, lists))
    return versions


def read_token_file(path: Path) -> dict[str, list[str]]:
    """Return the captions of each image in a token file or a table, in the order of the file.

    Raises:
        DataError: It is neither.
    """
    captions: dict[str, list[str]] = {}
    for row in read_table(path):
        texts = [text for caption in row.captions if (text := caption.strip())]
        captions.setdefault(row.image or "", []).extend(texts)
    return captions


def _read_list(path: Path) -> list[str]:
    """Read file names, one per line; bare numbers are image numbers."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    bad = [name for name in names if not re.fullmatch(r"\d+|[\w.-]+\.jpe?g", name)]
    if bad:
        raise DataError(f"{path}: not a list of photos: {some(bad)}")
    return [f"{name}.jpg" if name.isdigit() else name for name in names]


def _join(captions: Mapping[str, list[str]], splits: Mapping[str, list[str]]) -> list[Example]:
    """Return the images of the lists with their captions; images in no list are left out."""
    places: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if places.setdefault(name, split) != split:
                raise DataError(f"{name} is in two lists: {places[name]} and {split}")
    unlisted = sum(name not in places for name in captions)
    if unlisted:
        logger.info("%d captioned photos are in no split and left out", unlisted)
    silent = [name for name in places if not captions.get(name)]
    if silent:
        logger.warning("%d photos have no captions: %s", len(silent), some(silent))
    return [
        Example(name, tuple(captions[name]), split, name)
        for name, split in places.items()
        if captions.get(name)
    ]


def _advice(
    name: str, index: FileIndex, tokens: str | None, lists: Mapping[str, str | None]
) -> str:
    """Say what is missing and where to get it."""
    where = " and ".join(str(folder) for folder in index.folders)
    karpathy = f"dataset_{name}.json (in {KARPATHY.name}: {KARPATHY.describe()}, {KARPATHY.url})"
    if tokens is None:
        wanted = f"{karpathy} or {_FLICKR_CAPTIONS[name][0]}"
        return f"{where}: no captions found: put {wanted} there"
    absent = ", ".join(_FLICKR_LISTS[name][split] for split, path in lists.items() if path is None)
    text = f"{where}: {Path(tokens).name} is there but no split: add {karpathy} or {absent}"
    if name == "flickr8k":
        text += f" (in {ARCHIVES[name][0].name}, {ARCHIVES[name][0].url})"
    return text + f", or make a split of your own: captioner prepare csv {tokens}"
