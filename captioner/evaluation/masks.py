"""COCO object masks by photo and category, and how they meet an attention grid.

The masks live at the photo's stored size (width, height as the instances file states them). A grid
covers the whole photo by plain scaling, without crop: cell (r, c) of H x W covers rows r*height/H
to (r+1)*height/H and columns c*width/W to (c+1)*width/W. Crowd regions (`iscrowd`) count neither as
mask nor as presence.

Shapes: (H, W) grid, (height, width) pixels.
"""

import contextlib
import io
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from captioner.errors import DataError


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo of an instances file: its id, file name, stored size in pixels."""

    image_id: int
    file_name: str
    width: int
    height: int


class CategoryMasks:
    """The union mask of each category in each photo.

    Args:
        paths: One or more COCO `instances_*.json` files.

    Attributes:
        photos: The photos that the files list, by image id.

    Raises:
        DataError: A file is missing or is no COCO instances file.
    """

    def __init__(self, *paths: str | Path) -> None:
        self.photos: dict[int, MaskedPhoto] = {}
        self._segments: dict[int, dict[str, list[Any]]] = {}
        self._supercategory: dict[str, str] = {}
        for path in paths:
            self._read(Path(path))
        self._mask = lru_cache(maxsize=64)(self._draw)

    def __len__(self) -> int:
        return len(self.photos)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.photos

    def categories(self, image_id: int) -> frozenset[str]:
        """The names of the categories with at least one object in the photo."""
        return frozenset(self._segments[self._known(image_id)])

    def supercategory(self, category: str) -> str:
        """COCO's coarser class of a category: `person`, `animal`, `vehicle`, ..."""
        return self._supercategory.get(category, category)

    def mask(self, image_id: int, category: str) -> np.ndarray:
        """The union of the category's objects, boolean (height, width), at the stored size."""
        return self._mask(self._known(image_id), category)

    def coverage(self, image_id: int, category: str, grid: tuple[int, int]) -> np.ndarray:
        """The share of each cell of a grid (H, W) that the mask covers (`grid_coverage`)."""
        return grid_coverage(self.mask(image_id, category), grid)

    def _known(self, image_id: int) -> int:
        if image_id not in self.photos:
            raise DataError(
                f"photo {image_id!r} is not in the instances file; leave it out of the measurement"
            )
        return image_id

    def _read(self, path: Path) -> None:
        from pycocotools import mask as rle
        from pycocotools.coco import COCO

        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            coco = COCO()
            coco.dataset = content
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
                coco.createIndex()
            names = {entry["id"]: entry["name"] for entry in content["categories"]}
            for entry in content["categories"]:
                self._supercategory[entry["name"]] = entry.get("supercategory", entry["name"])
            for entry in content["images"]:
                photo = MaskedPhoto(
                    entry["id"], entry["file_name"], entry["width"], entry["height"]
                )
                self.photos[photo.image_id] = photo
                self._segments.setdefault(photo.image_id, {})
            for entry in content["annotations"]:
                if entry.get("iscrowd", 0) or not entry["segmentation"]:
                    continue
                segment = coco.annToRLE(entry)
                if rle.area(segment) > 0:  # objects smaller than a pixel leave no mask
                    by_name = self._segments[entry["image_id"]]
                    by_name.setdefault(names[entry["category_id"]], []).append(segment)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(
                f"{path} is not a COCO instances file with images, annotations and categories: "
                f"{error!r}"
            ) from error

    def _draw(self, image_id: int, category: str) -> np.ndarray:
        from pycocotools import mask as rle

        photo = self.photos[image_id]
        segments = self._segments[image_id].get(category)
        if not segments:
            return np.zeros((photo.height, photo.width), dtype=bool)
        mask: np.ndarray = rle.decode(rle.merge(segments)).astype(bool)
        mask.flags.writeable = False  # it is kept and shared
        return mask


def grid_coverage(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The share of each grid cell that a mask covers, by exact area averaging.

    Args:
        mask: Boolean (height, width).
        grid: Rows and columns (H, W); they need not divide height and width.

    Returns:
        float64 (H, W), 0 to 1; its mean is the mask's share of the photo.
    """
    rows, columns = (
        _overlaps(cells, pixels) for cells, pixels in zip(grid, mask.shape, strict=True)
    )
    return rows @ mask.astype(np.float64) @ columns.T


@lru_cache(maxsize=256)
def _overlaps(cells: int, pixels: int) -> np.ndarray:
    """(cells, pixels): each pixel's share of each cell along one axis; rows sum to 1."""
    edges = np.arange(cells + 1)[:, None] * pixels / cells
    left = np.arange(pixels)[None, :]
    overlap = np.minimum(edges[1:], left + 1) - np.maximum(edges[:-1], left)
    return np.clip(overlap, 0, None) * cells / pixels


def cell_centres(grid: tuple[int, ...], size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """An index into a (height, width) mask that gives the pixel under each cell's centre."""
    return np.ix_(
        *((2 * np.arange(n) + 1) * pixels // (2 * n) for n, pixels in zip(grid, size, strict=True))
    )


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A boolean mask (height, width) grown by a disc of a radius in pixels."""
    grown = mask.copy()
    height, width = mask.shape
    for dy in range(-min(pixels, height - 1), min(pixels, height - 1) + 1):
        reach = min(math.isqrt(pixels**2 - dy**2), width - 1)
        for dx in range(-reach, reach + 1):
            grown[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] |= mask[
                max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
            ]
    return grown
