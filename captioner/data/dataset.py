"""Batches of images x captions: the dataset, the collate and the loader.

Everything random is a pure function of (seed, epoch, image): interruptions and the numbers of
workers and processes do not change what a training sees.

    dataset = CaptionDataset(examples, vocabulary, cache=cache, mirror=True)
    sampler = LengthAwareSampler(dataset.lengths, batch_size=16)
    loader = make_loader(dataset, sampler, workers=2)
    for epoch in range(sampler.epoch, epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            ...
            sampler.advance()

Shapes: B images in a batch, C captions per image, T time, S side of the encoder's input.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from captioner.data.annotations import Example
from captioner.data.caption_batch import CaptionBatch
from captioner.data.feature_cache import FeatureCache
from captioner.data.sampler import Key, LengthAwareSampler
from captioner.errors import DataError, ImageError
from captioner.image.io import open_image
from captioner.image.transforms import Augmentation, Preprocess
from captioner.tokenizer import Vocabulary, tokenize

logger = logging.getLogger(__name__)

_TIMEOUT = 600.0  # seconds without a batch from the workers, after which the training gives up

_MIRROR = {"left": "right", "leftmost": "rightmost", "leftward": "rightward"}
_MIRROR |= {right: left for left, right in _MIRROR.items()}


@dataclass
class CaptionItem:
    """One image of a batch with its captions as word ids.

    Pixels are in `image`, (S, S, 3) uint8, or features in a view of `cache`, which `collate` reads
    for the whole batch at once.
    """

    image: np.ndarray | None
    cache: FeatureCache | None
    view: int
    captions: list[np.ndarray]
    captions_per_image: int
    index: int


class CaptionDataset(Dataset[CaptionItem]):
    """Images (or their cached features) with captions as word ids.

    Items are indexed by (epoch, index) as the sampler yields it, or by index alone (epoch 0).

    Args:
        examples: The images and captions.
        vocabulary: Turns words into ids.
        captions_per_image: C; for an image with more captions, each epoch draws C of them.
        max_length: Words after which a caption is cut.
        preprocess: To read the images at its size; normalisation is left to the device.
        cache: To take features from instead of images; row i belongs to examples[i].
        augment: Random resized crops and colour jitter; with a cache, its augmented copies.
        mirror: Mirror half of the images, and swap `left` and `right` in their captions.
        seed: Seed of all draws.

    Raises:
        DataError: There are no examples, not exactly one of `preprocess` and `cache` is given, or
            the cache does not fit. Reading an item raises it when the image cannot be read.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        vocabulary: Vocabulary,
        *,
        captions_per_image: int = 5,
        max_length: int = 30,
        preprocess: Preprocess | None = None,
        cache: FeatureCache | None = None,
        augment: bool = False,
        mirror: bool = False,
        seed: int = 0,
    ) -> None:
        if not examples:
            raise DataError("no captioned photos: check the caption file and its split")
        if (preprocess is None) == (cache is None):
            raise DataError("give either preprocess (to read photos) or a feature cache")
        self.paths = [example.image for example in examples]
        if cache is not None:
            cache.check_files(self.paths)
            if augment and cache.copies < 2:
                raise DataError(f"{cache.folder}: no augmented copies; build the cache with them")
            if mirror and not cache.mirrored:
                raise DataError(f"{cache.folder}: no mirrored view here; build the cache with it")
        self.preprocess = preprocess
        self.cache = cache
        self.augmentation = Augmentation(preprocess) if augment and preprocess else None
        self.copies = cache.copies if cache is not None and augment else 1
        self.mirror = mirror
        self.seed = seed
        self._captions = _EncodedCaptions(examples, vocabulary, max_length, mirrored=mirror)
        most = max(self._captions.count(index) for index in range(len(examples)))
        self.captions_per_image = max(1, min(captions_per_image, most))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def lengths(self) -> np.ndarray:
        """Return the targets of each image's longest caption, (N,); the sampler sorts by them."""
        return self._captions.longest

    def references(self) -> list[list[list[int]]]:
        """Return the captions of every image as word ids with END, not mirrored."""
        captions = (self._captions.get(index, mirrored=False) for index in range(len(self)))
        return [[words[1:].tolist() for words in of_image] for of_image in captions]

    def __getitem__(self, key: Key | int) -> CaptionItem:
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        generator = np.random.default_rng([self.seed, epoch, index])
        mirrored = bool(self.mirror and generator.random() < 0.5)
        captions = self._captions.get(index, mirrored)
        if len(captions) > self.captions_per_image:
            chosen = generator.choice(len(captions), self.captions_per_image, replace=False)
            captions = [captions[number] for number in chosen]
        # Longest first: the decoder drops the columns that are finished.
        captions.sort(key=len, reverse=True)
        count, image, view = self.captions_per_image, None, 0
        if self.cache is None:
            image = self._read_image(index, mirrored, generator)
        else:
            view = self.cache.view(int(generator.integers(self.copies)), mirrored)
        return CaptionItem(image, self.cache, view, captions, count, index)

    def _read_image(self, index: int, mirrored: bool, generator: np.random.Generator) -> np.ndarray:
        """Read an image as (S, S, 3) uint8."""
        assert self.preprocess is not None
        augment = self.augmentation
        size = self.preprocess.size if augment is None else augment.shrink_to
        try:
            image = open_image(self.paths[index], shrink_to=size)
        except ImageError as error:
            raise DataError(str(error)) from error
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self.preprocess.to_uint8(image) if augment is None else augment(image, generator)


def collate(items: Sequence[CaptionItem]) -> CaptionBatch:
    """Stack items into a batch; T is that of the batch's longest caption.

    Images with the longest caption come first: the decoder drops those that are finished.
    """
    items = sorted(items, key=lambda item: -max(map(len, item.captions), default=0))
    count = max(item.captions_per_image for item in items)
    longest = max((len(words) for item in items for words in item.captions), default=1)
    captions = np.full((len(items), count, longest), Vocabulary.PAD, dtype=np.int64)
    lengths = np.zeros((len(items), count), dtype=np.int64)
    for row, item in enumerate(items):
        for column, words in enumerate(item.captions):
            captions[row, column, : len(words)] = words
            lengths[row, column] = len(words) - 1  # START is not a target
    features = None
    if (cache := items[0].cache) is not None:
        features = cache.read_batch([item.index for item in items], [item.view for item in items])
    images = None
    if items[0].image is not None:
        images = torch.from_numpy(
            np.stack([item.image for item in items if item.image is not None])
        )
    return CaptionBatch(
        images,
        features,
        torch.from_numpy(captions),
        torch.from_numpy(lengths),
        torch.tensor([item.index for item in items]),
    )


class CaptionLoader(DataLoader[Any]):
    """Yields `CaptionBatch`es from workers that stay alive from epoch to epoch.

    Raises:
        DataError: While iterating: an image cannot be read, the shared memory is full, a worker was
            killed, or no batch has come for `_TIMEOUT` seconds.
    """

    def __iter__(self) -> Iterator[CaptionBatch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DataError as error:
            # A worker's error has a traceback before its message.
            message = str(error).strip().splitlines()[-1]
            raise DataError(message.removeprefix("captioner.errors.DataError: ")) from error
        except OSError as error:  # the queues of the workers are made in /dev/shm as well
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EMFILE):
                raise
            raise DataError(_no_shared_memory(error)) from error
        except RuntimeError as error:
            if "DataLoader" not in str(error):  # not about the loader
                raise
            raise DataError(
                f"loading of images has stopped ({' '.join(str(error).split())}): read them without"
                " worker processes (data.workers=0) to see why"
            ) from error

    def end_workers(self) -> None:
        """End the workers now, whatever they wait for; the loader cannot be used any more."""
        for worker in getattr(self._iterator, "_workers", []):
            worker.terminate()


def make_loader(
    dataset: CaptionDataset,
    sampler: LengthAwareSampler,
    *,
    workers: int = 2,
    pin_memory: bool = False,
) -> CaptionLoader:
    """Connect a dataset and a sampler; `workers` processes read ahead (0: none)."""
    return CaptionLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate_to_share if workers else collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals_alone,
        timeout=_TIMEOUT if workers else 0,
        # The loader draws a seed per epoch. Drawn from the generator that dropout uses, it would
        # make a resumed training differ from an uninterrupted one.
        generator=torch.Generator(),
    )


def _collate_to_share(items: Sequence[CaptionItem]) -> CaptionBatch:
    """Collate in a worker, into memory shared with the training process.

    Left to the queue, a batch that does not fit into shared memory would be lost in a thread of the
    worker, and the training would wait for it in vain.
    """
    batch = collate(items)
    try:
        return batch.map(lambda tensor: tensor.share_memory_())
    except (RuntimeError, OSError) as error:
        raise DataError(_no_shared_memory(error)) from error


def _no_shared_memory(error: Exception) -> str:
    return (
        f"the worker processes that read images have no shared memory ({error}): enlarge /dev/shm"
        " (Docker: --shm-size=1g) or read without them (data.workers=0)"
    ).replace("\n", " ")


def _leave_signals_alone(_worker: int) -> None:
    """Leave Ctrl-C and torchrun's SIGTERM, sent to a whole process group, to the training process.

    SIGTERM sent to a worker itself must work: it ends workers at exit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()


class _EncodedCaptions:
    """All captions as START, word ids, END, in flat arrays that forked workers share."""

    def __init__(
        self, examples: Sequence[Example], vocabulary: Vocabulary, max_length: int, mirrored: bool
    ) -> None:
        plain: list[int] = []
        swapped: list[int] = []
        ends = [0]  # of the captions, in the flat arrays
        first = [0]  # number of each image's first caption
        longest = []
        for example in examples:
            sentences = [words for caption in example.captions if (words := tokenize(caption))]
            if not sentences:
                logger.warning(
                    "%s has no caption with words in it", os.path.basename(example.image)
                )
            for words in sentences:
                words = words[:max_length]
                plain += [Vocabulary.START, *vocabulary.encode(words), Vocabulary.END]
                if mirrored:
                    words = mirror_words(words)
                    swapped += [Vocabulary.START, *vocabulary.encode(words), Vocabulary.END]
                ends.append(len(plain))
            first.append(len(ends) - 1)
            longest.append(max((min(len(words), max_length) + 1 for words in sentences), default=0))
        self._flat = [np.array(flat, dtype=np.int32) for flat in (plain, swapped)]
        self._ends = np.array(ends)
        self._first = np.array(first)
        self.longest = np.array(longest)

    def count(self, index: int) -> int:
        return int(self._first[index + 1] - self._first[index])

    def get(self, index: int, mirrored: bool) -> list[np.ndarray]:
        flat = self._flat[mirrored]
        numbers = range(self._first[index], self._first[index + 1])
        return [flat[self._ends[number] : self._ends[number + 1]] for number in numbers]


def mirror_words(words: Sequence[str]) -> list[str]:
    """Swap left and right in the words of a caption, for its mirrored image."""
    return ["-".join(_MIRROR.get(part, part) for part in word.split("-")) for word in words]
