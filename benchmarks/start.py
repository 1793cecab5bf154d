"""Time and peak memory from a cold start to the first caption, backend by backend in turns.

    python benchmarks/start.py                    # the shipped model, examples/cat.jpg, five rounds
    python benchmarks/start.py --rounds 3 --demo  # also: until the demo's page answers

Each start is a process of its own: `captioner caption IMAGE --backend NAME`. The first round warms
the file cache and is left out. Prints the median wall-clock and processor time and the peak memory.
With `--demo`, the time from the command to the first answer of the page on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "cat.jpg"
MIB = 2**20 if sys.platform == "darwin" else 2**10  # unit of ru_maxrss: bytes or KiB


def caption_once(image: Path, backend: str) -> tuple[float, float, float]:
    """Caption one image in a new process: wall seconds, processor seconds, peak MiB."""
    command = [sys.executable, "-m", "captioner", "caption", str(image), "--backend", backend]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / MIB


def page_once() -> float:
    """Start the demo and wait for its page: seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "captioner", "demo", "--port", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and time.perf_counter() < start + 120:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    answer.read()
                return time.perf_counter() - start
            except OSError:
                time.sleep(0.05)
        raise SystemExit("the demo did not answer within 120 s")
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    parser.add_argument("--backends", nargs="+", default=["torch", "onnx"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--demo", action="store_true", help="time the demo's page as well")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in arguments.backends}
    pages: list[float] = []
    for number in range(arguments.rounds + 1):
        for name, results in found.items():
            result = caption_once(arguments.image, name)
            results += [result] if number else []
        if arguments.demo:
            seconds = page_once()
            pages += [seconds] if number else []
    print("backend   wall s   processor s   peak MiB   (medians)")
    for name, results in found.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"{name:9} {wall:6.2f} {cpu:13.2f} {memory:10.0f}")
    if pages:
        print(f"demo page {statistics.median(pages):6.2f}")


if __name__ == "__main__":
    main()
