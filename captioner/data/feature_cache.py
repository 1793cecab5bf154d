"""A cache of frozen encoder features, for reading: half precision, memory-mapped.

A cache is a folder with one file `stage_<s>.npy` per encoder stage, of shape (views, N, C, H, W),
and a `meta.json`. The views are the copies of an image (the first as it is, the others augmented)
and, if wanted, the mirrored version of each copy. The folder's name is the beginning of its key
(encoder weights, preprocessing, precision, files), so that one root holds the caches of several
encoders and a changed image or weight never meets an old feature. `captioner.data.features` builds
caches.

Shapes: N images, B batch, C channels of a stage, H x W its grid.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from captioner.errors import DataError
from captioner.utils.files import replacing

CacheDtype = Literal["fp16", "bf16"]

META = "meta.json"
_VERSION = 1
_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}
# NumPy has no bf16: its bits are kept as whole numbers.
_NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(np.int16)}


@dataclass(frozen=True)
class CacheMeta:
    """The content of `meta.json`; `done` of `count` images are written."""

    key: str
    files: str  # sha256 of the list of paths
    views: int
    count: int
    shapes: list[list[int]]  # (C, H, W) of each stage
    done: int
    dtype: CacheDtype = "fp16"
    version: int = _VERSION
    copies: int = 1  # views that are not mirrored

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the type of the features."""
        return _TORCH[self.dtype]

    @property
    def nbytes(self) -> int:
        """Return the size of all stages in bytes: two per feature."""
        return 2 * self.views * self.count * sum(int(np.prod(shape)) for shape in self.shapes)

    def describe(self) -> str:
        """Return number, shapes, type and size of the features in words."""
        grids = " + ".join("×".join(map(str, shape)) for shape in self.shapes)
        views = "1 view" if self.views == 1 else f"{self.views} views"
        size = f"{self.nbytes / 1e9:,.2f} GB" if self.nbytes >= 1e7 else f"{self.nbytes:,} bytes"
        return f"{self.count:,} photos × {views} × ({grids}) in {self.dtype}: {size}"

    def write(self, folder: Path) -> None:
        """Replace the metadata of a folder."""
        with replacing(folder / META) as temporary:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> CacheMeta | None:
        """Return the metadata of a folder; None if there is none that this version can use."""
        try:
            meta = cls(**json.loads((folder / META).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return meta if meta.version == _VERSION and meta.dtype in _TORCH else None


class FeatureCache:
    """A finished cache, for reading. Picklable; safe in threads, forked and spawned workers.

    `captioner.data.features.build_features` and `FeatureCache.open` return one.
    """

    def __init__(self, folder: Path, meta: CacheMeta) -> None:
        self.folder = folder
        self._meta = meta
        self._files: list[np.memmap] = []
        self._stages: list[np.ndarray] = []
        self._pid = -1

    @staticmethod
    def key(
        fingerprint: str,
        preprocess: Mapping[str, Any],
        paths: Sequence[str | os.PathLike[str]],
        views: int,
        *,
        dtype: CacheDtype = "fp16",
        precision: str = "auto",
        copies: int = 1,
        augmentation: int = 0,
    ) -> str:
        """Return the key of a cache: sha256 of everything that its features depend on.

        Args:
            fingerprint: Hash of the encoder's architecture and weights.
            preprocess: `Preprocess.to_dict()`.
            paths: The images, in order; their sizes and modification times count as well.
            views: Versions of each image: its copies, doubled by mirroring.
            dtype: Type of the stored features.
            precision: How the encoder computed, as the recipe names it; `auto` accepts features
                that any device computed.
            copies: Versions that are not mirrored; all but the first are augmented.
            augmentation: Version of the augmentation.

        Raises:
            DataError: An image does not exist.
        """
        files = []
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError as error:
                raise DataError(f"{os.fspath(path)}: cannot read this photo ({error})") from error
            files.append([os.path.abspath(path), stat.st_size, stat.st_mtime_ns])
        parts: list[Any] = [_VERSION, fingerprint, dict(preprocess), views, files]
        if (dtype, precision) != ("fp16", "auto"):  # the default is left out: older caches stay
            parts.append([dtype, precision])
        if copies > 1:
            parts.append({"augmentation": augmentation, "copies": copies})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> FeatureCache:
        """Open the finished cache in `folder` (the one that holds `meta.json`).

        Raises:
            DataError: There is none, it is unfinished, or a file has the wrong size.
        """
        folder = Path(folder)
        meta = CacheMeta.read(folder)
        if meta is None:
            raise DataError(f"{folder}: no feature cache here (no usable {META}); build it first")
        if meta.done < meta.count:
            raise DataError(
                f"{folder}: this feature cache is half-made ({meta.done} of {meta.count} photos);"
                " build it again with the same settings to finish it"
            )
        cache = cls(folder, meta)
        cache._maps()
        return cache

    def __len__(self) -> int:
        return self._meta.count

    @property
    def views(self) -> int:
        """Return the number of versions of each image: its copies, doubled by mirroring."""
        return self._meta.views

    @property
    def copies(self) -> int:
        """Return the number of versions that are not mirrored: the image, then augmented ones."""
        return self._meta.copies

    @property
    def mirrored(self) -> bool:
        """Return whether there is a mirrored version of each copy."""
        return self.views > self.copies

    def view(self, copy: int, mirrored: bool) -> int:
        """Return the index of a copy, or of its mirrored version, among the views."""
        return copy + mirrored * self.copies

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Return (C, H, W) of each stage."""
        return [(c, h, w) for c, h, w in self._meta.shapes]

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the features that `read_batch` returns."""
        return self._meta.torch_dtype

    @property
    def nbytes(self) -> int:
        """Return the size on disk in bytes."""
        return self._meta.nbytes

    def read_batch(
        self, indices: Sequence[int] | np.ndarray, views: Sequence[int] | np.ndarray | int = 0
    ) -> list[Tensor]:
        """Return the features of many images at once: a tensor (B, C, H, W) per stage, of `dtype`.

        Each stage is one gather from the memory map. The tensors are copies.

        Args:
            indices: (B,) places in the list of paths, in any order, possibly repeated.
            views: (B,) views, or one for all.

        Raises:
            IndexError: An image or view does not exist.
        """
        index = np.asarray(indices, dtype=np.int64)
        view = np.broadcast_to(np.asarray(views, dtype=np.int64), index.shape)
        for values, end in ((index, len(self)), (view, self.views)):
            if values.size and not (values.min() >= 0 and values.max() < end):
                raise IndexError(f"photos {index}, views {view} of {len(self)}, {self.views}")
        rows = view * len(self) + index
        self._maps()
        for stage in self._files:
            read_ahead(stage, rows)
        return [
            torch.from_numpy(stage[rows]).view(self.dtype).view(-1, *shape)
            for stage, shape in zip(self._maps(), self.shapes, strict=True)
        ]

    def check_files(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Check that row i of the cache is the image paths[i].

        Raises:
            DataError: The cache was built from another list.
        """
        if hash_paths(paths) != self._meta.files:
            raise DataError(
                f"{self.folder}: this feature cache was built from another list of photos"
                f" ({len(self)} there, {len(paths)} here); build one for this list"
            )

    def _maps(self) -> list[np.ndarray]:
        """Return the stages as (views · N, C·H·W); the views of an image are N rows apart."""
        # After a fork or a pickle, a map would share its file handle: each process opens its own.
        if self._pid != os.getpid():
            self._files = open_stages(self.folder, self._meta)
            self._stages = [stage.reshape(self.views * len(self), -1) for stage in self._files]
            self._pid = os.getpid()
        return self._stages

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": [], "_stages": [], "_pid": -1}


def open_stages(folder: Path, meta: CacheMeta, *, create: bool = False) -> list[np.memmap]:
    """Map the stage files, each (views, N, C, H, W), for reading.

    Args:
        folder: The cache's folder.
        meta: What the files must hold.
        create: Create the files first; they take room on the disk as they are filled.

    Raises:
        DataError: A file is missing, damaged or not the one that `meta` describes.
    """
    stages: list[np.memmap] = []
    for number, shape in enumerate(meta.shapes):
        path = stage_path(folder, number)
        dtype, expected = _NUMPY[meta.dtype], (meta.views, meta.count, *shape)
        try:
            if create:
                path.unlink(missing_ok=True)  # processes that read the old file keep it
                np.lib.format.open_memmap(path, "w+", dtype, expected)
            stage = np.lib.format.open_memmap(path, "r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: damaged feature cache ({error}); delete {folder}") from error
        if stage.shape != expected or stage.dtype != dtype:
            raise DataError(f"{path}: not the features that {META} names; delete {folder}")
        stages.append(stage)
    return stages


def read_ahead(stage: np.memmap, rows: np.ndarray) -> None:
    """Ask the system for rows that are about to be read, so that the disk reads them all at once.

    A gather alone waits for page after page, which takes four times as long for a cache larger than
    the memory. For smaller ones this costs little; systems without `madvise` skip it.

    Args:
        stage: (views, N, C, H, W) as `open_stages` maps it.
        rows: Numbers view · N + image.
    """
    if not hasattr(mmap, "MADV_WILLNEED"):
        return
    file = stage.base
    assert isinstance(file, mmap.mmap)
    size = stage[0, 0].nbytes
    begins = stage.offset + rows * size
    aligned = begins // mmap.PAGESIZE * mmap.PAGESIZE
    for begin, length in zip(aligned.tolist(), (begins - aligned + size).tolist(), strict=True):
        file.madvise(mmap.MADV_WILLNEED, begin, length)


def stage_path(folder: Path, number: int) -> Path:
    """Return the file of a stage."""
    return folder / f"stage_{number}.npy"


def hash_paths(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Return a hash of a list of paths."""
    names = b"\0".join(os.fsencode(os.path.abspath(path)) for path in paths)
    return hashlib.sha256(names).hexdigest()
