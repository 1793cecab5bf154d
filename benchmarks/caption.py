"""How much of the encoder's speed is left when whole captions are made from JPEG files.

    python benchmarks/caption.py                       # synthetic photos, the shipped model
    python benchmarks/caption.py PHOTOS... --count 512 --threads 4 --agreement
    python benchmarks/caption.py --device cuda --side 224 --count 20000 --rounds 3

In one process, in turns: photos per second from files to captions (``Captioner.stream``: reading,
encoding, beam search) and photos per second of the encoder alone on pixels that are ready. The
figure that counts is the ratio of the two medians; the target is 0.85 on a CPU and 0.5 on a GPU,
with 5,000 photos per second. (There the processes that read are started in every round, so that
``--count`` must be large.) It needs a quiet machine;
the processor time beside it says how much work there was on a busy one (best with ``--threads 1``).
Below it, what each stage costs by itself, one after the other.

Without a shipped model a random one of the same size is timed. It does not know how to end a
sentence, so its searches run to ``--max-length`` words, longer than those of a trained model.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from photos import photo_files

from captioner.api import DEFAULT_WEIGHTS, Caption, Captioner
from captioner.backends.torch import TorchStepper
from captioner.checkpoint import Header
from captioner.config import AttentionConfig, DecoderConfig, ModelConfig
from captioner.decoding.beam_search import beam_search
from captioner.decoding.options import DecodingOptions
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import Vocabulary
from captioner.utils.device import Precision, autocast, trunk_autocast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("photos", nargs="*", type=Path, help="files or folders (default: made up)")
    parser.add_argument("--model", type=Path, help="model file (default: the shipped one)")
    parser.add_argument("--count", type=int, default=256, help="photos a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, help="default: the captioner's")
    parser.add_argument("--side", type=int, help="of made-up photos (default: 640 × 480)")
    parser.add_argument("--beam", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=24)
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--agreement", action="store_true", help="compare captions by precision")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    captioner = load(options.model, options.device, options.precision)
    batch = options.batch or captioner.batch_size
    size = (options.side, options.side) if options.side else (640, 480)
    with photo_files(options.photos, options.count, size) as files:
        search = DecodingOptions(beam=options.beam, max_length=options.max_length)
        measure(captioner, files, search, batch, options.rounds)
        if options.agreement:
            agreement(captioner, files, search, batch)


def load(path: Path | None, device: str, precision: Precision) -> Captioner:
    """The named model, else the shipped one, else a random one of its size."""
    if path is not None or DEFAULT_WEIGHTS.exists():
        return Captioner.from_pretrained(path, backend="torch", device=device, precision=precision)
    print("no shipped model: timing random weights, which never end a sentence")
    torch.manual_seed(0)
    config = ModelConfig(
        attention=AttentionConfig(size=256, see_word=True), decoder=DecoderConfig(deep_output=True)
    )
    words = tuple(f"word{n}" for n in range(3093 - len(Vocabulary.SPECIALS)))
    vocabulary = Vocabulary((*Vocabulary.SPECIALS, *words))
    model = CaptionModel(config, len(vocabulary), pretrained=False)
    normalization = model.encoder.normalization
    preprocess = Preprocess(config.encoder.image_size, normalization.mean, normalization.std)
    header = Header(config=config, vocabulary=vocabulary, preprocess=preprocess)
    return Captioner(model, header, device, precision)


@torch.no_grad()
def measure(
    captioner: Captioner, files: list[Path], search: DecodingOptions, batch: int, rounds: int
) -> None:
    """Print the two speeds, their ratio and the cost of each stage."""
    pixels = [np.stack([captioner.read(f) for f in part]) for part in parts(files[:256], batch)]
    images = [
        captioner.preprocess.normalize(torch.from_numpy(p).to(captioner.torch_backend.device))
        for p in pixels
    ]
    lengths: list[int] = []

    def pipeline() -> None:
        lengths.clear()
        for result in captioner.stream(
            files, batch_size=batch, beam=search.beam, max_length=search.max_length
        ):
            assert isinstance(result, Caption)
            lengths.append(len(result.words))

    def encode() -> None:
        with trunk_autocast(captioner.torch_backend.device, captioner.torch_backend.precision):
            for ready in images:
                captioner.model.encoder(ready)
        synchronize(captioner.torch_backend.device)

    speed = {
        "files to captions": (pipeline, len(files)),
        "encoder alone": (encode, len(files[:256])),
    }
    for run, _ in speed.values():  # the first call allocates
        run()
    wall: dict[str, list[float]] = {name: [] for name in speed}  # photos per second
    busy: dict[str, list[float]] = {name: [] for name in speed}  # processor ms a photo
    for _ in range(rounds):
        for name, (run, count) in speed.items():
            seconds, processor = timed(run)
            wall[name].append(count / seconds)
            busy[name].append(1000 * processor / count)
    print(
        f"{len(files)} photos a round, {rounds} rounds, batch {batch}, beam {search.beam}, "
        f"{statistics.mean(lengths):.1f} words a caption, {captioner.torch_backend.device}, "
        f"{torch.get_num_threads()} threads"
    )
    for name, values in wall.items():
        print(
            f"{name:20}{statistics.median(values):8.1f} photos/s "
            f"({min(values):.1f} to {max(values):.1f})"
            f"{statistics.median(busy[name]):9.1f} ms of processor a photo"
        )
    whole, alone = (statistics.median(values) for values in wall.values())
    print(f"{'ratio':20}{whole / alone:8.2f}")
    print(f"RESULT {whole:.0f} photos/s, {whole / alone:.2f} of the encoder's {alone:.0f}")
    breakdown(captioner, files[:batch], images[0], search)


def breakdown(
    captioner: Captioner, files: list[Path], images: torch.Tensor, search: DecodingOptions
) -> None:
    """Print the milliseconds a photo of each stage by itself, on one batch."""
    with autocast(captioner.torch_backend.device, captioner.torch_backend.precision):
        with trunk_autocast(captioner.torch_backend.device, captioner.torch_backend.precision):
            grid = captioner.model.encoder(images)
        memory = captioner.model.decoder.remember(grid)

        def decode() -> None:
            if search_there := captioner.backend.search(memory, search, ()):
                search_there()
            else:
                beam_search(TorchStepper(captioner.model.decoder, memory), search)

        def encode() -> None:
            with trunk_autocast(captioner.torch_backend.device, captioner.torch_backend.precision):
                captioner.model.encoder(images)
            synchronize(captioner.torch_backend.device)

        def read() -> None:
            for file in files:
                captioner.read(file)

        stages = {"reading (1 thread)": read, "encoding": encode, "decoding": decode}
        for name, run in stages.items():
            seconds = statistics.median(timed(run)[0] for _ in range(5))
            print(f"{name:20}{1000 * seconds / len(files):8.2f} ms a photo")


def agreement(captioner: Captioner, files: list[Path], search: DecodingOptions, batch: int) -> None:
    """Print how many photos get the caption that they get in fp32, for the other precisions."""
    texts = {}
    precisions: tuple[Precision, ...] = ("fp32", "auto", "bf16")
    for precision in precisions:
        other = Captioner(
            captioner.model, captioner.header, str(captioner.torch_backend.device), precision
        )
        results = other.stream(
            dict.fromkeys(files), batch_size=batch, beam=search.beam, max_length=search.max_length
        )
        texts[precision] = [result.text for result in results if isinstance(result, Caption)]
    for precision in precisions[1:]:
        same = sum(a == b for a, b in zip(texts[precision], texts["fp32"], strict=True))
        print(f"RESULT same caption as in fp32: {precision} {same} of {len(texts['fp32'])} photos")


def parts(files: list[Path], size: int) -> list[list[Path]]:
    return [files[start : start + size] for start in range(0, len(files), size)]


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds that one call takes on the clock, and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
