"""Time and memory of the caption metrics.

    python benchmarks/metrics.py --results results.json --references references.json
    python benchmarks/metrics.py --million

The first form times all metrics on the photos of the two files (target for 1,000 photos: under 3 s,
tokenizing included), then CIDEr-D on 5,000 photos beside pycocoevalcap's, on the same tokens in
turns (target: at least 3 times as fast). The photos of the files are repeated, with the words of
each round marked, until there are 5,000. Without files the photos are made up.

``--million`` measures 1,000,000 made-up captions once: 200,000 photos, one candidate and four
references each.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from captioner.data.annotations import read_captions
from captioner.evaluation.caption_metrics import measure_quality
from captioner.evaluation.results import match_results, read_results
from captioner.metrics.cider import cider_d
from captioner.tokenizer import tokenize

ROUNDS = 3
WORDS = 12_000
Photos = list[tuple[str, tuple[str, ...]]]  # candidate and references of each photo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", help="captions: COCO results, JSONL or CSV")
    parser.add_argument("--references", help="COCO JSON, Karpathy JSON or JSONL")
    parser.add_argument("--million", action="store_true", help="measure a million captions, once")
    options = parser.parse_args()
    if options.million:
        measure_million()
        return
    if options.results:
        examples = read_captions(options.references, missing="ignore")
        found = match_results(read_results(options.results), examples).captions
        photos = [(c or "", e.captions) for c, e in zip(found, examples, strict=True)]
    else:
        photos = list(itertools.islice(made_up(references=5), 1000))
    captions = len(photos) + sum(len(references) for _, references in photos)
    print(f"{len(photos):,} photos, {captions:,} captions")
    print(f"  all metrics, with intervals and diversity  {fastest(lambda: measure(photos)):.2f} s")
    compare_cider(photos, 5000)


def measure(photos: Photos) -> None:
    candidates, references = zip(*photos, strict=True)
    measure_quality(range(len(photos)), candidates, references)


def compare_cider(photos: Photos, count: int) -> None:
    """CIDEr-D of the project and of pycocoevalcap, in turns."""
    from pycocoevalcap.cider.cider import Cider

    repeated = list(itertools.islice(marked(photos), count))
    candidates = [tokenize(candidate) for candidate, _ in repeated]
    references = [[tokenize(text) for text in texts] for _, texts in repeated]
    result = {i: [" ".join(words)] for i, words in enumerate(candidates)}
    truth = {i: [" ".join(words) for words in group] for i, group in enumerate(references)}
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(timed(lambda: cider_d(candidates, references)))
        theirs.append(timed(lambda: Cider().compute_score(truth, result)))
    own, other = statistics.median(ours), statistics.median(theirs)
    gap = cider_d(candidates, references).score - Cider().compute_score(truth, result)[0]
    print(f"CIDEr-D on {count:,} photos, median of {ROUNDS} in turns")
    print(f"  captioner {own:.2f} s, pycocoevalcap {other:.2f} s: {other / own:.1f} times as fast")
    print(f"  the scores differ by {abs(gap):.1e}")


def measure_million() -> None:
    photos = list(itertools.islice(made_up(references=4), 200_000))
    before, cpu = peak(), time.process_time()
    seconds = timed(lambda: measure(photos))
    cpu = time.process_time() - cpu
    print("1,000,000 captions (200,000 photos, 1 candidate and 4 references each)")
    print(f"  all metrics, with intervals and diversity  {seconds:.0f} s ({cpu:.0f} s of one core)")
    print(f"  peak memory {peak():.2f} GB, of which the captions as text {before:.2f} GB")


def made_up(references: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Endless photos: sentences of 8 to 15 words, word frequencies as in language (Zipf)."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, WORDS + 1)
    names = np.array([f"w{number}" for number in range(WORDS)], dtype=object)
    while True:
        words = iter(names[rng.choice(WORDS, 200_000, p=share / share.sum())])
        for _ in range(200_000 // (15 * (references + 1))):
            texts = [
                " ".join(itertools.islice(words, int(length)))
                for length in rng.integers(8, 16, references + 1)
            ]
            yield texts[0], tuple(texts[1:])


def marked(photos: Photos) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The photos again and again, half of each round's words made new."""
    for round_number in itertools.count():

        def mark(text: str, number: int = round_number) -> str:
            return " ".join(
                f"{word}{number}" if number and len(word) % 2 and word.isalpha() else word
                for word in text.split()
            )

        for candidate, references in photos:
            yield mark(candidate), tuple(map(mark, references))


def fastest(run: Callable[[], object]) -> float:
    return min(timed(run) for _ in range(ROUNDS))


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak() -> float:
    """The most memory this process has held, in GB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / 1e9


if __name__ == "__main__":
    main()
