"""Train several runs side by side on one device, their epochs fitted to a number of minutes.

See scripts/train_gpu.sh. A short trial of all runs together measures what an epoch and a validation
cost when they share the device; the epochs of each stage are what then fits into its time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from captioner.checkpoint import read_header
from captioner.config import load_config
from captioner.training.data import read_examples
from captioner.training.log import read_log

ROOT = Path(__file__).parents[1]
SHARES = {"cross_entropy": 0.5, "self_critical": 0.35}  # of the time; the rest is for starts
TRIAL_IMAGES = 1920  # 20 steps of 96, of which the first half warms up
TRIAL_VALIDATED = 200
EVERY = 2  # epochs between validations
MOST_EPOCHS = 60
CROSS_ENTROPY = (1.0, 3.0)  # weight beside the reward, for the best run and the second


class Run(NamedTuple):
    """A training: its name, recipe and overrides."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder with flickr8k/ and coco/")
    parser.add_argument("minutes", type=float, help="for everything")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for all recipes")
    arguments = parser.parse_args()
    started = time.monotonic()
    common = [f"data.root={arguments.root}", "log.every=10", *arguments.overrides]
    out: Path = arguments.out
    (out / "best").mkdir(parents=True, exist_ok=True)

    first = [
        Run("plain", "flickr8k_gpu"),
        Run("head", "flickr8k_gpu", ("model.encoder.head=true", "seed=2")),
    ]
    texts = arguments.root / "texts.txt.gz"
    if texts.exists():
        first.append(Run("texts", "flickr8k_gpu", (f"data.texts=[{texts.resolve()}]", "seed=3")))
    seconds = 60 * arguments.minutes
    train(first, common, out, seconds * SHARES["cross_entropy"])

    done = [run for run in first if best_record(out / run.name) is not None]
    done.sort(key=lambda run: -score(out / run.name))
    second = []
    for run, weight in zip(done, CROSS_ENTROPY, strict=False):
        model = [each for each in run.overrides if each.startswith("model.")]
        start = (out / run.name / "best.safetensors").resolve()
        overrides = (*model, f"init={start}", f"loss.cross_entropy={weight}")
        second.append(Run(f"{run.name}_scst", "flickr8k_gpu_scst", overrides))
    left = seconds - (time.monotonic() - started)
    train(second, common, out, min(left, seconds * SHARES["self_critical"]))

    print("\n| run | epoch | CIDEr-D | BLEU-4 |\n|---|---:|---:|---:|")
    for run in first + second:
        record = best_record(out / run.name)
        if record is None:
            print(f"| {run.name} | - | no validation | - |")
            continue
        figures = record["validation"]
        print(
            f"| {run.name} | {record['epoch']} | {figures['cider']:.3f} | {figures['bleu4']:.3f} |"
        )
        target = out / "best" / f"{run.name}.safetensors"
        command = [sys.executable, "scripts/ship.py", out / run.name / "best.safetensors", target]
        subprocess.run(command, cwd=ROOT, check=True)
        target.with_suffix(".json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes")


def train(runs: list[Run], common: list[str], out: Path, seconds: float) -> None:
    """Run trainings side by side for about this long; end those that are not done in time."""
    deadline = time.monotonic() + seconds
    trial = ["optim.epochs=1"]
    trial += [f"data.limit={TRIAL_IMAGES}", f"validation.limit={TRIAL_VALIDATED}"]
    begun = time.monotonic()
    together(runs, [*common, *trial], out / "trial", deadline)
    start_up = time.monotonic() - begun
    epochs = {}
    for run in runs:
        config = load_config(ROOT / f"configs/{run.recipe}.yaml", common)
        sizes = [len(part) for part in read_examples(config.data, config.validation.limit)]
        cost = epoch_seconds(out / "trial" / run.name, *sizes)
        if cost is None:
            sys.exit(f"the trial of {run.name} failed: see {out / 'trial' / run.name}.log")
        fits = int(0.9 * (deadline - time.monotonic() - start_up) / cost)
        epochs[run.name] = max(1, min(MOST_EPOCHS, fits))
        print(f"{run.name}: {cost:.1f} s an epoch, {epochs[run.name]} epochs", flush=True)
    timed = [
        run._replace(overrides=(*run.overrides, f"optim.epochs={epochs[run.name]}")) for run in runs
    ]
    together(timed, [*common, f"validation.every={EVERY}"], out, deadline)


def together(runs: list[Run], overrides: list[str], out: Path, deadline: float) -> None:
    """Start all runs, each with a log file beside its folder, and wait until the deadline."""
    out.mkdir(parents=True, exist_ok=True)
    running = []
    for run in runs:
        command = [sys.executable, "-m", "captioner", "train", f"configs/{run.recipe}.yaml"]
        command += [*overrides, *run.overrides, f"out={(out / run.name).resolve()}"]
        with open(out / f"{run.name}.log", "w", encoding="utf-8") as log:
            running.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
    for process in running:
        try:
            process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()  # it finishes the step and saves
    for process in running:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def epoch_seconds(folder: Path, images: int, validated: int) -> float | None:
    """Return what an epoch costs with its share of validation, by the log of a trial.

    Args:
        folder: Of the trial.
        images: Of an epoch.
        validated: Images of a validation.
    """
    if not (folder / "log.jsonl").exists():
        return None
    records = read_log(folder / "log.jsonl")
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation" in record]
    if len(steps) < 2 or not validations:
        return None
    each = (steps[-1]["seconds"] - steps[0]["seconds"]) / (steps[-1]["step"] - steps[0]["step"])
    batch = load_config(folder / "config.yaml").data.batch_size
    validation = (validations[-1]["seconds"] - steps[-1]["seconds"]) / TRIAL_VALIDATED
    return each * images / batch + validation * validated / EVERY


def score(folder: Path) -> float:
    """Return the CIDEr-D of a run's best model."""
    record = best_record(folder)
    return record["validation"]["cider"] if record else 0.0


def best_record(folder: Path) -> dict[str, Any] | None:
    """Return the validation of a run that its best model had, or None if it had none."""
    if not (folder / "best.safetensors").exists():
        return None
    return read_header(folder / "best.safetensors").record


if __name__ == "__main__":
    main()
