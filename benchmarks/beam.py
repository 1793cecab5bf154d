"""Batched beam search against one that loops over photos and beams in Python.

    python benchmarks/beam.py                       # the example photos, over and over
    python benchmarks/beam.py PHOTOS --count 64     # a folder of photos

The features of the photos are computed once, in fp32. On them take turns ``textbook_beam.py``,
``beam_search`` batch by batch with all threads on one batch, and the same with a batch per thread,
as ``Captioner.stream`` runs it on a CPU. The captions must be the same; medians of photos per
second are compared. The target is 20 times.
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
    compare(captioner, grids, search, options.rounds)


@torch.no_grad()
def encode(captioner: Captioner, files: Sequence[Path], batch: int) -> list[Grid]:
    """Features of the photos, batch by batch."""
    return [
        captioner.torch_backend.features(np.stack([captioner.read(file) for file in part]))
        for part in parts(list(files), batch)
    ]


@torch.no_grad()
def compare(
    captioner: Captioner, grids: Sequence[Grid], search: DecodingOptions, rounds: int
) -> None:
    """Time both in turns.

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

    ways: dict[str, Callable[[], list[list[int]]]] = {"textbook": textbook, "batched": batched}
    if captioner.torch_backend.device.type == "cpu" and len(grids) > 1:
        ways["batch per thread"] = batch_per_thread
    captions = {name: way() for name, way in ways.items()}  # the first call allocates
    pairs = list(zip(*captions.values(), strict=True))
    same = sum(all(caption == each[0] for caption in each) for each in pairs)
    words = statistics.mean(len(caption) for caption in captions["batched"])
    print(f"same captions: {same} of {len(pairs)}, {words:.1f} words each")
    wall: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start, processor = time.perf_counter(), time.process_time()
            way()
            synchronize(captioner.torch_backend.device)
            wall[name].append(len(pairs) / (time.perf_counter() - start))
            busy[name].append(1000 * (time.process_time() - processor) / len(pairs))
    slowest = statistics.median(wall["textbook"])
    for name, speeds in wall.items():
        print(
            f"{name:18}{statistics.median(speeds):7.1f} photos/s "
            f"({min(speeds):.1f} to {max(speeds):.1f}), "
            f"{statistics.median(busy[name]):.1f} ms of processor a photo, "
            f"{statistics.median(speeds) / slowest:.1f} times the textbook"
        )
    if same < len(pairs):
        raise SystemExit("the captions differ: the times would mean nothing")


if __name__ == "__main__":
    main()
