"""The trunk on a CPU: a batch in parts that fit into the cores' caches, beside all of it at once.

    python benchmarks/trunk.py                  # the shipped model, one thread
    python benchmarks/trunk.py --batch 128 --threads 2

In turns, processor time per image; the ratio of the medians is what counts. It also checks that
both give the same features.
"""

import argparse
import statistics
import time

import torch

from captioner import Captioner
from captioner.models import encoder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    captioner = Captioner.from_pretrained(backend="torch", device="cpu", precision="fp32")
    network = captioner.backend.model.encoder
    size = captioner.backend.header.preprocess.size
    images = torch.rand(arguments.batch, 3, size, size).contiguous(
        memory_format=torch.channels_last
    )
    ways = {"in parts": encoder._TOGETHER, "at once": arguments.batch}
    times = {way: [] for way in ways}
    found = {}
    for number in range(arguments.rounds + 1):  # the first round warms up
        for way, together in ways.items():
            encoder._TOGETHER = together
            start = time.process_time()
            with torch.no_grad():
                found[way] = network.forward_features(images)
            times[way] += [time.process_time() - start] if number else []
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    medians = {way: statistics.median(values) for way, values in times.items()}
    for way, seconds in medians.items():
        print(f"{way:9} {1000 * seconds / arguments.batch:6.1f} ms of processor time an image")
    print(f"at once takes {medians['at once'] / medians['in parts']:.2f} times as long")


if __name__ == "__main__":
    main()
