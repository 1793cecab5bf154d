"""What a run reads: captions, vocabulary, initial model, datasets with features, word vectors.

Shapes: B images, S image side, V vocabulary, E embedding size.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captioner.checkpoint import Header, load_checkpoint
from captioner.config import Config, DataConfig, SourceConfig
from captioner.data.annotations import Example, read_captions
from captioner.data.dataset import CaptionDataset
from captioner.data.feature_cache import FeatureCache
from captioner.data.features import build_features
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.image.io import open_image
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.models.encoder import Encoder
from captioner.models.fuse_bn import fuse_bn
from captioner.tokenizer import Vocabulary, tokenize
from captioner.utils.device import Precision, autocast, trunk_precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes:
        train: Images with captions.
        val: Validation images; empty if the recipe names none.
        val_cache: Their features, if the encoder is frozen.
        preprocess: For images that are read from their files.
    """

    train: CaptionDataset
    val: list[Example]
    val_cache: FeatureCache | None
    preprocess: Preprocess

    def val_inputs(
        self, rows: Sequence[int], batch_size: int, device: torch.device
    ) -> Iterator[Tensor | list[Tensor]]:
        """Yield validation images, in this order: stages of the trunk, or normalized images."""
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            if self.val_cache is not None:
                yield [stage.to(device).float() for stage in self.val_cache.read_batch(batch)]
            else:
                size = self.preprocess.size
                images = [open_image(self.val[row].image, shrink_to=size) for row in batch]
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

    root = Path(config.root)

    def read(sources: tuple[SourceConfig, ...]) -> list[Example]:
        return [example for source in sources for example in _read_source(source, root)]

    return read(config.train)[: config.limit], read(config.val)[:val_limit]


def _read_source(source: SourceConfig, root: Path) -> list[Example]:
    """Read a captions file, and what further files say of its images."""
    images = None if source.images is None else root / source.images
    examples = read_captions(root / source.captions, images, source.split)
    more: dict[str, tuple[str, ...]] = {}
    for name in source.more_captions:
        for example in read_captions(root / name, images, missing="skip"):
            path = os.path.realpath(example.image)
            more[path] = more.get(path, ()) + example.captions
    if more:
        further = [more.get(os.path.realpath(example.image), ()) for example in examples]
        logger.info("further captions of %d images", sum(map(bool, further)))
        examples = [
            replace(example, captions=example.captions + captions)
            for example, captions in zip(examples, further, strict=True)
        ]
    return examples


def build_vocabulary(
    examples: Sequence[Example], min_count: int, texts: Sequence[Sequence[str]] = ()
) -> Vocabulary:
    """Build the vocabulary of the training captions, and of further texts.

    Args:
        examples: Captioned images.
        texts: Sentences as words.
        min_count: How often a word must occur.

    Raises:
        ConfigError: No word occurs that often.
    """
    captions = (tokenize(caption) for example in examples for caption in example.captions)
    vocabulary = Vocabulary.build(itertools.chain(captions, texts), min_count=min_count)
    if len(vocabulary) == len(Vocabulary.SPECIALS):
        raise ConfigError(
            f"no word occurs data.min_count={min_count} times in the training captions: "
            "lower it, or check data.train"
        )
    return vocabulary


def load_initial_model(config: Config) -> tuple[CaptionModel, Header]:
    """Load the model that `config.init` names, rebuilt with this recipe's configuration.

    Weights that only this recipe's model has keep their random initial values.

    Raises:
        CheckpointError: The shapes of the two models differ.
    """
    assert config.init is not None
    initial, header = load_checkpoint(config.init)
    model = CaptionModel(config.model, len(header.vocabulary), pretrained=False)
    try:
        missing, unexpected = model.load_state_dict(initial.state_dict(), strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CheckpointError(f"init={config.init} does not fit this recipe: {reason}") from None
    if missing or unexpected:
        logger.warning("init: fresh weights %s; unused %s", missing, unexpected)
    return model, header


def preprocess_of(encoder: Encoder) -> Preprocess:
    """Return the preprocessing that an encoder expects."""
    mean, std = encoder.normalization.mean, encoder.normalization.std
    return Preprocess(
        size=encoder.config.image_size,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def build_datasets(
    config: Config,
    train: list[Example],
    val: list[Example],
    encoder: Encoder,
    vocabulary: Vocabulary,
    preprocess: Preprocess,
    device: torch.device,
) -> TrainingData:
    """Build the datasets; a frozen encoder's features are computed once and kept on disk.

    Raises:
        ConfigError: Augmented copies are wanted without augmentation.
        DataError: An image cannot be read, or the features do not fit on the disk.
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
        fingerprint = trunk_fingerprint(encoder)
        fused = fuse_bn(encoder)

        def build(
            examples: Sequence[Example], precision: Precision, *, mirror: bool, copies: int
        ) -> FeatureCache:
            def extract(images: Tensor) -> list[Tensor]:
                images = images.contiguous(memory_format=torch.channels_last)
                with autocast(device, precision):
                    return fused.forward_features(images)

            assert data.cache is not None
            return build_features(
                data.cache,
                [example.image for example in examples],
                preprocess,
                extract,
                mirror=mirror,
                fingerprint=fingerprint,
                dtype=data.cache_dtype,
                precision=precision,
                device=device,
                copies=copies,
            )

        precision = config.optim.precision
        train_cache = build(train, precision, mirror=data.mirror, copies=copies)
        if val:
            val_cache = build(val, trunk_precision(precision), mirror=False, copies=1)
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
    counts = len(train), len(val), len(vocabulary)
    logger.info("%d training images, %d validation images, vocabulary of %d words", *counts)
    return TrainingData(dataset, val, val_cache, preprocess)


def trunk_fingerprint(encoder: Encoder) -> str:
    """Return a hash of the trunk: its name, stages and weights."""
    digest = hashlib.sha256(f"{encoder.config.name} {encoder.config.strides}".encode())
    for name, tensor in sorted(encoder.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_embeddings(model: CaptionModel, vocabulary: Vocabulary, config: Config) -> None:
    """Set the word embeddings from the vectors in `config.data.embeddings`, if it names a file.

    The embeddings of words that the file lacks stay as they are. Vectors are taken unchanged, and
    train like any other weight.

    Raises:
        ConfigError: The recipe also starts from a model, or the vectors have another size than
            `model.decoder.embedding`.
        DataError: The file cannot be read, or contains none of the words.
    """
    if config.data.embeddings is None:
        return
    if config.init is not None:
        raise ConfigError(
            f"data.embeddings is for a new model, and init={config.init} brings trained "
            "embeddings: drop one of the two"
        )
    path = Path(config.data.embeddings)
    weight = model.decoder.embed.weight  # (V, E)
    found = read_vectors(path, vocabulary, weight.shape[1])
    with torch.no_grad():
        for word, vector in found.items():
            weight[word] = torch.from_numpy(vector)
    words = len(vocabulary) - len(Vocabulary.SPECIALS)
    logger.info("word embeddings: %d of %d words from %s", len(found), words, path)


def read_vectors(path: Path, vocabulary: Vocabulary, size: int) -> dict[int, np.ndarray]:
    """Read the word vectors of a vocabulary's words from a GloVe or word2vec text file.

    Each line is a word and its numbers; word2vec has a first line with the number of words and
    their size.

    Args:
        path: A text file, gzipped if its name ends in `.gz`. If a word occurs twice, its first
            vector counts.
        vocabulary: The words; its specials (`<unk>` ...) are left out.
        size: E.

    Returns:
        A vector (E,) in fp32 by word id.

    Raises:
        ConfigError: The vectors have another size.
        DataError: The file cannot be read, or contains none of the words.
    """
    ids = {word: number for number, word in enumerate(vocabulary.to_list())}
    for special in Vocabulary.SPECIALS:
        ids.pop(special, None)
    found: dict[int, np.ndarray] = {}
    for number, line in enumerate(text_lines(path, "the word vectors"), start=1):
        if number == 1:
            _check_size(line, size, path)
        word, *_ = line.split(maxsplit=1) or [""]
        if word not in ids or ids[word] in found:
            continue
        # From the right: some GloVe files contain words with spaces in them.
        first, *numbers = line.split()[-size - 1 :]
        try:
            vector = np.array(numbers, dtype=np.float32)
            if len(vector) != size or not np.isfinite(vector).all():
                raise ValueError
        except ValueError:
            raise DataError(f"{path}, line {number}: {word!r} should have {size} numbers") from None
        if first == word:  # else the word goes on: "at home" is not "at"
            found[ids[word]] = vector
    if not found:
        raise DataError(
            f"{path} contains none of the {len(ids):,} words of the captions: is it a text file of "
            "word vectors, of the same language?"
        )
    return found


def _check_size(line: str, size: int, path: Path) -> None:
    """Compare the first line, of word2vec's counts or of a word, with the embeddings.

    Raises:
        ConfigError: The vectors have another size.
        DataError: It is not a line of word vectors.
    """
    fields = line.split()
    header = len(fields) == 2 and all(field.isdecimal() for field in fields)
    found = int(fields[1]) if header else len(fields) - 1
    if found < 1:
        raise DataError(f"{path}: no word vectors in text form (a word and its numbers per line)")
    if found != size:
        raise ConfigError(
            f"{path} holds vectors of {found} numbers and model.decoder.embedding is {size}: "
            f"set model.decoder.embedding={found}, or take another file"
        )


def text_lines(path: Path, what: str) -> Iterator[str]:
    """Yield the lines of a text file, gzipped if its name ends in `.gz`, without their ends.

    Args:
        path: The file.
        what: What it holds, for the error.

    Raises:
        DataError: It cannot be read.
    """
    try:
        packed = path.suffix == ".gz"
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            for line in file:
                yield line.decode("utf-8", errors="replace").rstrip()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error  # gzip's own errors have no strerror
        raise DataError(f"cannot read {what} {path}: {reason}") from None
