"""Build a cache of frozen encoder features, so that a training of the decoder takes minutes.

Threads read images ahead of the encoder and another one writes its features; all overlap. Rows are
written in order, and the position is saved every few hundred images, so that a build killed at any
moment continues from there and gives the same files to the byte.

Shapes: N images, B batch, C channels of a stage, H x W its grid, S side of the encoder's input.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from captioner.data.feature_cache import (
    META,
    CacheDtype,
    CacheMeta,
    FeatureCache,
    hash_paths,
    open_stages,
    stage_path,
)
from captioner.errors import DataError, ImageError
from captioner.image.io import open_image
from captioner.image.transforms import Augmentation, Preprocess
from captioner.utils.files import exclusive_lock
from captioner.utils.parallel import map_ahead

logger = logging.getLogger(__name__)

Extract = Callable[[Tensor], Sequence[Tensor]]
"""A backbone: images (B, 3, S, S) float32 -> one feature map (B, C, H, W) per stage."""

_LOCK = "lock"
_MAX_PENDING = 2  # batches that wait to be written
_LOG_SECONDS = 60.0  # between lines in the log where there is no progress bar


def build_features(
    folder: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    preprocess: Preprocess,
    extract: Extract,
    batch_size: int = 32,
    workers: int | None = None,
    mirror: bool = True,
    progress: bool = True,
    *,
    fingerprint: str,
    dtype: CacheDtype = "fp16",
    precision: str = "auto",
    device: torch.device | str = "cpu",
    save_every: int = 512,
    copies: int = 1,
) -> FeatureCache:
    """Run the encoder over all images and store its features; a finished cache is just opened.

    A repeated call continues an interrupted one. Any number of processes (the ranks of one
    training, or several trainings) may ask for one cache at the same time: the first builds it and
    the others wait. If it dies, the next one continues.

    Args:
        folder: Root of the caches; this one becomes the sub-folder named by its key.
        paths: The images; row i of the cache is paths[i].
        preprocess: The encoder's preprocessing.
        extract: The encoder: (B, 3, S, S) float32 on `device` -> one (B, C, H, W) per stage.
        batch_size: Images per call of `extract`.
        workers: Threads that read images; None takes one per core, at most 16.
        mirror: Store a mirrored version of each copy as well.
        progress: Show a progress bar (only on a terminal; elsewhere a line a minute is logged).
        fingerprint: Hash of the encoder's architecture and weights.
        dtype: Type of the stored features, `fp16` or `bf16`.
        precision: How `extract` computes, as the recipe names it; part of the cache's key.
        device: Where images are normalised and given to `extract`.
        save_every: Number of images after which the position is saved.
        copies: Versions of each image: the image as it is, and augmented ones (which depend only
            on the image's number and the copy's).

    Raises:
        DataError: An image cannot be read, the disk has not enough room, features are not finite.
    """
    if not paths:
        raise DataError("no photos to compute features of")
    views = 2 * copies if mirror else copies
    key = FeatureCache.key(
        *(fingerprint, preprocess.to_dict(), paths, views),
        dtype=dtype,
        precision=precision,
        copies=copies,
        augmentation=Augmentation.version,
    )
    target = Path(folder) / key[:16]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{target}: cannot make this folder ({error.strerror})") from error

    def compute(pixels: Tensor) -> list[Sequence[Tensor]]:
        """Return the stages of each view of (B, copies, S, S, 3) uint8 images."""
        plain = pixels.to(device).unbind(1)
        # Mirroring after resizing gives the same as before: no second reading.
        mirrored = [each.flip(2) for each in plain] if mirror else []
        return [extract(preprocess.normalize(each)) for each in [*plain, *mirrored]]

    with _locked(target):
        meta = CacheMeta.read(target)
        if meta is None or meta.key != key:
            meta = CacheMeta(key, hash_paths(paths), views, len(paths), [], 0, dtype, copies=copies)
            _log_other_caches(Path(folder), meta)
        if meta.done < meta.count:
            with contextlib.closing(
                _batches(paths, meta.done, preprocess, copies, batch_size, workers)
            ) as batches:
                _fill(target, meta, batches, compute, progress, save_every)
    return FeatureCache.open(target)


def _log_other_caches(root: Path, meta: CacheMeta) -> None:
    """Log that there are caches of these images, but none with this key."""
    folders = [path.parent for path in sorted(root.glob(f"*/{META}"))]
    same = [
        folder.name
        for folder in folders
        if (other := CacheMeta.read(folder)) is not None and other.files == meta.files
    ]
    if same:
        logger.info(
            "feature cache: building %s anew; %s was made from these photos by another encoder or"
            " precision, with other copies, or before their files changed (size or time of"
            " modification)",
            *(meta.key[:16], " and ".join(same)),
        )


def _batches(
    paths: Sequence[str | os.PathLike[str]],
    start: int,
    preprocess: Preprocess,
    copies: int,
    batch_size: int,
    workers: int | None,
) -> Generator[Tensor, None, None]:
    """Yield the images from `start` on, (B, copies, S, S, 3) uint8, read ahead of the encoder.

    Raises:
        DataError: An image cannot be read.
    """
    augment = Augmentation(preprocess)

    def read(number: int) -> np.ndarray:
        path = os.fspath(paths[number])
        views = [preprocess.to_uint8(open_image(path, shrink_to=preprocess.size))]
        if copies > 1:
            image = open_image(path, shrink_to=augment.shrink_to)
            for copy in range(1, copies):
                views.append(augment(image, np.random.default_rng([number, copy])))
        return np.stack(views)

    workers = workers or min(16, os.cpu_count() or 1)
    rows: list[np.ndarray] = []
    depth = max(2 * batch_size, 4 * workers)
    try:
        for views in map_ahead(read, range(start, len(paths)), workers=workers, depth=depth):
            rows.append(views)
            if len(rows) == batch_size:
                yield torch.from_numpy(np.stack(rows))
                rows = []
    except ImageError as error:
        raise DataError(str(error)) from error
    if rows:
        yield torch.from_numpy(np.stack(rows))


def _fill(
    folder: Path,
    meta: CacheMeta,
    batches: Iterator[Tensor],
    compute: Callable[[Tensor], list[Sequence[Tensor]]],
    progress: bool,
    save_every: int,
) -> None:
    """Compute and write rows meta.done .. meta.count."""
    if meta.done:
        logger.info("feature cache: continuing at photo %d of %d", meta.done, meta.count)
    bar = tqdm(
        total=meta.count,
        initial=meta.done,
        desc="features",
        unit=" photos",
        disable=None if progress else True,  # None: off where stderr is not a terminal
    )
    start = logged = time.monotonic()
    done = 0
    with bar, _Writer(folder, meta, save_every) as writer, torch.inference_mode():
        for pixels in batches:
            writer.add(compute(pixels))
            bar.update(len(pixels))
            done += len(pixels)
            if bar.disable and time.monotonic() - logged >= _LOG_SECONDS:
                logged = time.monotonic()
                rate = done / (logged - start)
                left = (meta.count - meta.done - done) / rate / 60
                logger.info(
                    "feature cache: %d of %d photos (%.0f photos/s, %.0f minutes left)",
                    *(meta.done + done, meta.count, rate, left),
                )
    seconds = time.monotonic() - start
    logger.info(
        "feature cache: done, %d photos in %.0f s (%.0f photos/s)", done, seconds, done / seconds
    )


class _Writer:
    """Writes batches in a thread while the encoder computes, and saves the position on the way.

    When the block ends, also by an interrupt, everything that was added is on the disk.

    Args:
        folder: The cache's folder.
        meta: Its metadata; `done` tells where to continue.
        save_every: Images between two saves.
    """

    def __init__(self, folder: Path, meta: CacheMeta, save_every: int) -> None:
        self.folder = folder
        self.meta = meta
        self.save_every = save_every
        self.position = self._added = meta.done
        self._files: list[tuple[BinaryIO, int]] = []  # per stage: the file, its header's size
        self._pool = ThreadPoolExecutor(1, "features")
        self._pending: deque[Future[None]] = deque()
        if meta.done:
            _check_room(folder, meta)
            self._open(create=False)

    def add(self, views: Sequence[Sequence[Tensor]]) -> None:
        """Add the stages of a batch for each view; wait while too many batches are unwritten.

        Raises:
            DataError: The disk has no room for the cache, or an earlier batch could not be written.
        """
        if not self._files:
            shapes = [list(stage.shape[1:]) for stage in views[0]]
            self.meta = replace(self.meta, shapes=shapes)
            _check_room(self.folder, self.meta)
            self._open(create=True)
        if len(self._pending) == _MAX_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._write, views, self._added))
        self._added += len(views[0][0])

    def __enter__(self) -> _Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            while self._pending:
                self._pending.popleft().result()
            self._save()
        except DataError:
            if error is None:  # else the first error is the one to report
                raise
        finally:
            self._pool.shutdown(cancel_futures=True)
            for file, _ in self._files:
                with contextlib.suppress(OSError):
                    file.close()

    def _open(self, *, create: bool) -> None:
        stages = open_stages(self.folder, self.meta, create=create)
        for number, stage in enumerate(stages):
            file = open(stage_path(self.folder, number), "r+b")  # noqa: SIM115  # see __exit__
            self._files.append((file, stage.offset))

    def _write(self, views: Sequence[Sequence[Tensor]], start: int) -> None:
        if start != self.position:
            return  # the batch before could not be written
        for view, stages in enumerate(views):
            for (file, offset), stage in zip(self._files, stages, strict=True):
                bits = _to_bits(stage, self.meta.torch_dtype, start)
                row = view * self.meta.count + start
                with self._write_errors():
                    file.seek(offset + row * bits[0].nbytes)
                    file.write(bits.data)
        self.position = start + len(views[0][0])
        if self.position - self.meta.done >= self.save_every:
            self._save()

    def _save(self) -> None:
        """Flush all rows to the disk, then the position."""
        if self.position == self.meta.done:
            return
        with self._write_errors():
            for file, _ in self._files:
                file.flush()
                os.fsync(file.fileno())
            meta = replace(self.meta, done=self.position)
            meta.write(self.folder)
        self.meta = meta

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turn an OSError into a DataError.

        Files are written by calls: through the memory map, a full disk would be a SIGBUS.
        """
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot write the feature cache ({error.strerror});"
                f" {self.meta.done} photos are kept: mend that and start again to go on"
            ) from error


def _to_bits(stage: Tensor, dtype: torch.dtype, first: int) -> np.ndarray:
    """Return the bits in half precision, as int16, of (B, C, H, W) of any float type.

    Values out of range are clamped, with a warning.
    """
    top = float(stage.abs().amax())  # NaN if there is one
    if not np.isfinite(top):
        raise DataError(
            f"the encoder's features are not finite in the batch from photo {first} on:"
            " check its weights and precision"
        )
    limit = torch.finfo(dtype).max
    if top > limit:
        logger.warning(
            "features beyond the range of fp16 were clamped to ±%.0f: consider bf16 for the cache",
            limit,
        )
        stage = stage.clamp(-limit, limit)
    return stage.to(dtype).contiguous().cpu().view(torch.int16).numpy()


def _check_room(folder: Path, meta: CacheMeta) -> None:
    """Log the size of the cache, and check that the rest of it fits on the disk."""
    needed = meta.nbytes * (meta.count - meta.done) / meta.count
    free = shutil.disk_usage(folder).free
    logger.info("feature cache: %s at %s (%s free)", meta.describe(), folder, _gigabytes(free))
    if needed > free:
        raise DataError(
            f"{folder}: the feature cache needs {_gigabytes(needed)} and the disk has"
            f" {_gigabytes(free)} free; choose another folder, fewer copies or no mirrored views"
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e9:.3f} GB"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock while the block runs; wait for a process that holds it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                exclusive_lock(
                    folder / _LOCK,
                    timeout=-1,
                    on_wait=lambda: logger.info(
                        "feature cache: waiting for the process that builds %s", folder
                    ),
                )
            )
        except OSError as error:  # some network file systems
            raise DataError(
                f"{folder}: files cannot be locked here ({error.strerror}); choose another folder"
            ) from error
        yield
