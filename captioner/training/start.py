"""How a run starts: is it the same run, which words and weights, how photos are shared out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from captioner.checkpoint import Header, load_checkpoint
from captioner.config import Config, load_config, to_dict
from captioner.data.annotations import Example
from captioner.errors import CheckpointError, ConfigError
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.models.encoder import Encoder
from captioner.tokenizer import Vocabulary, tokenize
from captioner.training.distributed import world_size
from captioner.utils.files import replacing

logger = logging.getLogger(__name__)

_MAY_CHANGE = {
    *("out", "init", "device", "save_every", "data.root", "data.cache", "data.workers"),
    *("log.samples", "log.tensorboard"),
}


def write_config(config: Config, path: Path) -> None:
    """Keep the recipe of a run, defaults included."""
    with replacing(path) as temporary:
        text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")


def check_same_recipe(config: Config, path: Path) -> None:
    """Refuse to resume a run with a recipe that would give another result.

    Where things lie (folders, device, number of workers) may change.

    Raises:
        CheckpointError: Names the keys that differ.
    """
    here, there = (_flat(to_dict(each)) for each in (config, load_config(path)))
    differing = [
        f"{key} was {there.get(key)!r} and is now {here.get(key)!r}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key) and key not in _MAY_CHANGE
    ]
    if differing:
        raise CheckpointError(
            f"cannot resume {path.parent}: {'; '.join(differing)}; "
            "resume with the recipe it was started with"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def build_vocabulary(examples: Sequence[Example], min_count: int) -> Vocabulary:
    """The words of the training captions.

    Args:
        examples: Captioned photos.
        min_count: How often a word must occur.

    Raises:
        ConfigError: No word occurs that often.
    """
    vocabulary = Vocabulary.build(
        (tokenize(caption) for example in examples for caption in example.captions),
        min_count=min_count,
    )
    if len(vocabulary) == len(Vocabulary.SPECIALS):
        raise ConfigError(
            f"no word occurs data.min_count={min_count} times in the training captions: "
            "lower it, or check data.train"
        )
    return vocabulary


def load_start(config: Config) -> tuple[CaptionModel, Header]:
    """The model that ``config.init`` names, rebuilt with this recipe's configuration.

    Weights that only this recipe's model has keep their fresh initial values.

    Raises:
        CheckpointError: The shapes of the two models do not fit together.
    """
    assert config.init is not None
    start, header = load_checkpoint(config.init)
    model = CaptionModel(config.model, len(header.vocabulary), pretrained=False)
    try:
        missing, unexpected = model.load_state_dict(start.state_dict(), strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CheckpointError(f"init={config.init} does not fit this recipe: {reason}") from None
    if missing or unexpected:
        logger.warning("init: fresh weights %s; unused %s", missing, unexpected)
    return model, header


def preprocess_of(encoder: Encoder) -> Preprocess:
    """What the encoder expects to be done to a photo."""
    mean, std = encoder.normalization.mean, encoder.normalization.std
    return Preprocess(
        size=encoder.config.image_size,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def photos_per_process(config: Config) -> int:
    """Photos of each batch that every process gets.

    Raises:
        ConfigError: The batch cannot be shared out evenly.
    """
    photos, processes = config.data.batch_size, world_size()
    if photos % processes:
        raise ConfigError(
            f"data.batch_size={photos} cannot be shared by {processes} processes: take a multiple"
        )
    return photos // processes
