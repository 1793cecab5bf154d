"""Peak memory of captioning few and many photos: it must not grow with their number.

    python benchmarks/memory.py                       # a folder: 1,000 and 100,000 photos
    python benchmarks/memory.py --tar                 # an archive as well
    python benchmarks/memory.py --names 1000000       # a list of names, none of which is there

Runs ``captioner caption ... -o out.jsonl`` in a process of its own, with a random model that is
tiny and quick: what is measured is the machinery around it. The photos are hard links to a few
files of 16 x 16 pixels.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

LIMIT = 100  # MB between few and many
VARIANTS = 10  # different photos; a file can have only so many hard links

# A small process that starts the command and waits for it. A child's peak begins with the memory of
# the process that made it, so one that holds PyTorch would measure itself.
_WAITER = """
import json, os, subprocess, sys, threading
process = subprocess.Popen(sys.argv[2:])
timer = threading.Timer(float(sys.argv[1]), process.kill)
timer.daemon = True
timer.start()
_, status, usage = os.wait4(process.pid, 0)
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([os.waitstatus_to_exitcode(status), peak]))
"""


def measure(command: list[str], seconds: float = 600.0, **options: object) -> tuple[int, int]:
    """Run a command that prints nothing on standard output.

    Args:
        command: What to run.
        seconds: After these it is killed.
        **options: Of `subprocess.run`.

    Returns:
        Exit status (negative: the signal) and peak of resident memory in bytes.
    """
    waiter = [sys.executable, "-S", "-c", _WAITER, str(seconds), *command]
    done = subprocess.run(waiter, stdout=subprocess.PIPE, check=True, **options)
    status, peak = json.loads(done.stdout)
    return status, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--tar", action="store_true", help="also from an archive")
    parser.add_argument("--names", type=int, metavar="N", help="also from a list of N names")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        subprocess.run([sys.executable, __file__, "--make-model"], check=True, env=environment())
        make_photos(Path("variants"), VARIANTS)
        few, many = arguments.few, arguments.many
        print(f"{'source':<10} {'photos':>10} {'seconds':>8} {'peak MB':>8}", flush=True)
        compare("folder", few, many, make_folder)
        if arguments.tar:
            compare("tar", few, many, make_tar)
        if arguments.names:
            compare("names", few, arguments.names, make_list, failing=True)


def compare(kind, few, many, make, failing=False):
    """Caption few and many photos of a source, and print both peaks and their difference."""
    peaks = []
    for count in (few, many):
        source = make(count)
        start = time.perf_counter()
        peaks.append(caption(source, count, failing) / 1e6)
        print(f"{kind:<10} {count:>10,} {time.perf_counter() - start:>8.0f} {peaks[-1]:>8.0f}")
    verdict = "less" if peaks[1] - peaks[0] < LIMIT else "NOT LESS"
    print(f"{kind}: {peaks[1] - peaks[0]:+.0f} MB, {verdict} than {LIMIT}", flush=True)


def caption(source: str, count: int, failing: bool) -> int:
    """Peak memory in bytes of captioning a source, whose rows are counted afterwards."""
    command = [sys.executable, "-m", "captioner", "caption", source, "-o", "out.jsonl"]
    options = ["--overwrite", "--quiet", "--model", "tiny.safetensors", "--beam", "1"]
    options += ["--max-length", "3", "--batch-size", "64"]
    status, peak = measure([*command, *options], seconds=3600, env=environment())
    with open("out.jsonl", "rb") as file:
        rows = sum(1 for _ in file)
    if (status, rows) != (int(failing), count):
        sys.exit(f"status {status} and {rows:,} rows of {source}")
    return peak


def environment() -> dict[str, str]:
    """For processes that import this checkout of captioner."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


# ----------------------------------------------------------------------------------------- sources


def make_photos(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def make_folder(count: int) -> str:
    folder = Path(f"folder-{count}")
    folder.mkdir()
    for number in range(count):
        os.link(f"variants/{number % VARIANTS}.png", folder / f"photo_{number:012}.png")
    return str(folder)


def make_tar(count: int) -> str:
    photos = [Path(f"variants/{number}.png").read_bytes() for number in range(VARIANTS)]
    path = f"photos-{count}.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            header = tarfile.TarInfo(f"photo_{number:012}.png")
            header.size = len(photos[number % VARIANTS])
            archive.addfile(header, io.BytesIO(photos[number % VARIANTS]))
            archive.members = []
    return path


def make_list(count: int) -> str:
    path = f"names-{count}.txt"
    with open(path, "w") as file:
        for number in range(count):
            file.write(f"a/folder/that/is/not/there/photo_{number:012}.jpg\n")
    return path


def make_model(path: str) -> None:
    """A random model for photos of 32 pixels."""
    import torch

    from captioner.checkpoint import Header, save_checkpoint
    from captioner.config import AttentionConfig, DecoderConfig, EncoderConfig, ModelConfig
    from captioner.image.transforms import Preprocess
    from captioner.models.caption_model import CaptionModel
    from captioner.tokenizer import Vocabulary

    torch.manual_seed(0)
    config = ModelConfig(
        encoder=EncoderConfig(
            name="timm/mobilenetv3_small_050", pretrained=False, image_size=32, width=8
        ),
        attention=AttentionConfig(size=8),
        decoder=DecoderConfig(embedding=8, hidden=8, dropout=0.0),
    )
    vocabulary = Vocabulary.build([["a", "photo", "of", "noise"]], min_count=1)
    network = CaptionModel(config, len(vocabulary))
    preprocess = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    header = Header(config=config, vocabulary=vocabulary, preprocess=preprocess, record={})
    save_checkpoint(Path(path), header, network.state_dict())


if __name__ == "__main__":
    if sys.argv[1:] == ["--make-model"]:  # in a process of its own, which alone needs PyTorch
        make_model("tiny.safetensors")
    else:
        main()
