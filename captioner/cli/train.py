"""The command `captioner train`, in one process or as one of several that torchrun started."""

from __future__ import annotations

import json
from pathlib import Path

from captioner.config import Config
from captioner.training.distributed import process_group, rank, restarted
from captioner.training.run_state import exclusive_run_dir, has_state
from captioner.training.trainer import Trainer


def train(config: Config, *, resume: bool = False) -> int:
    """Train a model and print the metrics of the last validation.

    Args:
        config: The configuration of the run.
        resume: Continue the run in its folder; implied after a restart by torchrun.

    Returns:
        The exit status: 130 if the run was stopped before its end.

    Raises:
        CaptionerError: The configuration or its data cannot be used, or another run uses its
            folder.
    """
    with process_group(config.device):
        return _train_in_group(config, resume)


def _train_in_group(config: Config, resume: bool) -> int:
    """Train; a separate function, so that the trainer is deleted before the group ends."""
    with exclusive_run_dir(Path(config.out)):
        trainer = Trainer(config, resume=resume or (restarted() and has_state(config.out)))
        metrics = trainer.run()
        if rank() == 0:
            print(json.dumps({"out": config.out, "step": trainer.step, **metrics}))
        return 0 if trainer.step >= trainer.total_steps else 130
