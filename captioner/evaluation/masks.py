"""The objects of COCO instances files: which categories an image has, and where.

Masks live at the image's stored size (width and height as the file states them). A grid covers the
whole image by plain scaling, without crop: cell (r, c) of H x W covers rows r*height/H to
(r+1)*height/H and columns c*width/W to (c+1)*width/W.

Shapes: (H, W) grid, (height, width) pixels.
"""

from __future__ import annotations

import json
import logging
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import DataError
from captioner.metrics.coco_categories import CATEGORIES

logger = logging.getLogger(__name__)

_MOST_PIXELS = 250_000_000
_LONGEST_SIDE = 65_535
_LONGEST_OUTLINE = 10_000_000  # pixels along a polygon: pycocotools holds all of them at once


class CocoInstances:
    """The annotated objects of one or more COCO `instances_*.json` files.

    Crowd regions (`iscrowd`) show that a category is present but belong to no mask: they do not
    outline single objects. Objects without an outline, or smaller than a pixel, count the same way.

    An object whose outline cannot be drawn (too few points, coordinates that are no numbers or far
    outside the image, run lengths of another size) loses its outline; one without a known image or
    category is left out. A warning counts them and names the first.

    Args:
        paths: The files.

    Attributes:
        present: The categories annotated in each image, by image id.

    Raises:
        DataError: A file cannot be read, is no instances file, or has none of COCO's categories.
    """

    def __init__(self, *paths: str | Path) -> None:
        self.present: dict[int | str, set[str]] = {}
        self._sizes: dict[int | str, tuple[int, int] | None] = {}  # (height, width)
        self._outlines: dict[int | str, dict[str, list[Any]]] = {}
        self._supercategories: dict[str, str] = {}
        for path in paths:
            self._read(Path(path))
        self._mask = lru_cache(maxsize=64)(self._draw)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.present

    def outlined(self, image_id: int | str) -> frozenset[str]:
        """Return the categories of which the image has a mask.

        Raises:
            DataError: The image is not in the files.
        """
        if image_id not in self.present:
            raise DataError(
                f"photo {image_id!r} is not in the instances file; leave it out of the measurement"
            )
        return frozenset(self._outlines[image_id])

    def supercategory(self, category: str) -> str:
        """Return COCO's coarser class of a category: `person`, `animal`, `vehicle`, ..."""
        return self._supercategories.get(category, category)

    def mask(self, image_id: int | str, category: str) -> np.ndarray:
        """Return the union of a category's objects, boolean (height, width); read-only.

        Raises:
            DataError: The image is not in the files, or has no mask of this category.
        """
        if category not in self.outlined(image_id):
            raise DataError(f"image {image_id!r} has no mask of {category!r}")
        return self._mask(image_id, category)

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            categories, images, objects = (
                list(content[key]) for key in ("categories", "images", "annotations")
            )
            names = {entry["id"]: str(entry["name"]) for entry in categories}
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path} is not a COCO instances file with images, annotations and categories: "
                f"{error!r}"
            ) from error
        if not set(CATEGORIES).intersection(names.values()):
            raise DataError(f"{path} has none of COCO's 80 object categories")
        for entry in categories:
            name = str(entry["name"])
            self._supercategories[name] = str(entry.get("supercategory", name))
        for entry in images:
            if isinstance(entry, dict) and isinstance(entry.get("id"), int | str):
                self.present.setdefault(entry["id"], set())
                self._outlines.setdefault(entry["id"], {})
                self._sizes[entry["id"]] = _size(entry)
        reasons = []
        for number, entry in enumerate(objects):
            try:
                self._add(entry, names)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                named = isinstance(entry, dict) and "id" in entry
                name = f"id {entry['id']!r}" if named else f"number {number} of the list"
                reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                reasons.append(f"{name}: {reason}")
        if reasons:
            count = f"{len(reasons):,} of {len(objects):,} objects cannot be used as masks"
            logger.warning("%s: %s and are left out; the first is %s", path, count, reasons[0])

    def _add(self, entry: dict[str, Any], categories: dict[Any, str]) -> None:
        """Add one object.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: It cannot be used.
        """
        from pycocotools import mask as rle

        if not isinstance(entry, dict):
            raise ValueError("it is not an object with fields")
        image_id, category_id = entry["image_id"], entry["category_id"]
        if image_id not in self.present:
            raise ValueError(f"its image {image_id!r} is not in the file")
        if category_id not in categories:
            raise ValueError(f"its category {category_id!r} is not in the file")
        category, size = categories[category_id], self._sizes[image_id]
        self.present[image_id].add(category)
        if entry.get("iscrowd") or not entry.get("segmentation"):
            return
        if size is None:
            raise ValueError(f"its image {image_id!r} has no usable width and height")
        shape = entry["segmentation"]
        checked = _run_lengths(shape, size) if isinstance(shape, dict) else _polygons(shape, size)
        outline = rle.frPyObjects(checked, *size)
        if isinstance(outline, list):
            outline = rle.merge(outline)
        if rle.area(outline) > 0:
            self._outlines[image_id].setdefault(category, []).append(outline)

    def _draw(self, image_id: int | str, category: str) -> np.ndarray:
        from pycocotools import mask as rle

        mask: np.ndarray = rle.decode(rle.merge(self._outlines[image_id][category])).astype(bool)
        mask.flags.writeable = False  # it is cached and shared
        return mask


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Return the (height, width) of an image, or None if they cannot be those of an image."""
    height, width = (
        side if type(side) is int and 0 < side <= _LONGEST_SIDE else 0
        for side in (entry.get("height"), entry.get("width"))
    )
    return (height, width) if 0 < height * width <= _MOST_PIXELS else None


def _polygons(polygons: Any, size: tuple[int, int]) -> list[np.ndarray]:
    """Return polygons (x, y, x, y, ...) that pycocotools draws safely.

    Raises:
        ValueError: They are not polygons, or reach far outside the image.
    """
    if not all(isinstance(polygon, list) for polygon in polygons):
        raise ValueError("its segmentation is not a list of polygons")
    height, width = size
    checked = []
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers: 3 or more points are needed")
        if not all(type(value) in (int, float) for value in polygon):
            raise ValueError("a polygon has coordinates that are not numbers")
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
        limit = np.array([width, height])
        if not np.all((points >= -limit) & (points <= 2 * limit)):  # also false for NaN
            raise ValueError(f"a polygon reaches far outside its image of {width} x {height}")
        if np.abs(np.diff(points, axis=0)).sum() > _LONGEST_OUTLINE:
            raise ValueError("the outline of a polygon is too long")
        checked.append(points.ravel())
    return checked


def _run_lengths(shape: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return COCO's run-length encoding, uncompressed and of the image's size.

    Raises:
        ValueError: The encoding is damaged or of another size.
    """
    counts = shape["counts"]
    if isinstance(counts, str):
        counts = _decompress(counts)
    if list(shape["size"]) != list(size):
        raise ValueError(f"run lengths of size {shape['size']}, but its image has {list(size)}")
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("run lengths that are not whole numbers from 0 up")
    if sum(counts) != math.prod(size):
        raise ValueError("run lengths that do not fill the image")
    return {"size": list(size), "counts": counts}


def _decompress(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed encoding.

    Each number is stored as groups of five bits, lowest first, one character a group (code 48 to
    111): bit 5 of a character says that more follow, bit 4 of the last is the sign. From the
    fourth number on, the difference from the last but one is stored.

    Raises:
        ValueError: The text is no such encoding.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError("compressed run lengths that are damaged")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths that end too early")
    return counts


def grid_coverage(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the share of each grid cell that a mask covers, by exact area averaging.

    Args:
        mask: Boolean (height, width).
        grid: Rows and columns (H, W); they need not divide height and width.

    Returns:
        float64 (H, W), 0 to 1; its mean is the mask's share of the image.
    """
    rows, columns = (
        _overlaps(cells, pixels) for cells, pixels in zip(grid, mask.shape, strict=True)
    )
    return rows @ mask.astype(np.float64) @ columns.T


@lru_cache(maxsize=256)
def _overlaps(cells: int, pixels: int) -> np.ndarray:
    """Return each pixel's share of each cell along one axis: (cells, pixels), rows sum to 1."""
    edges = np.arange(cells + 1)[:, None] * pixels / cells
    left = np.arange(pixels)[None, :]
    overlap = np.minimum(edges[1:], left + 1) - np.maximum(edges[:-1], left)
    return np.clip(overlap, 0, None) * cells / pixels


def cell_centres(grid: tuple[int, ...], size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return an index into a (height, width) mask: the pixel under each cell's centre."""
    return np.ix_(
        *((2 * np.arange(n) + 1) * pixels // (2 * n) for n, pixels in zip(grid, size, strict=True))
    )


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return a boolean mask (height, width) grown by a disc of a radius in pixels."""
    grown = mask.copy()
    height, width = mask.shape
    for dy in range(-min(pixels, height - 1), min(pixels, height - 1) + 1):
        reach = min(math.isqrt(pixels**2 - dy**2), width - 1)
        for dx in range(-reach, reach + 1):
            grown[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] |= mask[
                max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
            ]
    return grown
