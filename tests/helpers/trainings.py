"""Small trainings that tests run, and how to read what they left."""

import json
import signal

import torch

from captioner.config import Config, from_dict


def recipe(folder, captions="captions.json", **sections):
    """A tiny run in `folder`/run; sections are merged over it."""
    values = {
        "out": str(folder / "run"),
        "device": "cpu",
        "model": {
            "encoder": {
                "name": "timm/mobilenetv3_small_050",
                "pretrained": False,
                "image_size": 64,
                "width": 32,
            },
            "attention": {"size": 16},
            "decoder": {"embedding": 24, "hidden": 48, "dropout": 0.1},
        },
        "data": {
            "root": str(folder),
            "train": {"captions": captions},
            "val": {"captions": captions},
            "min_count": 1,
            "batch_size": 4,
            "mirror": False,
            "cache": str(folder / "cache"),
            "workers": 0,
        },
        "loss": {"label_smoothing": 0.0},
        "optim": {"epochs": 3, "warmup": 2, "ema": 0.9, "precision": "fp32"},
        "validation": {"beam": 2, "max_length": 12},
        "log": {"samples": 0},
    }

    def merge(into, changes):
        for key, value in changes.items():
            if isinstance(value, dict):
                merge(into.setdefault(key, {}), value)
            else:
                into[key] = value

    merge(values, sections)
    return from_dict(Config, values)


def log_lines(folder):
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


class Interrupt:
    """Sends Ctrl-C to this process in the middle of one training step."""

    def __init__(self, trainer, step):
        self.trainer, self.step = trainer, step
        self.original = trainer._train_step
        trainer._train_step = self

    def __call__(self, batch):
        if self.trainer.step == self.step:
            signal.raise_signal(signal.SIGINT)
        return self.original(batch)


def same(one, other, where=""):
    """Equal to the bit, through all containers."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            same(left, right, f"{where}[{number}]")
    else:
        assert one == other, where
