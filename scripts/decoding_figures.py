"""Compare the ways of decoding, in quality and cost: the table of docs/decoding.md.

    python scripts/decoding_figures.py captions_val.json --images images/ --photos 300

Each photo is encoded once; then every way of decoding captions all of them from the same features.
Cost is the processor time of decoding with one thread, beside greedy decoding, the encoder left
out. Precision is that of ``captioner caption``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captioner import Captioner
from captioner.data.annotations import read_captions
from captioner.decoding.beam_search import beam_search
from captioner.decoding.mbr import choose
from captioner.decoding.options import DecodingOptions, OptionArguments, decoding_options
from captioner.decoding.sampling import image_key, sample
from captioner.metrics.coco_caption import score_captions
from captioner.metrics.diversity import measure_diversity
from captioner.tokenizer import tokenize

BATCH = 32
WAYS: dict[str, OptionArguments] = {
    "greedy: `--beam 1`": {"beam": 1},
    "`--beam 3` (the default)": {"beam": 3},
    "`--beam 5`": {"beam": 5},
    "`--beam 10`": {"beam": 10},
    "`--beam 5 --length-penalty 1`": {"beam": 5, "length_penalty": 1.0},
    "`--beam 5 --length-penalty average`": {"beam": 5, "length_penalty": "average"},
    "`--repeat-words`": {"beam": 3, "repeat_words": True},
    "`--no-repeat-ngram 2`": {"beam": 3, "no_repeat_ngram": 2},
    "`--beam 6 --diverse 3`": {"beam": 6, "groups": 3},
    "`--mbr 10`": {"beam": 10, "mbr": 10},
    "`--sample`": {"sample": True},
    "`--sample --top-p 0.9`": {"sample": True, "top_p": 0.9},
    "`--sample --temperature 0.5`": {"sample": True, "temperature": 0.5},
    "`--sample --temperature 0.5 --mbr 5`": {"sample": True, "temperature": 0.5, "mbr": 5},
    "`--sample --temperature 0.5 --mbr 20`": {"sample": True, "temperature": 0.5, "mbr": 20},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", type=Path, help="what people wrote")
    parser.add_argument("--images", type=Path, help="folder of the photos")
    parser.add_argument("--model", type=Path, help="model file (default: the shipped one)")
    parser.add_argument("--photos", type=int, metavar="N", help="only the first N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    captioner = Captioner.from_pretrained(options.model)
    examples = read_captions(options.captions, options.images)[: options.photos]
    memories, keys = [], []
    for start in range(0, len(examples), BATCH):
        squares = [captioner.read(example.image) for example in examples[start : start + BATCH]]
        keys.append([image_key(square.tobytes()) for square in squares])
        memories.append(captioner.encode(np.stack(squares)))
    references = [example.captions for example in examples]
    words_of_people = [[tokenize(text) for text in captions] for captions in references]
    print(f"{len(examples)} photos\n")
    print("| | CIDEr-D | BLEU-4 | words | unique captions | repeat a word | cost |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    decode(captioner, memories[:1], keys[:1], DecodingOptions())  # the first call allocates
    greedy = 0.0
    for name, way in WAYS.items():
        search = decoding_options(captioner.vocabulary, **way)
        start = time.process_time()
        captions = decode(captioner, memories, keys, search)
        cost = time.process_time() - start
        greedy = greedy or cost
        scores = score_captions([tokenize(text) for text in captions], references).summary()
        words = statistics.mean(len(caption.split()) for caption in captions)
        told = measure_diversity([tokenize(text) for text in captions], words_of_people)
        print(
            f"| {name} | {scores['cider']:.3f} | {100 * scores['bleu4']:.1f} | {words:.1f} "
            f"| {100 * told.distinct_captions:.0f} % | {told.repeating} | {cost / greedy:.1f} |",
            flush=True,
        )
    print(f"\ngreedy: {1000 * greedy / len(examples):.1f} ms of processor a photo")


def decode(
    captioner: Captioner,
    memories: Sequence[Any],
    keys: Sequence[Sequence[int]],
    search: DecodingOptions,
) -> list[str]:
    """The best caption of every image."""
    captions = []
    for memory, images in zip(memories, keys, strict=True):
        with captioner.backend.inference():
            stepper = captioner.backend.stepper(memory)
            if search.sample:
                found = sample(stepper, search, images)
            else:
                found = beam_search(stepper, search)
        if search.mbr:
            found = [choose(sentences, search) for sentences in found]
        captions += [captioner.to_caption("photo", sentences).text for sentences in found]
    return captions


if __name__ == "__main__":
    main()
