"""Validation during training: captions are generated, never teacher-forced, and scored.

After it, a few images are captioned again and drawn with their attention:

    run/samples/epoch-003/photo-1.png     the image, and one overlay per word
    run/samples/epoch-003/samples.jsonl   captions, references, log-probabilities

Shapes: B images, S image side, T words, L locations, (H, W) attention grid.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioner.backends.torch import TorchStepper
from captioner.backends.torch_search import DeviceSearch
from captioner.config import Config
from captioner.data.annotations import Example
from captioner.decoding.beam_search import beam_search
from captioner.decoding.options import DecodingOptions, decoding_options
from captioner.errors import CaptionerError
from captioner.image.io import open_image
from captioner.image.transforms import Preprocess
from captioner.metrics.coco_caption import score_captions
from captioner.models.attention import Memory, map_entropy
from captioner.models.caption_model import CaptionModel
from captioner.outputs import Caption
from captioner.tokenizer import Vocabulary
from captioner.training.data import TrainingData
from captioner.training.distributed import gather, rank, world_size
from captioner.utils.device import autocast, trunk_autocast
from captioner.utils.files import replacing

logger = logging.getLogger(__name__)

EDGES = (0.0, *(2.0**power for power in range(-10, 6)))
"""Bounds of `AttentionSums`' bins: 0, 1/1024, 1/512, ..., 16, 32; the last bin has no upper one."""

_BATCH = 32  # images
_GPU_BATCH = 128


class AttentionSums:
    """A histogram of Σ_t α_ti, the attention that each location receives over a whole sentence.

    The paper's penalty pulls every sum towards 1; over a sentence of T words and L locations their
    mean is T/L. A peak at T/L means flat maps, weight at both ends means maps that point somewhere.

    Attributes:
        values: (K + 2,) fp64: counts of the K bins, Σ of the sums, Σ of their squares. Several
            processes add theirs together.
    """

    def __init__(self) -> None:
        self.values = torch.zeros(len(EDGES) + 1, dtype=torch.float64)

    def add(self, attention: Tensor) -> None:
        """Count the locations of some captions: (..., T, L) maps of each caption's words."""
        sums = attention.detach().double().sum(-2).flatten()  # one per caption and location
        inner = torch.tensor(EDGES[1:-1], dtype=torch.float64, device=sums.device)
        bins = torch.bucketize(sums, inner, right=True)
        counts = torch.bincount(bins, minlength=len(EDGES) - 1).double()
        moments = torch.stack((sums.sum(), sums.square().sum()))
        self.values += torch.cat((counts, moments)).cpu()

    def record(self) -> dict[str, Any]:
        """Return `edges`, `counts`, `sum` and `sum_squares` for the log."""
        *counts, total, squares = self.values.tolist()
        return {
            "edges": list(EDGES),
            "counts": [int(count) for count in counts],
            "sum": round(total, 3),
            "sum_squares": round(squares, 3),
        }


@torch.no_grad()
def validate(
    model: CaptionModel,
    vocabulary: Vocabulary,
    data: TrainingData,
    config: Config,
    device: torch.device,
) -> tuple[dict[str, float], AttentionSums]:
    """Caption the validation images with beam search and score them.

    Several processes share the images, and all get the scores of all images.

    Args:
        model: In `eval()`.
        vocabulary: The model's.
        data: With the validation images and their references.
        config: The recipe.
        device: Where to compute.

    Returns:
        `cider`, `bleu1` .. `bleu4`, `rouge_l` as fractions; `attention_entropy`, the mean over
        words as a share of the uniform map's; `words`, the mean length. And the attention that the
        locations received.
    """
    options = _options(vocabulary, config)
    captions: list[list[str]] = []
    entropy, sums = 0.0, AttentionSums()
    mine = range(rank(), len(data.val), world_size())
    on_gpu = device.type == "cuda"
    search = DeviceSearch(model.decoder)
    for inputs in data.val_inputs(mine, _GPU_BATCH if on_gpu else _BATCH, device):
        memory = _remember(model, inputs, config, device)
        with autocast(device, config.optim.precision):
            if on_gpu:
                found = search.hypotheses(memory, options)
            else:  # its loop leaves out what is finished
                found = beam_search(TorchStepper(model.decoder, memory), options)
        for best, *_ in found:
            captions.append(vocabulary.decode(best.words))
            maps = torch.as_tensor(best.attention)  # (T, L)
            entropy += map_entropy(maps).sum().item()
            sums.add(maps)
    parts = gather((captions, entropy, sums.values))
    sums.values = torch.stack([values for _, _, values in parts]).sum(0)
    every: list[list[str]] = [[]] * len(data.val)
    for first, (theirs, _, _) in enumerate(parts):
        every[first :: world_size()] = theirs
    words = sum(map(len, every))
    scores = score_captions(every, [example.captions for example in data.val])
    metrics = {
        **{name: round(value, 5) for name, value in scores.summary().items()},
        "attention_entropy": round(sum(entropy for _, entropy, _ in parts) / max(1, words), 4),
        "words": round(words / len(every), 2),
    }
    return metrics, sums


def _options(vocabulary: Vocabulary, config: Config) -> DecodingOptions:
    """Return what captioning decodes with, so that a run is judged by what the model will write."""
    settings = config.validation
    return decoding_options(vocabulary, beam=settings.beam, max_length=settings.max_length)


def _remember(
    model: CaptionModel, inputs: Tensor | list[Tensor], config: Config, device: torch.device
) -> Memory:
    """Encode images, or their features, in the precision of captioning (`TorchBackend`)."""
    precision = config.optim.precision
    with trunk_autocast(device, precision):
        stages = inputs if isinstance(inputs, list) else model.encoder.forward_features(inputs)
        grid = model.encoder.forward_neck(stages)
    with autocast(device, precision):
        return model.decoder.remember(grid)


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
    """Caption `config.log.samples` validation images, and draw where the model looked.

    The images are read from their files even if training reads cached features. A failure (a
    missing image, a full disk) is only a warning, so that training goes on.

    Args:
        folder: Of the run.
        model: In `eval()`.
        vocabulary: The model's.
        preprocess: The preprocessing that its encoder expects.
        examples: All validation images; the samples are spread evenly over them.
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
            strip = target / f"photo-{number}.png"
            with replacing(strip) as temporary:
                caption.strip().save(temporary, "PNG")
        except (CaptionerError, OSError) as error:
            logger.warning("no sample %d of epoch %d: %s", number, epoch, error)
            continue
        line = {
            "epoch": epoch,
            "step": step,
            "image": os.path.basename(example.image),
            "image_id": example.image_id,
            "strip": strip.name,
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
    """Return up to `count` examples, evenly spaced: the same ones every time."""
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
    """Caption one image file as validation would.

    Raises:
        ImageError: The image cannot be opened.
    """
    options = _options(vocabulary, config)
    pixels = preprocess.to_uint8(open_image(path, shrink_to=preprocess.size))  # (S, S, 3)
    images = preprocess.normalize(torch.from_numpy(pixels[None]).to(device))  # (1, 3, S, S)
    memory = _remember(model, images, config, device)
    with autocast(device, config.optim.precision):
        ((best, *_),) = beam_search(TorchStepper(model.decoder, memory), options)
    return Caption.of(best, vocabulary, memory.size, path)
