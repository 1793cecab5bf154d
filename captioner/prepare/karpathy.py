"""Karpathy's split of COCO (Karpathy and Fei-Fei 2015, arXiv 1412.2306), as part of the package.

5,000 photos of val2014 are for validation and 5,000 for testing. All others are trained on: those
of train2014, and the 30,504 further ones of val2014, which he called *restval*. The ids of the
10,000 are stored as gaps between neighbours in ascending order, seven bits to a byte, compressed.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable
from importlib import resources

COUNT = 5_000
"""Photos in each of the two lists."""

_FILE = "karpathy_ids.bin"


@functools.cache
def karpathy_ids() -> tuple[frozenset[int], frozenset[int]]:
    """COCO image ids of the validation and the test photos."""
    packed = resources.files(__package__).joinpath(_FILE).read_bytes()
    val, test = unpack_ids(packed)
    return frozenset(val), frozenset(test)


def karpathy_split(image_id: int | str) -> str:
    """``val``, ``test``, or ``train`` (restval among it) for a COCO image id."""
    val, test = karpathy_ids()
    return "val" if image_id in val else "test" if image_id in test else "train"


def pack_ids(*lists: Iterable[int]) -> bytes:
    """Lists of distinct, non-negative ids in a few bytes; their order is not kept."""
    data = bytearray()
    for ids in lists:
        previous = -1
        for number in sorted(ids):
            _append(data, number - previous)  # at least 1, so that 0 can end the list
            previous = number
        data.append(0)
    return zlib.compress(bytes(data), 9)


def unpack_ids(packed: bytes) -> list[list[int]]:
    """The lists that `pack_ids` packed, each in ascending order."""
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


def _append(data: bytearray, number: int) -> None:
    """Append a number in groups of seven bits, the lowest first."""
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
