"""JPEG files to captions per second, backend against backend, and beside the encoder alone.

    python benchmarks/throughput.py                        # synthetic images, torch against onnx
    python benchmarks/throughput.py IMAGES --count 256 --rounds 5
    python benchmarks/throughput.py --export int8.onnx.safetensors    # and a further export

In one process the backends take turns: images per second from files to captions
(`Captioner.stream`: reading, encoding, beam search) and of the encoder alone on pixels that are
ready. The figures that count are the ratios of medians: onnx against torch in fp32 with the share
of equal captions, and each backend's captions against its own encoder. Captions are compared on the
images given; those of made-up ones are alike. Needs a quiet machine.
`taskset -c 0` and `taskset -c 0,1` around it show how it scales with cores.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from photos import photo_files

from captioner import Caption, Captioner


def timed(work: Callable[[], object]) -> float:
    """Run and return the seconds it took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", type=Path, help="files or folders (default: made up)")
    parser.add_argument("--backends", nargs="+", default=["torch", "onnx"])
    parser.add_argument("--export", nargs="+", default=[], type=Path, help="further exports")
    parser.add_argument("--count", type=int, default=128, help="images a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--beam", type=int, default=3)
    arguments = parser.parse_args()
    captioners = {
        name: Captioner.from_pretrained(backend=name, precision="fp32")
        for name in arguments.backends
    }
    for path in arguments.export:
        captioners[path.name.split(".")[0]] = Captioner.from_pretrained(path, backend="onnx")
    with photo_files(arguments.images, arguments.count) as files:
        times: dict[tuple[str, str], list[float]] = {}
        texts: dict[str, list[str]] = {}
        for number in range(arguments.rounds + 1):  # the first round warms up
            for name, captioner in captioners.items():
                pixels = np.stack([captioner.read(file) for file in files[: arguments.batch]])

                def caption(captioner: Captioner = captioner, name: str = name) -> None:
                    found = captioner.stream(files, batch_size=arguments.batch, beam=arguments.beam)
                    texts[name] = [one.text for one in found if isinstance(one, Caption)]

                def encode(captioner: Captioner = captioner, pixels: np.ndarray = pixels) -> None:
                    with captioner.backend.inference():
                        for _ in range(0, len(files), arguments.batch):
                            captioner.encode(pixels)

                for what, work in (("captions", caption), ("encoder", encode)):
                    seconds = timed(work)
                    times.setdefault((name, what), []).extend([seconds] if number else [])
        rates = {key: len(files) / statistics.median(value) for key, value in times.items()}
    for name in captioners:
        captions, encoder = rates[name, "captions"], rates[name, "encoder"]
        print(
            f"{name:6} {captions:6.1f} images/s from files to captions, encoder alone"
            f" {encoder:6.1f} ({captions / encoder:.2f} of it)"
        )
    for one, other in itertools.combinations(captioners, 2):
        ratio = rates[other, "captions"] / rates[one, "captions"]
        equal = statistics.mean(a == b for a, b in zip(texts[one], texts[other], strict=True))
        print(f"{other} against {one}: {ratio:.2f} times as fast, {equal:.1%} equal captions")


if __name__ == "__main__":
    main()
