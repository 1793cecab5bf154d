"""A cache of frozen encoder features: fp16, memory-mapped, so that decoder trainings take minutes.

A cache is a folder with one file `stage_<s>.npy` per encoder stage, of shape (views, N, C, H, W),
and a `meta.json`. View 0 is the photo as it is, view 1 its mirror image. The folder's name is the
beginning of its key (encoder weights, preprocessing, files), so the caches of several encoders lie
side by side under one root, and a changed photo or weight never meets an old feature.

Shapes: N photos, B batch, C channels of a stage, H x W its grid, S side of the encoder's input.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from captioner.errors import DataError, ImageError
from captioner.files import replacing
from captioner.images import Preprocess, open_image

logger = logging.getLogger(__name__)

Extract = Callable[[Tensor], Sequence[Tensor]]
"""A backbone: images (B, 3, S, S) float32 on the CPU -> one feature map (B, C, H, W) per stage."""

_META = "meta.json"
_LOCK = "lock"
_VERSION = 1
_FP16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class _Meta:
    """What `meta.json` holds; `done` of `count` photos are written."""

    key: str
    files: str  # sha256 of the list of paths
    views: int
    count: int
    shapes: list[list[int]]  # (C, H, W) of each stage
    done: int
    version: int = _VERSION

    def nbytes(self) -> int:
        """Bytes of all stages, fp16."""
        return 2 * self.views * self.count * sum(int(np.prod(shape)) for shape in self.shapes)

    def write(self, folder: Path) -> None:
        with replacing(folder / _META) as temporary:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> _Meta | None:
        """The meta data of a folder, None where there is none that this version can use."""
        try:
            meta = cls(**json.loads((folder / _META).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return meta if meta.version == _VERSION else None


class FeatureCache:
    """A finished cache, for reading. Picklable; safe in threads, forked and spawned workers.

    Made by `build_features` or `FeatureCache.open`.
    """

    def __init__(self, folder: Path, meta: _Meta) -> None:
        self.folder = folder
        self._meta = meta
        self._stages: list[np.ndarray] = []
        self._pid = -1

    @staticmethod
    def key(
        fingerprint: str,
        preprocess: Mapping[str, Any],
        paths: Sequence[str | os.PathLike[str]],
        views: int,
    ) -> str:
        """The identity of a cache: sha256 over everything that its features depend on.

        Args:
            fingerprint: Stands for the encoder's architecture and weights (their hash).
            preprocess: `Preprocess.to_dict()`.
            paths: The photos, in order; their sizes and modification times count as well.
            views: 1, or 2 with the mirrored view.

        Raises:
            DataError: A photo does not exist.
        """
        files = []
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError as error:
                raise DataError(f"{os.fspath(path)}: cannot read this photo ({error})") from error
            files.append([os.path.abspath(path), stat.st_size, stat.st_mtime_ns])
        parts = [_VERSION, fingerprint, dict(preprocess), views, files]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> FeatureCache:
        """Open the finished cache in `folder` (the one that holds `meta.json`).

        Raises:
            DataError: There is none, it is half-made, or a file has the wrong size.
        """
        folder = Path(folder)
        meta = _Meta.read(folder)
        if meta is None:
            raise DataError(f"{folder}: no feature cache here (no usable {_META}); build it first")
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
        """1, or 2 with the mirrored view."""
        return self._meta.views

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of each stage."""
        return [(c, h, w) for c, h, w in self._meta.shapes]

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return self._meta.nbytes()

    def read(self, index: int, view: int = 0) -> list[np.ndarray]:
        """The features of one photo: a fp16 array (C, H, W) per stage, copied from the disk.

        Args:
            index: Place of the photo in the list of paths that the cache was built from.
            view: 0 the photo, 1 its mirror image.

        Raises:
            IndexError: No such photo or view.
        """
        if not (0 <= index < len(self) and 0 <= view < self.views):
            raise IndexError(f"photo {index}, view {view} of {len(self)}, {self.views}")
        return [np.array(stage[view, index]) for stage in self._maps()]

    def check_files(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Make sure that row i of the cache is the photo paths[i].

        Raises:
            DataError: The cache was built from another list.
        """
        if _hash_paths(paths) != self._meta.files:
            raise DataError(
                f"{self.folder}: this feature cache was built from another list of photos"
                f" ({len(self)} there, {len(paths)} here); build one for this list"
            )

    def _maps(self) -> list[np.ndarray]:
        # A map that is shared over a fork or a pickle would share its file handle: open it anew.
        if self._pid != os.getpid():
            self._stages = _open_stages(self.folder, self._meta, "r")
            self._pid = os.getpid()
        return self._stages

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stages": [], "_pid": -1}


def build_features(
    folder: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    preprocess: Preprocess,
    extract: Extract,
    batch_size: int = 32,
    workers: int = 2,
    mirror: bool = True,
    progress: bool = True,
    *,
    fingerprint: str,
    save_every: int = 512,
) -> FeatureCache:
    """Run the encoder over all photos and keep its features; a finished cache is just opened.

    An interrupted call continues where it stopped when it is repeated. Processes that want the
    same cache wait for the one that builds it.

    Args:
        folder: Root of the caches; this one becomes the sub-folder named by its key.
        paths: The photos; row i of the cache is paths[i].
        preprocess: That of the encoder.
        extract: The encoder: (B, 3, S, S) float32 on the CPU -> one (B, C, H, W) per stage.
        batch_size: Photos per call of `extract`.
        workers: Processes that read photos (0: none beside this one).
        mirror: Keep the mirrored view as well.
        progress: Show a progress bar (only on a terminal).
        fingerprint: Stands for the encoder's architecture and weights (their hash).
        save_every: Photos after which the progress is made safe on disk.

    Raises:
        DataError: A photo cannot be read, the disk has not enough room, features are not finite.
    """

    def compute(pixels: Tensor) -> Sequence[Tensor]:  # workers ship bytes, a quarter of the floats
        return extract(preprocess.normalize(pixels))

    if not paths:
        raise DataError("no photos to compute features of")
    views = 2 if mirror else 1
    key = FeatureCache.key(fingerprint, preprocess.to_dict(), paths, views)
    target = Path(folder) / key[:16]
    target.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        meta = _Meta.read(target)
        if meta is None or meta.key != key:
            meta = _Meta(key, _hash_paths(paths), views, len(paths), shapes=[], done=0)
        if meta.done < meta.count:
            loader = DataLoader(
                _Photos(paths[meta.done :], preprocess),
                batch_size=batch_size,
                num_workers=workers,
                collate_fn=_stack,
                generator=torch.Generator(),  # leave the global one to the training
            )
            _fill(target, meta, loader, compute, progress, save_every)
    return FeatureCache.open(target)


def _fill(
    folder: Path,
    meta: _Meta,
    loader: DataLoader[Any],
    compute: Extract,
    progress: bool,
    save_every: int,
) -> None:
    """Compute rows meta.done .. meta.count and write them, saving the position on the way."""
    stages: list[np.ndarray] = []
    if meta.done:
        _check_room(folder, meta)
        stages = _open_stages(folder, meta, "r+")
        logger.info("feature cache: continuing at photo %d of %d", meta.done, meta.count)
    position = meta.done
    disable = None if progress else True  # None: off where stderr is not a terminal
    bar = tqdm(total=meta.count, initial=position, desc="features", unit=" photos", disable=disable)
    with bar, torch.inference_mode():
        for pixels in loader:  # (B, S, S, 3) uint8
            if isinstance(pixels, str):
                raise DataError(pixels)
            end = position + len(pixels)
            for view in range(meta.views):
                # Resizing the whole photo commutes with mirroring it: no second reading.
                maps = compute(pixels.flip(2) if view else pixels)
                arrays = [_to_fp16(stage, position) for stage in maps]
                if not stages:
                    meta = replace(meta, shapes=[list(array.shape[1:]) for array in arrays])
                    _check_room(folder, meta)
                    stages = _open_stages(folder, meta, "w+")
                for stage, array in zip(stages, arrays, strict=True):
                    stage[view, position:end] = array
            position = end
            bar.update(len(pixels))
            if position - meta.done >= save_every or position == meta.count:
                for stage in stages:
                    stage.flush()  # type: ignore[attr-defined]  # np.memmap
                meta = replace(meta, done=position)
                meta.write(folder)


class _Photos(Dataset[np.ndarray | str]):
    """Photos resized to (S, S, 3) uint8, or the message why one cannot be read."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]], preprocess: Preprocess) -> None:
        self.paths = [os.fspath(path) for path in paths]
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            image = open_image(self.paths[index], shrink_to=self.preprocess.size)
        except ImageError as error:
            # As a value: an exception that crosses a worker carries a page of traceback with it.
            return str(error)
        return self.preprocess.to_uint8(image)


def _stack(items: Sequence[np.ndarray | str]) -> Tensor | str:
    """(B, S, S, 3) uint8, or the first message."""
    messages = [item for item in items if isinstance(item, str)]
    pixels = [item for item in items if not isinstance(item, str)]
    return messages[0] if messages else torch.from_numpy(np.stack(pixels))


def _to_fp16(stage: Tensor, first: int) -> np.ndarray:
    """(B, C, H, W) of any float type -> fp16; too large values are clamped, with a warning."""
    stage = stage.detach().float().cpu()
    if not bool(torch.isfinite(stage).all()):
        raise DataError(
            f"the encoder's features are not finite in the batch from photo {first} on:"
            " check its weights and precision"
        )
    if float(stage.abs().max()) > _FP16_MAX:
        logger.warning("features beyond the range of fp16 were clamped to +-%.0f", _FP16_MAX)
        stage = stage.clamp(-_FP16_MAX, _FP16_MAX)
    return stage.half().numpy()


def _open_stages(folder: Path, meta: _Meta, mode: str) -> list[np.ndarray]:
    """Map the stage files: mode `r`, `r+` (continue) or `w+` (new)."""
    stages: list[np.ndarray] = []
    for number, shape in enumerate(meta.shapes):
        path = folder / f"stage_{number}.npy"
        expected = (meta.views, meta.count, *shape)
        try:
            if mode == "w+":
                stage = np.lib.format.open_memmap(path, "w+", np.float16, expected)
            else:
                stage = np.lib.format.open_memmap(path, mode)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: damaged feature cache ({error}); delete {folder}") from error
        if stage.shape != expected or stage.dtype != np.float16:
            raise DataError(f"{path}: not the features that {_META} names; delete {folder}")
        stages.append(stage)
    return stages


def _check_room(folder: Path, meta: _Meta) -> None:
    size = meta.nbytes()
    logger.info("feature cache: %.2f GB at %s", size / 1e9, folder)
    needed = size * (meta.count - meta.done) / meta.count
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: the feature cache needs {needed / 1e9:.1f} GB and the disk has"
            f" {free / 1e9:.1f} GB free; choose another folder or switch the mirrored view off"
        )


def _hash_paths(paths: Sequence[str | os.PathLike[str]]) -> str:
    names = b"\0".join(os.fsencode(os.path.abspath(path)) for path in paths)
    return hashlib.sha256(names).hexdigest()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when a process dies, however it dies."""
    try:
        import fcntl
    except ImportError:  # Windows: no lock, so do not build one cache from two processes there
        yield
        return
    with open(folder / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
