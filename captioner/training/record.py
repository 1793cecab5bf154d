"""The record of a training that travels in the model file: what made these weights."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import captioner
from captioner.config import Config, to_dict
from captioner.training.data import TrainingData


def training_record(
    config: Config, data: TrainingData, epoch: int, step: int, metrics: dict[str, float]
) -> dict[str, Any]:
    """Describe a run, with no path of the machine it ran on.

    Args:
        config: The recipe.
        data: What it read.
        epoch: Epochs done.
        step: Steps done.
        metrics: Of the last validation.
    """
    recipe = to_dict(config)
    del recipe["model"]  # it is in the header already
    for key in ("out", "device"):
        del recipe[key]
    recipe["data"]["root"] = recipe["data"]["cache"] = None
    for source in recipe["data"]["train"] + recipe["data"]["val"]:
        for key in ("captions", "images"):
            if source[key] is not None and Path(source[key]).is_absolute():
                source[key] = Path(source[key]).name
    if config.init:
        recipe["init"] = Path(config.init).name
    if config.data.embeddings:
        recipe["data"]["embeddings"] = Path(config.data.embeddings).name
    return {
        "recipe": recipe,
        "training_photos": len(data.train),
        "validation_photos": len(data.val),
        "epoch": epoch,
        "step": step,
        "validation": metrics,
        "date": datetime.date.today().isoformat(),
        "commit": _git_commit(),
        "versions": {
            "captioner": captioner.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "timm")},
        },
    }


def _git_commit() -> str | None:
    """The commit of the source tree, if captioner runs from one."""
    root = Path(captioner.__file__).parents[1]
    if not (root / ".git").exists():  # an installed package may lie inside somebody else's tree
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
