"""Flickr8k and Flickr30k, from any of the forms in which they go round.

Captions: Karpathy's `dataset_flickr8k.json`, the token files (`Flickr8k.token.txt`,
`results_20130124.token`: `photo.jpg#0 <tab> caption`) or the tables of Kaggle
(`captions.txt`, `results.csv`). Splits: Karpathy's file, `Flickr_8k.trainImages.txt` and its
like, or the lists of Flickr30k Entities (`train.txt`, `val.txt`, `test.txt`: photo numbers).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from captioner.data.annotations import Example, read_captions
from captioner.data.fields import some
from captioner.data.records import read_rows, read_text
from captioner.errors import DataError
from captioner.prepare.file_index import FileIndex
from captioner.prepare.registry import ARCHIVES, KARPATHY
from captioner.prepare.write import Version

logger = logging.getLogger(__name__)

_CAPTIONS = {
    "flickr8k": ("Flickr8k.token.txt", "captions.txt", "captions.csv"),
    "flickr30k": ("results_20130124.token", "results.csv", "captions.txt", "captions.csv"),
}
_LISTS = {
    "flickr8k": {
        "train": "Flickr_8k.trainImages.txt",
        "val": "Flickr_8k.devImages.txt",
        "test": "Flickr_8k.testImages.txt",
    },
    "flickr30k": {"train": "train.txt", "val": "val.txt", "test": "test.txt"},
}
_KARPATHY = {
    "flickr8k": {"train": 6_000, "val": 1_000, "test": 1_000},
    "flickr30k": {"train": 29_000, "val": 1_014, "test": 1_000},
}
_LISTED = {
    "flickr8k": ("official", {"train": 6_000, "val": 1_000, "test": 1_000}),
    "flickr30k": ("entities", {"train": 29_783, "val": 1_000, "test": 1_000}),
}


def flickr_versions(name: str, index: FileIndex) -> list[Version]:
    """Read the captions and splits of Flickr8k or Flickr30k.

    Args:
        name: `flickr8k` or `flickr30k`.
        index: Where the files are.

    Raises:
        DataError: No captions, no split, or a damaged file.
    """
    versions = []
    karpathy = index.find(f"dataset_{name}.json")
    if karpathy is not None:
        logger.info("reading %s", karpathy)
        examples = [
            # Its numbers say nothing outside of the file: the photo's name is the id.
            Example(item.image, item.captions, item.split, Path(item.image).name)
            for item in read_captions(karpathy, missing="ignore")
        ]
        versions.append(Version("karpathy", examples, _KARPATHY[name]))
    tokens = index.find(*_CAPTIONS[name])
    lists = {split: index.find(file) for split, file in _LISTS[name].items()}
    if tokens is not None and all(lists.values()):
        logger.info("reading %s", tokens)
        captions = read_token_file(Path(tokens))
        splits = {split: _read_list(Path(path)) for split, path in lists.items() if path}
        title, expected = _LISTED[name]
        versions.append(Version(title, _join(captions, splits), expected))
    if not versions:
        raise DataError(_advice(name, index, tokens, lists))
    return versions


def read_token_file(path: Path) -> dict[str, list[str]]:
    """Captions by photo, from a token file or a table, in the order of the file.

    Raises:
        DataError: It is neither.
    """
    captions: dict[str, list[str]] = {}
    for row in read_rows(path, captioned=True):
        if row.error is not None or row.image is None:
            raise DataError(f"{row.place}: {row.error or 'no image named'}")
        texts = [text for caption in row.captions if (text := caption.strip())]
        captions.setdefault(row.image, []).extend(texts)
    return captions


def _read_list(path: Path) -> list[str]:
    """File names, one a line; bare numbers are photo numbers."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    bad = [name for name in names if not re.fullmatch(r"\d+|[\w.-]+\.jpe?g", name)]
    if bad:
        raise DataError(f"{path}: not a list of photos: {some(bad)}")
    return [f"{name}.jpg" if name.isdigit() else name for name in names]


def _join(captions: Mapping[str, list[str]], splits: Mapping[str, list[str]]) -> list[Example]:
    """Photos of the lists with their captions; photos in no list are left out."""
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
    """What is missing, and where it is to be had."""
    where = " and ".join(str(folder) for folder in index.folders)
    karpathy = f"dataset_{name}.json (in {KARPATHY.name}: {KARPATHY.describe()}, {KARPATHY.url})"
    if tokens is None:
        wanted = f"{karpathy} or {_CAPTIONS[name][0]}"
        return f"{where}: no captions found: put {wanted} there"
    absent = ", ".join(_LISTS[name][split] for split, path in lists.items() if path is None)
    text = f"{where}: {Path(tokens).name} is there but no split: add {karpathy} or {absent}"
    if name == "flickr8k":
        text += f" (in {ARCHIVES[name][0].name}, {ARCHIVES[name][0].url})"
    return text + f", or make a split of your own: captioner prepare csv {tokens}"
