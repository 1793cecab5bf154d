"""Language before pictures: the decoder learns to write from texts alone, then sees images.

Texts are cheap and say more words than the captions of a small set of images. The decoder reads
them with an empty memory, one location whose features are zero, so that the context is zero and
only the words teach. Images come afterwards, in the training proper.

Shapes: N sentences, T time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from captioner.config import Config
from captioner.data.sampler import LengthAwareSampler
from captioner.errors import CaptionerError, DataError
from captioner.models.caption_model import CaptionModel
from captioner.models.encoder import Grid
from captioner.tokenizer import Vocabulary, tokenize
from captioner.training.data import text_lines
from captioner.training.losses import BatchCounts, word_loss
from captioner.training.optim import build_optimizer, build_schedule
from captioner.utils.device import autocast

logger = logging.getLogger(__name__)


def read_texts(config: Config) -> list[list[str]]:
    """Read the sentences of `data.texts`, one a line, as words.

    Raises:
        DataError: A file cannot be read or holds no words.
    """
    found: list[list[str]] = []
    for name in config.data.texts:
        path = Path(config.data.root) / name
        sentences = [words for line in text_lines(path, "the texts") if (words := tokenize(line))]
        if not sentences:
            raise DataError(f"{path} holds no sentences: data.texts takes one sentence a line")
        found += sentences
    return found


def pretrain(
    model: CaptionModel,
    vocabulary: Vocabulary,
    texts: Sequence[Sequence[str]],
    config: Config,
    device: torch.device,
) -> float:
    """Train the decoder as a language model for `optim.text_epochs` epochs.

    The optimizer is that of the recipe, with a schedule of its own. Every process of a distributed
    training does the same.

    Args:
        model: Its decoder is trained in place; the encoder does not change.
        vocabulary: Of the model.
        texts: Sentences as words.
        config: The recipe.
        device: Where the model is.

    Returns:
        The mean cross-entropy per word over the last epoch, in nats, with label smoothing.

    Raises:
        CaptionerError: The loss is no longer finite.
    """
    most = config.data.max_length
    sentences = [
        np.array([Vocabulary.START, *vocabulary.encode(words[:most]), Vocabulary.END])
        for words in texts
    ]
    size = config.data.batch_size * config.data.captions_per_image
    sampler = LengthAwareSampler(
        [len(sentence) for sentence in sentences], min(size, len(sentences)), seed=config.seed
    )
    epochs = config.optim.text_epochs
    optimizer = build_optimizer(model, config.optim)
    schedule = build_schedule(optimizer, config.optim, epochs * len(sampler))
    weights = [p for p in model.decoder.parameters() if p.requires_grad]
    nothing = Grid(torch.zeros(1, 1, model.encoder.feature_size, device=device), (1, 1))
    mean = float("nan")
    model.decoder.train()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros((), device=device)
        for keys in tqdm(sampler, desc=f"text {epoch + 1}/{epochs}", unit="step", disable=None):
            captions, lengths = _pad([sentences[index] for _, index in keys])
            with autocast(device, config.optim.precision):
                memory = model.decoder.remember(nothing)
                result = model.decoder(memory, captions.to(device), lengths.to(device))
                loss = word_loss(result, config.loss, BatchCounts.of(result.mask.sum(-1)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, config.optim.clip or math.inf)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        mean = total.item() / len(sampler)
        if not math.isfinite(mean):
            raise CaptionerError(
                f"the loss of data.texts is {mean}: lower optim.learning_rate or optim.clip"
            )
        logger.info("texts, epoch %d of %d: cross-entropy %.3f", epoch + 1, epochs, mean)
    return mean


def _pad(sentences: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return ids (1, N, T + 1), the longest sentence first, and the numbers of targets (1, N)."""
    sentences = sorted(sentences, key=len, reverse=True)
    captions = np.full((1, len(sentences), len(sentences[0])), Vocabulary.PAD, dtype=np.int64)
    for row, sentence in enumerate(sentences):
        captions[0, row, : len(sentence)] = sentence
    lengths = torch.tensor([[len(sentence) - 1 for sentence in sentences]])
    return torch.from_numpy(captions), lengths
