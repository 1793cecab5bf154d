"""Find images that are the same, or nearly, by their fingerprints.

The fingerprint is the difference hash (dHash): the image in grey, shrunk to 9 × 8 and to 8 × 9
pixels, and for each pair of neighbours, across and down, a bit that tells which one is brighter:
128 bits. Two images are near-duplicates if at most `NEAR` bits differ. That finds images saved
anew, in another size or quality, or slightly retouched. It does not find cut, turned or mirrored
ones, nor a second image of the same scene; images of almost a single tone have no fingerprint.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from captioner.errors import ImageError
from captioner.image.io import open_image
from captioner.utils.parallel import map_ahead

NEAR = 10
"""Most bits of 128 in which the fingerprints of near-duplicates differ."""

_SHRINK = 32  # pixels that a JPEG keeps at least when it is read for a fingerprint
_PLAIN = 8  # bits that an image with a fingerprint has at least, of either value

_ONES = np.array([number.bit_count() for number in range(1 << 16)], dtype=np.uint8)


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of an image file.

    Attributes:
        bits: (8,) uint16, the difference hash; None for an image of almost a single tone.
        content: A checksum of the file.
        error: Why the image cannot be read; then the others are empty.
    """

    bits: np.ndarray | None
    content: bytes
    error: str | None = None


def fingerprint(path: str) -> Fingerprint:
    """Read an image whole, so that damage is found, and take its fingerprint."""
    try:
        image = open_image(path, shrink_to=_SHRINK).convert("L")
        with open(path, "rb") as file:
            content = hashlib.blake2b(file.read(), digest_size=16).digest()
    except (ImageError, OSError) as error:
        return Fingerprint(None, b"", str(error))
    across = np.asarray(image.resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    down = np.asarray(image.resize((8, 9), Image.Resampling.LANCZOS), dtype=np.int16)
    bright = np.concatenate(
        [(across[:, 1:] > across[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()]
    )
    if not _PLAIN <= bright.sum() <= bright.size - _PLAIN:
        return Fingerprint(None, content)
    return Fingerprint(np.packbits(bright).view(np.uint16), content)


def fingerprints(
    paths: Sequence[str], advance: Callable[[], object] = lambda: None
) -> list[Fingerprint]:
    """Take the fingerprints of many images in threads; `advance` is called after each."""
    workers = min(32, os.cpu_count() or 1)
    results = []
    for result in map_ahead(fingerprint, paths, workers=workers, depth=4 * workers):
        results.append(result)
        advance()
    return results


def near_pairs(bits: np.ndarray, distance: int = NEAR) -> np.ndarray:
    """Find all pairs of fingerprints that differ in few bits.

    The bits are cut into one band more than may differ, so that near fingerprints agree in at least
    one band. Sorting finds these without comparing all with all.

    Args:
        bits: (N, 8) uint16, all different.
        distance: The most bits in which a pair may differ.

    Returns:
        (P, 2) indices, the smaller first, sorted.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    columns = np.unpackbits(bits.view(np.uint8), axis=1)
    for band in np.array_split(columns, distance + 1, axis=1):
        keys = band @ (1 << np.arange(band.shape[1]))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        alive = np.arange(len(order))  # places whose neighbour at `gap` has the same key
        gap = 1
        while len(alive := alive[: np.searchsorted(alive, len(order) - gap)]):
            alive = alive[keys[alive] == keys[alive + gap]]
            left, right = order[alive], order[alive + gap]
            near = _ONES[bits[left] ^ bits[right]].sum(axis=1) <= distance
            found.append(np.stack([left[near], right[near]], axis=1))
            gap += 1
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs, axis=0)


def groups(prints: Sequence[Fingerprint]) -> tuple[np.ndarray, list[list[int]]]:
    """Group images that are the same, or nearly.

    Args:
        prints: The fingerprints of images that could be read.

    Returns:
        For each image the number of its group (which may have a single image), and the groups of
        two or more images whose files are identical.
    """
    parent = list(range(len(prints)))
    first: dict[bytes, int] = {}
    identical: dict[int, list[int]] = {}
    for index, item in enumerate(prints):
        same = first.setdefault(item.content, index)
        if same != index:
            _join(parent, same, index)
            identical.setdefault(same, [same]).append(index)
    # Equal fingerprints are joined at once: a thousand copies of an image would otherwise give half
    # a million pairs.
    unique: dict[bytes, int] = {}
    for index, item in enumerate(prints):
        if item.bits is not None:
            same = unique.setdefault(item.bits.tobytes(), index)
            _join(parent, same, index)
    members = np.array(list(unique.values()), dtype=np.int64)
    if len(members):
        bits = np.stack([prints[index].bits for index in members])
        for left, right in members[near_pairs(bits)].tolist():
            _join(parent, left, right)
    return np.array([_root(parent, index) for index in range(len(parent))]), list(
        identical.values()
    )


def gather(numbers: Iterable[int]) -> list[list[int]]:
    """Return the groups of two or more images as lists of indices, from each image's group."""
    found: dict[int, list[int]] = {}
    for index, number in enumerate(numbers):
        found.setdefault(int(number), []).append(index)
    return [indices for indices in found.values() if len(indices) > 1]


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _join(parent: list[int], left: int, right: int) -> None:
    left, right = _root(parent, left), _root(parent, right)
    parent[max(left, right)] = min(left, right)
