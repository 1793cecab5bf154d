"""Training throughput, and how near it comes to the limit of the device.

    python benchmarks/train.py                                # the recipe of the shipped model
    python benchmarks/train.py configs/paper_soft.yaml optim.precision=fp32
    python benchmarks/train.py --profile 15                   # and the costliest operations
    python benchmarks/train.py device=cuda --beside loss.objective=self_critical

Everything runs as in a training: captions from `CaptionDataset`, features from the memory-mapped
cache, loss, clipping, AdamW, averaged weights. Only photos and captions are made up: features are
noise, captions are random words with the lengths of Flickr8k's (10.7 ± 3.5 words, five a photo,
3,000 words). So a step has the cost of a real one, but nothing to learn. Where the CNN trains too,
a few batches of photos are read before and used again and again, so reading is not measured.

On a CPU the yardstick is the matrix products: all of a step (mm, addmm, bmm), forward and backward,
are recorded with their shapes, strides and dtypes and then run one after the other on random
numbers. Steps and yardstick take turns; medians and ranges over all rounds are printed, with the
yardstick's share of the steps. Both are given in processor time too: on a machine that does other
things as well, that share with `--threads 1` is the one to trust.

On a GPU the yardstick is the time in which kernels ran, by PyTorch's profiler, and steps that run
operation by operation (`optim.cuda_graphs=false`) take turns with those of the recipe. A round is
timed from its beginning to the moment when the GPU has nothing left to do. `--beside KEY=VALUE` has
a second recipe take turns too, and prints the ratio.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from captioner.config import Config, load_config
from captioner.data.annotations import Example
from captioner.data.caption_batch import CaptionBatch
from captioner.data.dataset import CaptionDataset, make_loader
from captioner.data.features import build_features
from captioner.data.prefetch import copied_ahead
from captioner.data.sampler import LengthAwareSampler
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import Vocabulary
from captioner.training.data import preprocess_of
from captioner.training.objectives import build_objective
from captioner.training.optim import AveragedWeights, build_optimizer, build_schedule
from captioner.training.step import TrainStep
from captioner.utils.device import (
    autocast,
    resolve_device,
    use_deterministic_algorithms,
)

RECIPE = Path(__file__).parents[1] / "configs" / "flickr8k.yaml"
WORDS, MEAN, DEVIATION = 3000, 10.7, 3.5  # of the vocabulary; words a caption
aten = torch.ops.aten


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "given", nargs="*", metavar="[RECIPE] KEY=VALUE", help="default: Flickr8k's"
    )
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--photos", type=int, default=256)
    parser.add_argument("--steps", type=int, help="timed steps in each round (4; on a GPU 30)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="show N operations")
    parser.add_argument("--beside", metavar="KEY=VALUE", help="a second recipe, on a GPU")
    parser.add_argument("--name", default="training", help="for the lines RESULT")
    options = parser.parse_intermixed_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.disable(logging.INFO)
    recipe = RECIPE
    if options.given and "=" not in options.given[0]:
        recipe = Path(options.given.pop(0))
    config = load_config(recipe, options.given)
    device = resolve_device(config.device)
    if config.deterministic:
        use_deterministic_algorithms()
    wanted = {options.name: options.given}
    if device.type == "cuda":
        wanted["operation by operation"] = [*options.given, "optim.cuda_graphs=false"]
    if options.beside:
        wanted[options.beside] = [*options.given, options.beside]
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for number, (name, overrides) in enumerate(wanted.items()):
            place = Path(folder, str(number))
            place.mkdir()
            runs[name] = Run(load_config(recipe, overrides), place, options.photos)
        run = runs[options.name]
        batches = {name: each.batches() for name, each in runs.items()}
        print(run.describe())
        if device.type == "cuda" or options.beside:
            warm_up(runs, batches, options.photos)
            compare(runs, batches, options.rounds, options.steps or 30)
        if options.profile:
            profile(run, batches[options.name], options.profile)
        if device.type == "cpu" and not options.beside:
            for _ in range(3):
                run.step(next(batches[options.name]))
            measure(run, batches[options.name], options.rounds, options.steps or 4)


class Run:
    """A training without its loop: data, objective and optimiser.

    Args:
        config: The recipe.
        folder: For the cache.
        photos: How many to make up.
    """

    def __init__(self, config: Config, folder: Path, photos: int):
        self.config = config
        self.device = resolve_device(config.device)
        torch.manual_seed(0)
        examples = made_up(folder, photos)
        vocabulary = Vocabulary.build([[f"w{word}" for word in range(WORDS)]], min_count=1)
        self.model = CaptionModel(config.model, len(vocabulary), pretrained=False).to(self.device)
        self.model.encoder.backbone.to(memory_format=torch.channels_last)
        with torch.no_grad():  # sampled sentences end after about ten words, as captions do
            self.model.decoder.project.bias[Vocabulary.END] += math.log(WORDS / MEAN)
        preprocess = preprocess_of(self.model.encoder)
        self.cached = config.model.encoder.trainable_stages == 0
        cache = None
        if self.cached:
            blank = zeros(config, self.device)
            shapes = [x.shape[1:] for x in self.model.encoder.forward_features(blank)]

            def noise(images: Tensor) -> list[Tensor]:
                return [torch.randn(len(images), *shape).relu() for shape in shapes]

            paths = [example.image for example in examples]
            cache = build_features(folder, paths, preprocess, noise, fingerprint="", progress=False)
        data = CaptionDataset(
            examples,
            vocabulary,
            captions_per_image=config.data.captions_per_image,
            max_length=config.data.max_length,
            preprocess=None if self.cached else preprocess,
            cache=cache,
            mirror=config.data.mirror and self.cached,
        )
        self.loader = make_loader(
            data,
            LengthAwareSampler(data.lengths, config.data.batch_size),
            workers=config.data.workers,
            pin_memory=self.device.type == "cuda",
        )
        objective = build_objective(self.model, preprocess, config, data, total_steps=100_000)
        objective.to(self.device)
        optimizer = build_optimizer(self.model, config.optim)
        self.train_step = TrainStep(
            objective,
            optimizer,
            build_schedule(optimizer, config.optim, 100_000),
            AveragedWeights(self.model, config.optim.ema),
            config,
            self.device,
        )
        self.steps = 0
        self.model.train()

    def describe(self) -> str:
        """What is measured."""
        model, threads = self.config.model, torch.get_num_threads()
        with autocast(self.device, self.config.optim.precision):
            precision = "bf16" if torch.is_autocast_enabled(self.device.type) else "fp32"
        return (
            f"{self.config.data.batch_size} photos × {self.config.data.captions_per_image} captions"
            f" a step, grid {self.model.encoder.grid_size[0]}² × {self.model.encoder.feature_size},"
            f" {model.attention.kind} A = {model.attention.size}, H = {model.decoder.hidden},"
            f" {precision}, {self.device}"
            + (f", {threads} threads" if self.device.type == "cpu" else "")
        )

    def batches(self) -> Iterator[CaptionBatch]:
        """Batches without end."""
        if self.cached:
            endless = itertools.chain.from_iterable(self.loader for _ in itertools.count())
            return copied_ahead(endless, self.device)
        return itertools.cycle([batch.to(self.device) for batch in self.loader])

    def step(self, batch: CaptionBatch) -> Tensor:
        """One training step; returns the values that it would log."""
        self.steps += 1
        return self.train_step(batch, self.steps, len(batch.indices))

    def now(self) -> float:
        """The time, after all that was started has ended."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def zeros(config: Config, device: torch.device) -> Tensor:
    """A blank photo, to learn the shapes of the trunk's stages."""
    size = config.model.encoder.image_size
    return torch.zeros(1, 3, size, size, device=device)


def made_up(folder: Path, photos: int) -> list[Example]:
    """Tiny pictures with five captions of random words each."""
    random = np.random.default_rng(0)
    examples = []
    for number in range(photos):
        path = folder / f"{number}.png"
        Image.new("RGB", (8, 8)).save(path)
        lengths = random.normal(MEAN, DEVIATION, 5).round().clip(4, 25).astype(int)
        captions = [
            " ".join(f"w{word}" for word in random.integers(WORDS, size=n)) for n in lengths
        ]
        examples.append(Example(str(path), tuple(captions), "train", number))
    return examples


class Recorder(TorchDispatchMode):
    """Notes every matrix product that PyTorch runs while the block lasts.

    Attributes:
        calls: The products, ready to be run again on random numbers.
        flops: Multiplications and additions in them.
    """

    PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], list[Any]]] = []
        self.flops = 0
        self._tensors: dict[Any, list[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in self.PRODUCTS:
            *_, left, right = args
            self.flops += 2 * left.numel() * right.shape[-1]
            self.calls.append((func, self._like(func, args)))
        return result

    def _like(self, func: Any, args: tuple[Any, ...]) -> list[Any]:
        """Random tensors of the same shapes, strides and dtypes; the same for equal products."""
        key = (func, *((x.shape, x.stride(), x.dtype) if torch.is_tensor(x) else x for x in args))
        if key not in self._tensors:
            self._tensors[key] = [random_like(x) if torch.is_tensor(x) else x for x in args]
        return self._tensors[key]

    @torch.no_grad()
    def run(self) -> None:
        """All products, one after the other."""
        for function, tensors in self.calls:
            function(*tensors)


def random_like(x: Tensor) -> Tensor:
    """Random numbers laid out in memory as these are."""
    extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    room = torch.randn(extent, device=x.device).to(x.dtype)
    return room.as_strided(x.shape, x.stride())


def measure(run: Run, batches: Iterator[CaptionBatch], rounds: int, steps: int) -> None:
    """Time steps and their matrix products in turns, and print both."""
    names = ("data", "step", "products")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    shares, processor_shares, rates, speeds = [], [], [], []
    for _ in range(rounds):
        times = dict.fromkeys(names, 0.0)
        processor = {"step": 0.0, "products": 0.0}
        captions = flops = 0
        for _ in range(steps):
            start, busy = run.now(), time.process_time()
            batch = next(batches)
            times["data"] += run.now() - start
            run.step(batch)
            times["step"] += run.now() - start
            processor["step"] += time.process_time() - busy
            captions += int((batch.lengths > 0).sum())
            with Recorder() as recorder:
                run.step(batch)  # not timed
            recorder.run()  # the first time is slower
            start, busy = run.now(), time.process_time()
            recorder.run()
            times["products"] += run.now() - start
            processor["products"] += time.process_time() - busy
            flops += recorder.flops
        for name in names:
            seconds[name].append(1000 * times[name] / steps)
        shares.append(100 * times["products"] / times["step"])
        processor_shares.append(100 * processor["products"] / processor["step"])
        rates.append(captions / times["step"])
        speeds.append(flops / times["products"] / 1e9)
    for name, values in seconds.items():
        print(f"{name:>9}{spread(values)} ms")
    print(f"captions{spread(rates)} a second")
    step, rate = statistics.median(seconds["step"]), statistics.median(rates)
    print(f"RESULT {step:.1f} ms a step, {rate:,.0f} captions/s")
    print(f"products{spread(speeds)} GFLOP/s")
    print(f"   share{spread(shares)} % of a step's time are its matrix products alone")
    print(f"        {spread(processor_shares)} % of its processor time")


def warm_up(runs: dict[str, Run], batches: dict[str, Iterator[CaptionBatch]], photos: int) -> None:
    """Run until every shape has been captured: three visits each."""
    for name, run in runs.items():
        epochs = 3 if run.config.optim.cuda_graphs else 0
        for _ in range(5 + epochs * photos // run.config.data.batch_size):
            run.step(next(batches[name]))


def compare(
    runs: dict[str, Run], batches: dict[str, Iterator[CaptionBatch]], rounds: int, steps: int
) -> None:
    """Time the steps of several runs in turns, and print them with the GPU's busy share."""
    milliseconds: dict[str, list[float]] = {name: [] for name in runs}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            counts = []
            start = run.now()
            for _ in range(steps):
                batch = next(batches[name])
                counts.append((batch.lengths > 0).sum())
                run.step(batch)
            seconds = run.now() - start
            milliseconds[name].append(1000 * seconds / steps)
            rates[name].append(int(torch.stack(counts).sum()) / seconds)
    medians = {name: statistics.median(values) for name, values in milliseconds.items()}
    for name, run in runs.items():
        busy = busy_share(run, batches[name], steps)
        share = "" if busy is None else f", GPU busy {100 * busy:.0f} %"
        print(
            f"{name}:{spread(milliseconds[name])} ms a step,{spread(rates[name])} captions/s{share}"
        )
        print(
            f"RESULT {name}: {medians[name]:.1f} ms a step, "
            f"{statistics.median(rates[name]):,.0f} captions/s{share}"
        )
    first, *others = medians
    for other in others:
        print(f"RESULT {other} against {first}: {medians[other] / medians[first]:.2f} x the time")
    if next(iter(runs.values())).device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


def busy_share(run: Run, batches: Iterator[CaptionBatch], steps: int) -> float | None:
    """Return the share of the time in which kernels ran, by the profiler; None on a CPU."""
    if run.device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        start = run.now()
        for _ in range(steps):
            run.step(next(batches))
        seconds = run.now() - start
    kernels = sum(event.self_device_time_total for event in found.key_averages())
    return float(kernels / 1e6 / seconds)


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):9.1f}  ({min(values):.1f} to {max(values):.1f})"


def profile(run: Run, batches: Iterator[CaptionBatch], rows: int) -> None:
    """Print the operations on which most time goes."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    if run.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(3):
            run.step(next(batches))
    key = "self_cuda_time_total" if run.device.type == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=40))


if __name__ == "__main__":
    main()
