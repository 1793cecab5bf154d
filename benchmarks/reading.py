"""Reading JPEG files: threads against processes, shrinking in the decoder against full decoding.

    python benchmarks/reading.py                    # made-up photos of 0.3 and 12 megapixels
    python benchmarks/reading.py --workers 8 --count 256

Two questions. Do threads or processes read faster? Each worker opens a file and brings it to the
encoder's square (``open_image`` and ``Preprocess``); the squares come back to the caller, as the
captioner needs them there. Both kinds of workers are started before the clock is. And what does
it save to let the JPEG decoder shrink a large photo (``open_image(shrink_to=...)``) rather than
decode all of its pixels? The target is 3 times for 12 megapixels. Everything compared takes turns
in one run; medians are shown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from photos import made_up_photo

from captioner.image.io import open_image
from captioner.image.transforms import Preprocess

SQUARE = Preprocess(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL, LARGE = (640, 480), (4000, 3000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--workers", type=int, default=min(8, available()), help="threads, processes"
    )
    parser.add_argument("--count", type=int, default=256, help="small photos a round")
    parser.add_argument("--large", type=int, default=32, help="12-megapixel photos a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small = write_photos(Path(folder), SMALL, options.count)
        large = write_photos(Path(folder), LARGE, options.large)
        progressive = write_photos(Path(folder), LARGE, 4, progressive=True)
        print(f"{options.workers} workers on {available()} cores, {options.rounds} rounds")
        workers_compared({"0.3 MP": small, "12 MP": large}, options.workers, options.rounds)
        shrinking_compared(
            {"12 MP baseline": large[:4], "12 MP progressive": progressive}, options.rounds
        )


def available() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def write_photos(
    folder: Path, size: tuple[int, int], count: int, progressive: bool = False
) -> list[Path]:
    """``count`` names of made-up photos, of which at most eight are different."""
    rng = np.random.default_rng(0)
    files = []
    for n in range(min(count, 8)):
        files.append(folder / f"{size[0]}_{progressive:d}_{n}.jpg")
        files[-1].write_bytes(made_up_photo(rng, size, progressive))
    return [files[n % len(files)] for n in range(count)]


def read(path: Path) -> np.ndarray:
    """A photo as the captioner reads it: (S, S, 3) uint8."""
    return SQUARE.to_uint8(open_image(path, shrink_to=SQUARE.size))


def workers_compared(photos: dict[str, list[Path]], workers: int, rounds: int) -> None:
    """Print photos per second of no worker, threads and processes."""
    spawn = multiprocessing.get_context("spawn")  # forking a process that runs PyTorch is not safe
    with ThreadPoolExecutor(workers) as threads, ProcessPoolExecutor(workers, spawn) as processes:
        for pool in (threads, processes):
            list(pool.map(read, photos["0.3 MP"][: 4 * workers]))  # started, imports done
        for name, files in photos.items():
            ways: dict[str, Callable[[], object]] = {
                "caller alone": lambda files=files: [read(path) for path in files],
                "threads": lambda files=files: drain(threads, files),
                "processes": lambda files=files: drain(processes, files),
            }
            size = statistics.mean(path.stat().st_size for path in files)
            print(f"{name}, {len(files)} files of {size / 1e6:.1f} MB")
            for way, seconds in in_turns(ways, rounds).items():
                show(f"  {way}", [len(files) / one for one in seconds], "photos/s")


def drain(pool: Executor, files: list[Path]) -> None:
    """Read all files and take every square."""
    for square in pool.map(read, files):
        assert square.shape == (SQUARE.size, SQUARE.size, 3)


def shrinking_compared(photos: dict[str, list[Path]], rounds: int) -> None:
    """Print milliseconds a photo, in one thread, of shrinking in the decoder and of not."""
    for name, files in photos.items():
        ways: dict[str, Callable[[], object]] = {
            "full decoding": lambda files=files: [SQUARE.to_uint8(open_image(f)) for f in files],
            "shrinking": lambda files=files: [read(f) for f in files],
        }
        print(name)
        times = in_turns(ways, rounds)
        for way, seconds in times.items():
            show(f"  {way}", [1000 * one / len(files) for one in seconds], "ms a photo")
        full, shrunk = (statistics.median(seconds) for seconds in times.values())
        print(f"  ratio           {full / shrunk:9.1f}")


def in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; the first call of each is not counted."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if turn:
                times[way].append(time.perf_counter() - start)
    return times


def show(name: str, values: list[float], unit: str) -> None:
    """One line: the median, and from the least to the most."""
    print(
        f"{name:18}{statistics.median(values):7.1f} {unit} ({min(values):.1f} to {max(values):.1f})"
    )


if __name__ == "__main__":
    main()
