"""What the model says and sees after each validation: the same few photos, again and again.

    run/samples/epoch-003/photo-1.png     the photo, and one overlay per word
    run/samples/epoch-003/samples.jsonl   captions, references, log-probabilities

Shapes: B photos, S image side, T words, (H, W) attention grid.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from captioner.backends.torch import TorchStepper
from captioner.config import Config
from captioner.data.annotations import Example
from captioner.decoding.beam_search import beam_search
from captioner.decoding.options import DecodingOptions
from captioner.errors import CaptionerError
from captioner.image.io import open_image
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.outputs import Caption
from captioner.tokenizer import Vocabulary, detokenize
from captioner.utils.device import autocast
from captioner.utils.files import replacing

logger = logging.getLogger(__name__)


def write_samples(
    folder: Path,
    model: CaptionModel,
    vocabulary: Vocabulary,
    preprocess: Preprocess,
    examples: Sequence[Example],
    config: Config,
    device: torch.device,
    *,
    epoch: int,
    step: int,
) -> None:
    """Caption ``config.log.samples`` of the validation photos and draw where the model looked.

    The photos are read from their files, also when training reads cached features. What goes wrong
    (a photo that is gone, a full disk) is a warning: no training dies of its pictures.

    Args:
        folder: Of the run.
        model: In ``eval()``.
        vocabulary: Its words.
        preprocess: What its encoder expects.
        examples: All validation photos; the samples are spread evenly over them.
        config: The recipe.
        device: Where to compute.
        epoch: Epochs done.
        step: Steps done.
    """
    target = folder / "samples" / f"epoch-{epoch:03}"
    lines = []
    for number, example in enumerate(spread(examples, config.log.samples), start=1):
        try:
            caption = _caption(model, vocabulary, preprocess, example.image, config, device)
            picture = target / f"photo-{number}.png"
            with replacing(picture) as temporary:
                caption.strip().save(temporary, "PNG")
        except (CaptionerError, OSError) as error:
            logger.warning("no sample %d of epoch %d: %s", number, epoch, error)
            continue
        line = {
            "epoch": epoch,
            "step": step,
            "image": os.path.basename(example.image),
            "image_id": example.image_id,
            "strip": picture.name,
            "caption": caption.text,
            "finished": caption.finished,
            "log_prob": round(sum(caption.log_probs), 4),
            "references": list(example.captions),
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    if lines:
        try:
            with replacing(target / "samples.jsonl") as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            logger.warning("no samples.jsonl of epoch %d: %s", epoch, error)


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """Up to ``count`` examples, evenly spaced: the same ones every time."""
    count = min(count, len(examples))
    return [examples[number * len(examples) // count] for number in range(count)]


@torch.inference_mode()
def _caption(
    model: CaptionModel,
    vocabulary: Vocabulary,
    preprocess: Preprocess,
    path: str,
    config: Config,
    device: torch.device,
) -> Caption:
    """The caption of one photo as validation would find it.

    Raises:
        ImageError: The photo cannot be opened.
    """
    options = DecodingOptions(beam=config.validation.beam, max_length=config.validation.max_length)
    square = preprocess.to_uint8(open_image(path, shrink_to=preprocess.size))
    images = preprocess.normalize(torch.from_numpy(square[None]).to(device))  # (1, 3, S, S)
    with autocast(device, config.optim.precision):
        memory = model.decoder.remember(model.encoder(images))
        ((best, *_),) = beam_search(TorchStepper(model.decoder, memory), options)
    words = vocabulary.decode(best.words)
    return Caption(
        text=detokenize(words),
        words=words,
        log_probs=best.log_probs,
        score=best.score,
        finished=best.finished,
        attention=best.attention.reshape(-1, *memory.size),  # (T, H, W)
        source=path,
    )
