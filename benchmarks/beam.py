"""Batched beam search against one that loops over photos and beams in Python.

    python benchmarks/beam.py                       # the example photos, over and over
    python benchmarks/beam.py PHOTOS --count 64     # a folder of photos
    python benchmarks/beam.py --device cuda --beam 3 --count 128 --batch 128 --no-textbook

The features of the photos are computed once, in fp32. On them take turns ``textbook_beam.py``,
``beam_search`` batch by batch with all threads on one batch, and the same with a batch per thread,
as ``Captioner.stream`` runs it on a CPU; with ``--on-device``, which a GPU implies, also
``DeviceSearch``. The captions must be the same (on a GPU, all but one in fifty); medians of photos
per second are compared. The target is 20 times; on a GPU, beam 3 over 128 photos in 10 ms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from caption import parts, synchronize
from photos import photo_files
from textbook_beam import textbook_beam_search

from captioner.api import Captioner
from captioner.backends.torch import TorchStepper
from captioner.backends.torch_search import DeviceSearch
from captioner.decoding.beam_search import beam_search
from captioner.decoding.options import DecodingOptions
from captioner.models.encoder import Grid
from captioner.utils.parallel import map_ahead

EXAMPLES = Path(__file__).parents[1] / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("photos", nargs="*", type=Path, default=[EXAMPLES], help="files or folders")
    parser.add_argument("--model", type=Path, help="model file (default: the shipped one)")
    parser.add_argument("--count", type=int, default=96, help="photos a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=24)
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--on-device", action="store_true", help="the device's search on a CPU too")
    parser.add_argument("--no-textbook", action="store_true", help="which takes minutes on a GPU")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    captioner = Captioner.from_pretrained(
        options.model, backend="torch", device=options.device, precision="fp32"
    )
    with photo_files(options.photos, options.count) as files:
        grids = encode(captioner, files, options.batch)
    print(
        f"{len(files)} photos ({len(set(files))} different) a round, {options.rounds} rounds, "
        f"batch {options.batch}, fp32, {options.device}, {torch.get_num_threads()} threads"
    )
    search = DecodingOptions(beam=options.beam, max_length=options.max_length)
    print(f"beam {options.beam}")
    compare(captioner, grids, search, options)


@torch.no_grad()
def encode(captioner: Captioner, files: Sequence[Path], batch: int) -> list[Grid]:
    """Features of the photos, batch by batch."""
    return [
        captioner.torch_backend.features(np.stack([captioner.read(file) for file in part]))
        for part in parts(list(files), batch)
    ]


@torch.no_grad()
def compare(
    captioner: Captioner,
    grids: Sequence[Grid],
    search: DecodingOptions,
    options: argparse.Namespace,
) -> None:
    """Time all in turns.

    Raises:
        SystemExit: Their captions differ.
    """
    decoder = captioner.model.decoder

    def one_batch(grid: Grid) -> list[list[int]]:
        with torch.no_grad():  # a thread's own setting
            found = beam_search(TorchStepper(decoder, decoder.remember(grid)), search)
        return [sentences[0].words for sentences in found]

    def batched() -> list[list[int]]:
        return [words for grid in grids for words in one_batch(grid)]

    def batch_per_thread() -> list[list[int]]:
        threads = torch.get_num_threads()
        try:
            found = map_ahead(
                one_batch,
                grids,
                workers=threads,
                depth=2 * threads,
                initializer=partial(torch.set_num_threads, 1),  # of the thread that calls it
            )
            return [words for batch in found for words in batch]
        finally:
            torch.set_num_threads(threads)

    def textbook() -> list[list[int]]:
        return [
            textbook_beam_search(decoder, features, grid.size, search.beam, search.max_length)
            for grid in grids
            for features in grid.features.split(1)
        ]

    device_search = DeviceSearch(decoder)

    def on_device() -> list[list[int]]:
        found = [device_search.hypotheses(decoder.remember(grid), search) for grid in grids]
        return [sentences[0].words for batch in found for sentences in batch]

    on_cpu = captioner.torch_backend.device.type == "cpu"
    ways: dict[str, Callable[[], list[list[int]]]] = {"batched": batched}
    if not options.no_textbook:
        ways = {"textbook": textbook, **ways}
    if on_cpu and len(grids) > 1:
        ways["batch per thread"] = batch_per_thread
    if options.on_device or not on_cpu:
        ways["on the device"] = on_device
        on_device()  # before the second call, a GPU captures its graph
    captions = {name: way() for name, way in ways.items()}  # the first call allocates
    pairs = list(zip(*captions.values(), strict=True))
    same = sum(all(caption == each[0] for caption in each) for each in pairs)
    words = statistics.mean(len(caption) for caption in captions["batched"])
    print(f"same captions: {same} of {len(pairs)}, {words:.1f} words each")
    wall: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start, processor = time.perf_counter(), time.process_time()
            way()
            synchronize(captioner.torch_backend.device)
            wall[name].append(len(pairs) / (time.perf_counter() - start))
            busy[name].append(1000 * (time.process_time() - processor) / len(pairs))
    slowest = statistics.median(next(iter(wall.values())))
    for name, speeds in wall.items():
        print(
            f"{name:18}{statistics.median(speeds):7.1f} photos/s "
            f"({min(speeds):.1f} to {max(speeds):.1f}), "
            f"{1000 * len(pairs) / statistics.median(speeds) / len(grids):.1f} ms a batch, "
            f"{statistics.median(busy[name]):.1f} ms of processor a photo, "
            f"{statistics.median(speeds) / slowest:.1f} times {next(iter(wall))}"
        )
    for name, speeds in wall.items():
        batch = 1000 * len(pairs) / statistics.median(speeds) / len(grids)
        print(f"RESULT {name}: {batch:.1f} ms a batch, {same} of {len(pairs)} captions the same")
    if same < (1 if on_cpu else 0.98) * len(pairs):  # on a GPU, rounding depends on the batch
        raise SystemExit("the captions differ: the times would mean nothing")


if __name__ == "__main__":
    main()
