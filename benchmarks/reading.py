"""Reading JPEG files: threads against processes, shrinking in the decoder against full decoding.

    python benchmarks/reading.py                    # made-up photos of 0.05, 0.3 and 12 megapixels
    python benchmarks/reading.py --workers 8 --count 256

Three questions. Do threads or processes read faster? Each worker opens a file and brings it to the
encoder's square (``open_image`` and ``Preprocess``); the squares come back to the caller, as the
captioner needs them there. Both kinds of workers are started before the clock is. How much of the
processor time is the decoder's, which lets other threads run, and would torchvision's be quicker?
And what does it save to let the JPEG decoder shrink a large photo (``open_image(shrink_to=...)``)
rather than decode all of its pixels? The target is 3 times for 12 megapixels. Everything compared
takes turns in one run; medians are shown.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from photos import made_up_photo
from PIL import Image

from captioner.image.io import open_image
from captioner.image.reader_processes import read_in_processes
from captioner.image.transforms import Preprocess
from captioner.utils.device import available_cores

SQUARE = Preprocess(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TINY, SMALL, LARGE = (224, 224), (640, 480), (4000, 3000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--workers", type=int, default=available_cores(), help="threads, processes")
    parser.add_argument("--count", type=int, default=256, help="small photos a round")
    parser.add_argument("--large", type=int, default=32, help="12-megapixel photos a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_photos(Path(folder), TINY, options.count)
        small = write_photos(Path(folder), SMALL, options.count)
        large = write_photos(Path(folder), LARGE, options.large)
        progressive = write_photos(Path(folder), LARGE, 4, progressive=True)
        print(f"{options.workers} workers on {available_cores()} cores, {options.rounds} rounds")
        photos = {"0.05 MP": tiny, "0.3 MP": small, "12 MP": large}
        workers_compared(photos, options.workers, options.rounds)
        decoders_compared(tiny, options.rounds)
        shrinking_compared(
            {"12 MP baseline": large[:4], "12 MP progressive": progressive}, options.rounds
        )


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
    with ThreadPoolExecutor(workers) as threads:
        for name, files in photos.items():
            ways: dict[str, Callable[[], float]] = {
                "caller alone": lambda files=files: clock(map(read, files)),
                "threads": lambda files=files: clock(threads.map(read, files)),
                "processes": lambda files=files: in_processes(files, workers),
            }
            size = statistics.mean(path.stat().st_size for path in files)
            print(f"{name}, {len(files)} files of {size / 1e6:.2f} MB")
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, run in ways.items():
                    times[way].append(run())
            for way, seconds in times.items():
                show(f"  {way}", [len(files) / one for one in seconds], "photos/s")


def clock(squares: Iterable[np.ndarray]) -> float:
    """Take every square; return the seconds."""
    start = time.perf_counter()
    for square in squares:
        assert square.shape == (SQUARE.size, SQUARE.size, 3)
    return time.perf_counter() - start


def in_processes(files: list[Path], workers: int) -> float:
    """Read all files in processes, once they have begun to answer; return the seconds."""
    first = [files[0]] * 32 * workers
    found = read_in_processes([*first, *files], [SQUARE], workers, depth=16 * workers)
    for _ in first:
        next(found)
    return clock(squares[0] for _, squares in found if isinstance(squares, list))


def decoders_compared(files: list[Path], rounds: int) -> None:
    """Print the processor time a photo, in one thread, of all and of the decoder alone."""
    import torch
    from torchvision.io import decode_jpeg

    encoded = [path.read_bytes() for path in files]
    ways: dict[str, Callable[[bytes], object]] = {
        "open and resize": lambda data: SQUARE.to_uint8(open_image(data, shrink_to=SQUARE.size)),
        "Pillow decodes": lambda data: Image.open(io.BytesIO(data)).load(),
        "torchvision": lambda data: decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
        ),
    }
    print("0.05 MP, one thread")
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            for data in encoded:
                start = time.thread_time()
                run(data)
                times[way].append(1000 * (time.thread_time() - start))
    for way, milliseconds in times.items():
        show(f"  {way}", milliseconds, "ms a photo")


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
        f"{name:18}{statistics.median(values):7.2f} {unit} ({min(values):.2f} to {max(values):.2f})"
    )


if __name__ == "__main__":
    main()
