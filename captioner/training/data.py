"""From the recipe's data section to datasets: captions read, features cached where they can be.

Shapes: B photos, S image side.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captioner.config import Config, DataConfig, SourceConfig
from captioner.data.annotations import Example, read_captions
from captioner.data.dataset import CaptionDataset
from captioner.data.features import FeatureCache, build_features
from captioner.errors import ConfigError
from captioner.image.io import open_image
from captioner.image.transforms import Preprocess
from captioner.models.encoder import Encoder
from captioner.tokenizer import Vocabulary
from captioner.utils.device import autocast

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    Attributes:
        train: Photos with captions.
        val: Validation photos; empty if the recipe names none.
        val_cache: Their features, if the encoder is frozen.
        preprocess: For photos that are read.
    """

    train: CaptionDataset
    val: list[Example]
    val_cache: FeatureCache | None
    preprocess: Preprocess

    def val_pictures(
        self, photos: Sequence[int], batch_size: int, device: torch.device
    ) -> Iterator[Tensor | list[Tensor]]:
        """Some validation photos, in this order: stages of the trunk, or normalised photos."""
        for start in range(0, len(photos), batch_size):
            rows = photos[start : start + batch_size]
            if self.val_cache is not None:
                yield [stage.to(device).float() for stage in self.val_cache.read_batch(rows)]
            else:
                size = self.preprocess.size
                images = [open_image(self.val[row].image, shrink_to=size) for row in rows]
                pixels = torch.from_numpy(np.stack([self.preprocess.to_uint8(i) for i in images]))
                yield self.preprocess.normalize(pixels.to(device))


def read_examples(config: DataConfig, val_limit: int | None) -> tuple[list[Example], list[Example]]:
    """Read the training and validation captions that a recipe names.

    Raises:
        ConfigError: No training captions are named.
        DataError: A file cannot be used.
    """
    if not config.train:
        raise ConfigError("data.train names no captions file")

    def read(sources: tuple[SourceConfig, ...]) -> list[Example]:
        root = Path(config.root)
        return [
            example
            for source in sources
            for example in read_captions(
                root / source.captions,
                None if source.images is None else root / source.images,
                source.split,
            )
        ]

    return read(config.train)[: config.limit], read(config.val)[:val_limit]


def build_datasets(
    config: Config,
    train: list[Example],
    val: list[Example],
    encoder: Encoder,
    vocabulary: Vocabulary,
    preprocess: Preprocess,
    device: torch.device,
) -> TrainingData:
    """Make the datasets; a frozen encoder's features are computed once and kept on disk.

    Raises:
        ConfigError: Augmented copies are asked for, and no augmentation.
        DataError: A photo cannot be read, or the features do not fit on the disk.
    """
    data = config.data
    if data.copies > 1 and not data.augment:
        raise ConfigError(f"data.copies={data.copies} are augmented copies: add data.augment=true")
    copies = data.copies if data.augment else 1
    cached = (
        data.cache is not None
        and (copies > 1 or not data.augment)
        and config.model.encoder.trainable_stages == 0
    )
    train_cache = val_cache = None
    if cached:
        assert data.cache is not None
        fingerprint = _fingerprint(encoder)

        def extract(images: Tensor) -> list[Tensor]:
            images = images.contiguous(memory_format=torch.channels_last)
            with autocast(device, config.optim.precision):
                return encoder.forward_features(images)

        encoder.eval()
        caches = [
            build_features(
                data.cache,
                [example.image for example in examples],
                preprocess,
                extract,
                mirror=mirror,
                fingerprint=fingerprint,
                dtype=data.cache_dtype,
                precision=config.optim.precision,
                device=device,
                copies=number,
            )
            if examples
            else None
            for examples, mirror, number in ((train, data.mirror, copies), (val, False, 1))
        ]
        train_cache, val_cache = caches
    dataset = CaptionDataset(
        train,
        vocabulary,
        captions_per_image=data.captions_per_image,
        max_length=data.max_length,
        preprocess=None if cached else preprocess,
        cache=train_cache,
        augment=data.augment,
        mirror=data.mirror,
        seed=config.seed,
    )
    logger.info(
        "%d training photos, %d validation photos, vocabulary of %d words",
        len(train),
        len(val),
        len(vocabulary),
    )
    return TrainingData(dataset, val, val_cache, preprocess)


def _fingerprint(encoder: Encoder) -> str:
    """Hash of the trunk: its name, stages and weights."""
    digest = hashlib.sha256(f"{encoder.config.name} {encoder.config.strides}".encode())
    for name, tensor in sorted(encoder.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
