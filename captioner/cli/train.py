"""The command ``captioner train``, in one process or as one of several that torchrun started."""

from __future__ import annotations

import json
from pathlib import Path

from captioner.config import Config
from captioner.training.distributed import process_group, rank, restarted
from captioner.training.run_state import exclusive_run_dir, has_state
from captioner.training.trainer import Trainer


def train(config: Config, *, resume: bool = False) -> int:
    """Train by a recipe; the metrics of the last validation go to standard output.

    Args:
        config: The recipe.
        resume: Go on with the run in its folder; after a restart by torchrun this is understood.

    Returns:
        The exit status: 130 if the run was stopped before its end.

    Raises:
        CaptionerError: The recipe or its data cannot be used, or another run is in its folder.
    """
    with process_group(config.device):
        return _train_in_group(config, resume)


def _train_in_group(config: Config, resume: bool) -> int:
    """A function of its own, because the trainer must be gone before the group ends."""
    with exclusive_run_dir(Path(config.out)):
        trainer = Trainer(config, resume=resume or (restarted() and has_state(config.out)))
        metrics = trainer.run()
        if rank() == 0:
            print(json.dumps({"out": config.out, "step": trainer.step, **metrics}))
        return 0 if trainer.step >= trainer.total_steps else 130
