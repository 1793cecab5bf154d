"""Rehearse the recipes of COCO on made-up photos, and say how long they would take.

    python benchmarks/coco_rehearsal.py                          # 113,287 photos: hours, 71 GB
    python benchmarks/coco_rehearsal.py --images 3000            # minutes; rates are extrapolated
    python benchmarks/coco_rehearsal.py --images 40 --tiny --device cpu    # the plumbing alone

The three recipes `configs/coco_resnet101*.yaml` run one after the other as `captioner train` runs
them, each from the model before it: cache of features, loader, steps, log, validation, files. Only
the photos are made up, 64 JPEG files of 640 × 480 pixels under as many names as there are photos
(hard links), and the captions: five a photo, random words of 10,000. The weights of the CNN are
random. Printed are the photos per second of the cache, the captions per second of each training
after its first half (in which shapes are captured), the GPU's busy share (the mean of nvidia-smi's
samples in the second half), its peak memory, and the hours that the recipe's own
epochs and validations on COCO would take on this device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photos import made_up_photo

from captioner.config import Config, load_config
from captioner.training import trainer as module
from captioner.training.log import read_log
from captioner.training.trainer import Trainer
from captioner.utils.device import resolve_device

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = ("coco_resnet101", "coco_resnet101_finetune", "coco_resnet101_scst")
IMAGES, VALIDATION = 113_287, 5_000  # Karpathy's split
WORDS, MEAN, DEVIATION = 10_000, 10.5, 2.4  # of the vocabulary; words a caption
VALIDATED = 64  # photos of the rehearsed validation
TINY = (
    "model.encoder.name=timm/mobilenetv3_small_050",
    "model.encoder.image_size=64",
    "model.encoder.width=16",
    "model.attention.size=8",
    "model.decoder.embedding=12",
    "model.decoder.hidden=12",
    "data.batch_size=8",
    "data.workers=0",
    "data.limit=40",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="for photos and features (default: temporary)")
    parser.add_argument("--tiny", action="store_true", help="a tiny network")
    options = parser.parse_args()
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_data(folder, options.images)
        common = [
            f"data.root={folder}",
            f"data.cache={folder / 'cache'}",
            f"device={options.device}",
            "model.encoder.pretrained=false",
            "data.min_count=1",
            f"validation.limit={min(VALIDATED, options.images)}",
            f"log.every={max(1, options.images // 64 // 20)}",  # to read them costs time
            "log.samples=0",
            "optim.epochs=1",
            *(TINY if options.tiny else ()),
        ]
        start: Path | None = None
        for recipe in RECIPES:
            overrides = [*common, f"out={folder / recipe}"]
            overrides.append("init=null" if start is None else f"init={start}")
            report(recipe, load_config(CONFIGS / f"{recipe}.yaml", overrides), device)
            start = folder / recipe / "last.safetensors"


def make_data(folder: Path, images: int) -> None:
    """Write photos and captions in the form of `captioner prepare coco2014`."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    originals = []
    for number in range(min(64, images)):
        originals.append(folder / "images" / f"original-{number}.jpg")
        originals[-1].write_bytes(made_up_photo(random))
    with open(folder / "captions_karpathy.jsonl", "w", encoding="utf-8") as file:
        for number in range(images + VALIDATED):
            path = folder / "images" / f"{number}.jpg"
            os.link(originals[number % len(originals)], path)
            lengths = random.normal(MEAN, DEVIATION, 5).round().clip(5, 25).astype(int)
            captions = [
                " ".join(f"w{word}" for word in random.integers(WORDS, size=n)) for n in lengths
            ]
            split = "train" if number < images else "val"
            row = {"image": str(path), "captions": captions, "split": split}
            file.write(json.dumps(row) + "\n")


def report(recipe: str, config: Config, device: torch.device) -> None:
    """Run a recipe for an epoch and print its rates."""
    own = load_config(CONFIGS / f"{recipe}.yaml")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = {"cache": 0.0}
    build = module.build_datasets

    def timed(*arguments: Any) -> Any:
        started = time.monotonic()
        data = build(*arguments)
        seconds["cache"] = time.monotonic() - started
        return data

    module.build_datasets = timed
    try:
        trainer = Trainer(config)
    finally:
        module.build_datasets = build
    with gpu_use(device) as samples:
        begun = time.monotonic()
        trainer.run()
        ended = time.monotonic()
    records = read_log(Path(config.out) / "log.jsonl")
    lines = [record for record in records if "loss" in record]
    first, last = lines[len(lines) // 2 - 1], lines[-1]
    each = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    (validated,) = (record["seconds"] for record in records if "validation" in record)
    per_image = (validated - last["seconds"]) / len(trainer.data.val)
    captions = config.data.batch_size * trainer.data.train.captions_per_image
    images = len(trainer.data.train) + len(trainer.data.val)
    hours = own.optim.epochs * (
        each * math.ceil(IMAGES / config.data.batch_size) + per_image * VALIDATION
    )
    parts = [f"{captions / each:,.0f} captions/s, {1000 * each:.1f} ms a step"]
    if trainer.data.train.cache is not None:
        rate = images / seconds["cache"]
        hours += (IMAGES + VALIDATION) / rate
        parts.insert(0, f"cache {rate:,.0f} photos/s")
    inside = [use for at, use in samples if begun + first["seconds"] < at < begun + last["seconds"]]
    if inside:
        parts.append(f"GPU busy {statistics.mean(inside):.0f} %")
    if device.type == "cuda":
        parts.append(f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    parts.append(f"{1 / per_image:,.0f} photos/s validated")
    parts.append(f"{hours / 3600:.1f} h for {own.optim.epochs} epochs")
    print(f"RESULT {recipe}: {'; '.join(parts)} ({ended - begun:.0f} s)", flush=True)


@contextlib.contextmanager
def gpu_use(device: torch.device) -> Iterator[list[tuple[float, float]]]:
    """Collect nvidia-smi's samples of the GPU's use in percent, with their times."""
    samples: list[tuple[float, float]] = []
    if device.type != "cuda":
        yield samples
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    index = str(device.index or 0)
    process = subprocess.Popen([*query, "-i", index, "-lms", "200"], stdout=subprocess.PIPE)

    def collect() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                samples.append((time.monotonic(), float(line)))

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        process.terminate()
        thread.join(5)


if __name__ == "__main__":
    main()
