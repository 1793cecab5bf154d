"""Let a trained model use words as often as people do: see `captioner.training.word_rates`.

    python scripts/word_rates.py MODEL OUT --config configs/flickr8k_scst.yaml data.root=FOLDER

Captions the training images, moves the classifier's bias, and measures the validation images, round
after round. OUT becomes the model of the round that uses most different words on them at a CIDEr-D
that is lower than MODEL's by --tolerance at most, or MODEL itself. A round over 8,000 images takes
about two minutes on a CPU core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from captioner.backends.torch import TorchStepper
from captioner.checkpoint import load_checkpoint, save_checkpoint
from captioner.config import load_config
from captioner.data.feature_cache import FeatureCache
from captioner.decoding.beam_search import beam_search
from captioner.decoding.options import DecodingOptions, decoding_options
from captioner.metrics.coco_caption import score_captions
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import tokenize
from captioner.training.data import build_datasets, preprocess_of, read_examples
from captioner.training.word_rates import bias_shift, count_words, move_bias

BATCH = 32


@torch.no_grad()
def caption(
    model: CaptionModel, cache: FeatureCache, options: DecodingOptions
) -> list[Sequence[int]]:
    """Caption all images of a feature cache: word ids of each."""
    found: list[Sequence[int]] = []
    for start in range(0, len(cache), BATCH):
        rows = range(start, min(start + BATCH, len(cache)))
        stages = [stage.float() for stage in cache.read_batch(rows)]
        memory = model.decoder.remember(model.encoder.forward_neck(stages))
        stepper = TorchStepper(model.decoder, memory)
        found += [best.words for best, *_ in beam_search(stepper, options)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path, help="the model file to write")
    parser.add_argument("--config", type=Path, required=True, help="recipe that names the data")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--share", type=float, default=0.3, help="of the shift, in each round")
    parser.add_argument("--tolerance", type=float, default=0.0, help="how much CIDEr-D may fall")
    parser.add_argument("--beam", type=int, default=5, help="of the validation captions")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(arguments.config, arguments.overrides)
    model, header = load_checkpoint(arguments.model)
    model.eval()
    vocabulary = header.vocabulary
    train, val = read_examples(config.data, None)
    cpu = torch.device("cpu")
    preprocess = preprocess_of(model.encoder)
    data = build_datasets(config, train, val, model.encoder, vocabulary, preprocess, cpu)
    train_cache, val_cache = data.train.cache, data.val_cache
    if train_cache is None or val_cache is None:
        parser.error(
            "needs validation images (data.val) and cached features: data.cache, and neither "
            "data.augment nor model.encoder.trainable_stages"
        )
    references = [[vocabulary.encode(tokenize(text)) for text in e.captions] for e in train]
    wanted = count_words(references, len(vocabulary))
    narrow = decoding_options(vocabulary, beam=3)
    wide = decoding_options(vocabulary, beam=arguments.beam)

    def measure() -> dict[str, float]:
        texts = [vocabulary.decode(words) for words in caption(model, val_cache, wide)]
        scores = score_captions(texts, [example.captions for example in val]).summary()
        return {
            "cider": round(scores["cider"], 4),
            "bleu4": round(scores["bleu4"], 4),
            "words": len({word for text in texts for word in text}),
            "distinct": len(set(map(tuple, texts))),
        }

    as_given = {name: value.clone() for name, value in model.state_dict().items()}
    before = best = measure()
    logging.info("%s", json.dumps({"round": 0, **before}))
    for number in range(1, arguments.rounds + 1):
        said = count_words(([words] for words in caption(model, train_cache, narrow)), len(wanted))
        shift = bias_shift(said, wanted, kept=narrow.may_repeat or ())  # function words
        move_bias(model.decoder.project, shift, arguments.share)
        now = measure()
        logging.info("%s", json.dumps({"round": number, **now}))
        kept = now["cider"] >= before["cider"] - arguments.tolerance
        if kept and now["words"] > best["words"]:
            best = now
            rates = {"rounds": number, "share": arguments.share, "before": before, "after": now}
            record = {**header.record, "word_rates": rates, "validation": None}
            changed = dataclasses.replace(header, record=record)
            save_checkpoint(arguments.out, changed, model.state_dict(), half=True)
    if best is before:
        save_checkpoint(arguments.out, header, as_given, half=True)
    print(f"{arguments.out}: {json.dumps(best)}")


if __name__ == "__main__":
    main()
