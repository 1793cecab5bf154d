"""The feature cache: how fast it is read and built.

    python benchmarks/features.py                      # a synthetic cache of 4 GB
    python benchmarks/features.py --gigabytes 20 --batch-size 64
    python benchmarks/features.py --device cuda

Reading: batches of random photos and views, as a shuffled training asks for them, by
`FeatureCache.read_batch` at once and for one photo after the other;
both give the same numbers, take turns, and are timed on pages that the system has in memory
(``warm``) and on pages it was asked to drop (``cold``, the disk's speed). With ``--device cuda``
also with the copy to the GPU.

Building: JPEGs of 640 × 480 pixels are drawn, and `build_features` (reading, encoder, writing) is
compared with the encoder alone on pixels that lie ready. Everything is in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioner.config import EncoderConfig
from captioner.data.feature_cache import CacheMeta, FeatureCache, open_stages, stage_path
from captioner.data.features import build_features
from captioner.image.transforms import Preprocess
from captioner.models.encoder import Encoder
from captioner.utils.device import autocast, resolve_device

SHAPES = [[120, 14, 14], [352, 7, 7]]  # of the default encoder
ENCODER = "timm/tf_efficientnet_lite2"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the synthetic cache (4)")
    parser.add_argument("--batch-size", type=int, default=64, help="photos (64)")
    parser.add_argument("--batches", type=int, default=200, help="read in each turn (200)")
    parser.add_argument("--photos", type=int, default=256, help="to build from (256)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", help="on the disk to measure; default: the temporary one")
    options = parser.parse_args()
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        bench_reading(Path(name), options, device)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        bench_building(Path(name), options.photos, device)


def bench_reading(folder: Path, options: argparse.Namespace, device: torch.device) -> None:
    """Random batches in turns."""
    cache = synthetic_cache(folder, options.gigabytes)
    photo_bytes = cache.nbytes / len(cache) / cache.views
    print(f"reading: {len(cache):,} photos × 2 views, {cache.nbytes / 1e9:.1f} GB")
    rng = np.random.default_rng(0)
    shape = (options.batches, options.batch_size)
    indices, views = rng.integers(0, len(cache), shape), rng.integers(0, 2, shape)

    def one_by_one(cache: FeatureCache, index: np.ndarray, view: np.ndarray) -> list[Tensor]:
        items = [cache.read_batch([i], [v]) for i, v in zip(index, view, strict=True)]
        return [torch.cat(stage) for stage in zip(*items, strict=True)]

    def to_gpu(cache: FeatureCache, index: np.ndarray, view: np.ndarray) -> list[Tensor]:
        return [stage.pin_memory().to(device) for stage in cache.read_batch(index, view)]

    ways: dict[str, Callable[[FeatureCache, np.ndarray, np.ndarray], list[Tensor]]] = {
        "photo by photo": one_by_one,
        "read_batch": FeatureCache.read_batch,
    }
    if device.type == "cuda":
        ways["read_batch and to GPU"] = to_gpu
    first = [way(cache, indices[0], views[0]) for way in ways.values()]
    for other in first[1:]:
        assert all(torch.equal(a, b.cpu()) for a, b in zip(first[0], other, strict=True))
    for state in ("cold", "warm", "warm"):
        for name, way in ways.items():
            if state == "cold":
                del cache  # pages that are mapped cannot be dropped
                drop_pages(folder)
                cache = FeatureCache.open(folder)
            start = time.perf_counter()
            for index, view in zip(indices, views, strict=True):
                way(cache, index, view)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            photos = indices.size / seconds
            rate = photos * photo_bytes / 1e9
            print(f"  {state:5}{name:22}{rate:7.2f} GB/s{photos:10,.0f} photos/s")


def synthetic_cache(folder: Path, gigabytes: float) -> FeatureCache:
    """A cache of this size, full of noise (an empty file would be read from nowhere)."""
    photo_bytes = 2 * sum(int(np.prod(shape)) for shape in SHAPES)
    count = max(1, round(gigabytes * 1e9 / 2 / photo_bytes))
    meta = CacheMeta("synthetic", "", 2, count, SHAPES, count)
    offsets = [stage.offset for stage in open_stages(folder, meta, create=True)]
    noise = np.random.default_rng(0).standard_normal(2**23).astype(np.float16).tobytes()
    for number, (shape, offset) in enumerate(zip(SHAPES, offsets, strict=True)):
        left = 2 * 2 * count * int(np.prod(shape))
        with open(stage_path(folder, number), "r+b") as file:
            file.seek(offset)
            while left:
                left -= file.write(noise[:left])
            os.fsync(file.fileno())
    meta.write(folder)
    return FeatureCache.open(folder)


def drop_pages(folder: Path) -> None:
    """Ask the system to forget the files' pages (Linux; elsewhere `cold` is warm)."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.glob("*.npy"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bench_building(folder: Path, photos: int, device: torch.device) -> None:
    """The whole build beside the encoder alone."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(photos):
        coarse = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.jpg")
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    encoder = Encoder(EncoderConfig(name=ENCODER, pretrained=False)).eval().to(device)
    encoder.backbone.to(memory_format=torch.channels_last)
    preprocess = Preprocess(encoder.config.image_size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def extract(images: Tensor) -> list[Tensor]:
        with autocast(device):
            return encoder.forward_features(images.contiguous(memory_format=torch.channels_last))

    size = preprocess.size
    pixels = torch.zeros(32, size, size, 3, dtype=torch.uint8)
    with torch.inference_mode():
        for _ in range(2):
            extract(preprocess.normalize(pixels.to(device)))
        start = time.perf_counter()
        for _ in range(2 * photos // 32):  # two views
            stages = extract(preprocess.normalize(pixels.to(device)))
        stages[-1].sum().item()
    alone = photos // 32 * 32 / (time.perf_counter() - start)
    start = time.perf_counter()
    cache = build_features(
        folder / "cache", paths, preprocess, extract, fingerprint="bench", device=device
    )
    whole = photos / (time.perf_counter() - start)
    print(
        f"building: {len(cache)} photos with their mirror images, {whole:.1f} photos/s;"
        f" the encoder alone {alone:.1f}; share {whole / alone:.2f}"
    )


if __name__ == "__main__":
    main()
