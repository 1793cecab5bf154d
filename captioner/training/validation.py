"""Validation during training: captions are generated freely and scored against all references."""

from __future__ import annotations

import math

import torch

from captioner.backends.torch import TorchStepper
from captioner.config import Config
from captioner.decoding.beam_search import beam_search
from captioner.decoding.options import DecodingOptions
from captioner.metrics.coco_caption import score_captions
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import Vocabulary
from captioner.training.attention_sums import AttentionSums
from captioner.training.data import TrainingData
from captioner.training.distributed import gather, rank, world_size
from captioner.utils.device import autocast

_BATCH = 32  # photos


@torch.inference_mode()
def validate(
    model: CaptionModel,
    vocabulary: Vocabulary,
    data: TrainingData,
    config: Config,
    device: torch.device,
) -> tuple[dict[str, float], AttentionSums]:
    """Caption the validation photos with beam search and score them.

    Several processes share the photos, and all get the scores of all.

    Args:
        model: In ``eval()``.
        vocabulary: Its words.
        data: Holds the photos and references.
        config: The recipe.
        device: Where to compute.

    Returns:
        ``cider``, ``bleu1`` .. ``bleu4``, ``rouge_l`` as fractions; ``attention_entropy``, the
        mean over words as a share of the uniform map's; ``words``, the mean length. And how much
        attention each place got over its sentence.
    """
    options = DecodingOptions(beam=config.validation.beam, max_length=config.validation.max_length)
    captions: list[list[str]] = []
    entropies: list[float] = []
    sums = AttentionSums()
    mine = range(rank(), len(data.val), world_size())
    for pictures in data.val_pictures(mine, _BATCH, device):
        with autocast(device, config.optim.precision):
            stages = (
                pictures if isinstance(pictures, list) else model.encoder.forward_features(pictures)
            )
            memory = model.decoder.remember(model.encoder.forward_neck(stages))
            found = beam_search(TorchStepper(model.decoder, memory), options)
        for best, *_ in found:
            captions.append(vocabulary.decode(best.words))
            maps = torch.from_numpy(best.attention)  # (T, L)
            entropy = -torch.special.xlogy(maps, maps).sum(-1) / math.log(maps.shape[-1])
            entropies += entropy.tolist()
            sums.add(maps)
    parts = gather((captions, entropies, sums.values))
    sums.values = torch.stack([values for _, _, values in parts]).sum(0)
    every: list[list[str]] = [[]] * len(data.val)
    for first, (words, _, _) in enumerate(parts):
        every[first :: world_size()] = words
    captions, entropies = every, [value for _, values, _ in parts for value in values]
    scores = score_captions(captions, [example.captions for example in data.val])
    metrics = {
        **{name: round(value, 5) for name, value in scores.summary().items()},
        "attention_entropy": round(sum(entropies) / max(1, len(entropies)), 4),
        "words": round(sum(map(len, captions)) / len(captions), 2),
    }
    return metrics, sums
