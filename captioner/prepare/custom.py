"""One's own captions: gathered by image, checked, and split so that no image is in two splits."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from captioner.data.annotations import Example, find_images
from captioner.data.fields import Row, some
from captioner.data.records import read_rows, read_text
from captioner.errors import ConfigError, DataError
from captioner.image.io import IMAGE_SUFFIXES
from captioner.prepare.near_duplicates import fingerprints, gather, groups
from captioner.prepare.write import count_splits
from captioner.tokenizer import tokenize

logger = logging.getLogger(__name__)

_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names in use for a split, in lower case -> its usual name."""

_SHOWN = 10  # words in the report


@dataclass
class Report:
    """What was found in a set of captions; lists hold names of images.

    Attributes:
        missing: Named, but not on disk. Left out.
        unreadable: Image -> why it cannot be read. Left out.
        uncaptioned: Without any caption. Left out.
        strays: Text files without an image.
        empty: Captions without a word. Left out.
        repeated: Captions that an image has twice. Left out.
        shared: Caption -> number of images, for captions of several images.
        long: Captions with many words.
        conflicts: Named in two splits; the first counts.
        identical: Groups of images whose files are the same.
        similar: Groups of images that are the same or nearly, with their splits.
        leaks: Those of the groups that lie in several splits.
        splits_given: The splits are the file's own.
        unassigned: Images that had no split while others had; they train.
        splits: Images in each split.
        words: Figures of the words.
    """

    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, str | None] = field(default_factory=dict)
    uncaptioned: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)
    long: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    identical: list[list[str]] = field(default_factory=list)
    similar: list[list[str]] = field(default_factory=list)
    leaks: list[list[str]] = field(default_factory=list)
    splits_given: bool = False
    unassigned: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    max_words: int = 0

    @property
    def failed(self) -> int:
        """Return the number of images that had captions and were left out all the same."""
        return len(self.missing) + len(self.unreadable)

    def count(self, examples: Sequence[Example], max_words: int) -> None:
        """Count the captions that are kept."""
        self.max_words = max_words
        self.splits = count_splits(examples)
        vocabulary: Counter[str] = Counter()
        trained: set[str] = set()
        lengths = []
        images_with: Counter[str] = Counter()
        for example in examples:
            for caption in example.captions:
                words = tokenize(caption)
                vocabulary.update(words)
                lengths.append(len(words))
                images_with[" ".join(words)] += 1
                if example.split == "train":
                    trained.update(words)
                if len(words) > max_words:
                    self.long.append(f"{example.image_id}: {len(words)} words")
        self.shared = {text: number for text, number in images_with.most_common() if number > 1}
        self.words = {
            "captions": len(lengths),
            "captions_per_photo": len(lengths) / len(examples),
            "words": int(sum(lengths)),
            "distinct": len(vocabulary),
            "once": sum(count == 1 for count in vocabulary.values()),
            "untrained": len(set(vocabulary) - trained),
            "length_mean": float(np.mean(lengths)),
            "length_median": float(np.median(lengths)),
            "length_max": int(max(lengths)),
            "most_frequent": vocabulary.most_common(_SHOWN),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {**vars(self), "photos": sum(self.splits.values())}

    def lines(self) -> list[str]:
        """Return the findings in a few lines; what is in order is not mentioned."""
        words = self.words
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        lines = [
            f"{sum(self.splits.values()):,} photos ({splits}), {words['captions']:,} captions",
            f"{words['length_mean']:.1f} words a caption (median {words['length_median']:g},"
            f" longest {words['length_max']}), {words['distinct']:,} different words,"
            f" {words['once']:,} of them once, {words['untrained']:,} not in train",
        ]

        def say(text: str, found: Sequence[str]) -> None:
            """Add a line that counts what was found and gives examples."""
            if found:
                lines.append(f"{text}: {len(found):,} ({some(found)})")

        say("photos missing, left out", self.missing)
        reasons = [str(reason) for reason in self.unreadable.values()]
        say("photos that cannot be read, left out", reasons)
        say("photos without a caption, left out", self.uncaptioned)
        say("text files without a photo", self.strays)
        say("empty captions (or null, nan), left out", self.empty)
        say("captions that their photo has already, left out", self.repeated)
        shared = [f"{text!r} {number} times" for text, number in self.shared.items()]
        say("captions that several photos share", shared)
        say(f"captions of more than {self.max_words} words, which training cuts", self.long)
        say("photos named in two splits, the first counts", self.conflicts)
        say("groups of identical files", [" = ".join(names) for names in self.identical])
        kept = "" if self.splits_given else ", each kept in one split"
        alike = [" ~ ".join(names) for names in self.similar]
        say(f"groups of photos that are the same or nearly{kept}", alike)
        leaks = [" ~ ".join(names) for names in self.leaks]
        say("such groups in several splits, which makes scores too good", leaks)
        if self.unassigned:
            lines.append(
                f"photos without a split where others have one, taken to train: {self.unassigned:,}"
            )
        return lines


@dataclass
class _Captioned:
    """The content of all rows about one image."""

    captions: dict[str, str] = field(default_factory=dict)  # normalised -> as written
    split: str | None = None


def read_table(path: Path) -> list[Row]:
    """Read a captions file in any form that `captioner.data.records` knows.

    Raises:
        DataError: The file is of no known form or an entry is wrong; the message has the line.
    """
    rows = []
    for row in read_rows(path, captioned=True):
        if row.error is not None or row.image is None:
            raise DataError(f"{row.place}: {row.error or 'no image named'}")
        rows.append(row)
    return rows


def read_folder(folder: Path) -> tuple[list[Row], list[str]]:
    """Find the images of a folder and its subfolders, captioned by text files of the same name.

    Args:
        folder: `dog.jpg` is captioned by `dog.txt`, one caption per line.

    Returns:
        A row for each image, its captions empty where there is no text file, in the order of the
        paths; and the text files without an image.

    Raises:
        DataError: The folder does not exist, or a text file cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    images: list[Path] = []
    texts: set[Path] = set()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                images.append(path)
            elif path.suffix.lower() == ".txt":
                texts.add(path)
    rows = []
    used = set()
    for path in sorted(images):
        text = path.with_suffix(".txt")
        lines: list[str] = []
        if text in texts:
            used.add(text)
            lines = read_text(text).splitlines()
        # A blank line at the end is no caption; a file of blank lines is an empty one.
        captions = tuple(line for line in lines if line.strip()) or ("",) * bool(text in texts)
        rows.append(Row(str(text), path.relative_to(folder).as_posix(), captions=captions))
    return rows, sorted(str(path) for path in texts - used)


def check_and_split(
    rows: Iterable[Row],
    source: Path,
    image_root: Path | None,
    *,
    val: float = 0.1,
    test: float = 0.0,
    seed: int = 0,
    max_words: int = 30,
    report: Report | None = None,
    advance: Callable[[], object] = lambda: None,
) -> tuple[list[Example], Report]:
    """Turn rows into images with captions and splits, and report what is wrong with them.

    Empty captions, repeated captions of an image, and images without a caption, missing or
    unreadable are left out. Splits that the rows name are kept. Otherwise images are split by
    `seed`, and images that are the same or nearly so go to the same split.

    Args:
        rows: The rows of a file or folder.
        source: That file or folder.
        image_root: Folder of the images; None looks in `images` beside the file, then beside it.
        val: Share of the images for validation.
        test: Share of the images for testing.
        seed: Seed of the split.
        max_words: Captions with more words are reported (and kept: training cuts them).
        report: Goes on with this one.
        advance: Called for each image that was looked at.

    Raises:
        ConfigError: The shares leave nothing to train on.
        DataError: No image is left.
    """
    if val < 0 or test < 0 or val + test >= 1:
        raise ConfigError(
            f"--val {val:g} and --test {test:g}: shares of at least 0, below 1 together"
        )
    report = report or Report()
    images = _merge(rows, report)
    candidates = []
    for name, image in images.items():
        if image.captions:
            captions = tuple(image.captions.values())
            candidates.append(Example(name, captions, image.split or "", name))
        else:
            report.uncaptioned.append(name)
    if not candidates:
        raise DataError(f"{source}: no photo with a caption in it")
    examples = find_images(candidates, source, image_root, missing="skip")
    there = {example.image_id for example in examples}
    report.missing += [item.image for item in candidates if item.image_id not in there]

    prints = fingerprints([example.image for example in examples], advance)
    report.unreadable.update(
        {str(e.image_id): p.error for e, p in zip(examples, prints, strict=True) if p.error}
    )
    kept = [(e, p) for e, p in zip(examples, prints, strict=True) if p.error is None]
    if not kept:
        raise DataError(f"{source}: none of the photos can be read")
    examples = [example for example, _ in kept]
    numbers, identical = groups([item for _, item in kept])
    names = [str(example.image_id) for example in examples]
    report.identical += [[names[index] for index in indices] for indices in identical]

    given = any(example.split for example in examples)
    if given:
        logger.info("%s names splits: they are kept", source)
        splits = [example.split or "train" for example in examples]
        report.unassigned = sum(not example.split for example in examples)
    else:
        splits = draw_splits(names, numbers.tolist(), {"val": val, "test": test}, seed)
    examples = [replace(item, split=name) for item, name in zip(examples, splits, strict=True)]
    for indices in gather(numbers):
        alike = [f"{names[index]} ({splits[index]})" for index in indices]
        report.similar.append(alike)
        if len({splits[index] for index in indices}) > 1:
            report.leaks.append(alike)
    report.splits_given = given
    report.count(examples, max_words)
    return examples, report


def draw_splits(
    names: Sequence[str], numbers: Sequence[int], shares: Mapping[str, float], seed: int
) -> list[str]:
    """Assign images to splits, group by group.

    A group's place in the order is a hash of the seed and its first name, so that adding images
    moves few of the others.

    Args:
        names: Names of the images.
        numbers: The group of each image; a group stays together.
        shares: Split -> share of the images; the rest is `train`. A share above 0 gets at least one
            image if there are enough groups.
        seed: Seed of the order.

    Returns:
        The split of each image.
    """
    members: dict[int, list[int]] = {}
    for index, number in enumerate(numbers):
        members.setdefault(number, []).append(index)

    def place(indices: list[int]) -> bytes:
        text = f"{seed}\0{min(names[index] for index in indices)}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()

    order = sorted(members.values(), key=place)
    splits = ["train"] * len(names)
    for split, share in shares.items():
        wanted = max(1, round(share * len(names))) if share > 0 else 0
        later: list[list[int]] = []
        for number, indices in enumerate(order):
            last = number == len(order) - 1 and not later  # something to train on stays
            if wanted >= len(indices) and not last:
                for index in indices:
                    splits[index] = split
                wanted -= len(indices)
            else:
                later.append(indices)
        order = later
    return splits


def _merge(rows: Iterable[Row], report: Report) -> dict[str, _Captioned]:
    """Return the images of all rows by name, in order, with their captions once each."""
    images: dict[str, _Captioned] = {}
    for row in rows:
        assert row.image is not None  # see `read_table`
        image = images.setdefault(row.image, _Captioned())
        report.empty += [f"{row.image} ({row.place})"] * row.missing
        for caption in row.captions:
            words = " ".join(tokenize(caption))
            if not words:
                report.empty.append(f"{row.image} ({row.place})")
            elif words in image.captions:
                report.repeated.append(f"{row.image}: {caption.strip()}")
            else:
                image.captions[words] = caption.strip()
        split = _NAMES.get(row.split.lower(), row.split) if row.split else None
        if split and image.split and split != image.split:
            report.conflicts.append(f"{row.image} ({row.place})")
        image.split = image.split or split
    return images
