"""What exact resume needs, in ``last/state.pt``; loading it cannot run code.

The state before it stays as ``last/previous.pt``, should the newest turn out to be damaged.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from captioner.errors import CheckpointError
from captioner.utils.files import replacing

logger = logging.getLogger(__name__)

STATE_FILE = Path("last") / "state.pt"
PREVIOUS_FILE = Path("last") / "previous.pt"

Random = dict[str, torch.Tensor]


def random_state(device: torch.device) -> Random:
    """The random generators of this process as they stand now."""
    random = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    return random


def restore_random(random: Random, device: torch.device) -> None:
    """Put the random generators back; call last, just before training goes on."""
    torch.set_rng_state(random["torch"])
    if "cuda" in random and device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], device)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the training state atomically; the one before it stays as a reserve."""
    path = folder / STATE_FILE
    with replacing(path) as temporary:
        torch.save(state, temporary)
        if path.exists():
            os.replace(path, folder / PREVIOUS_FILE)


def has_state(folder: str | Path) -> bool:
    """Whether a run was saved here."""
    return any((Path(folder) / file).exists() for file in (STATE_FILE, PREVIOUS_FILE))


def load_state(folder: Path) -> dict[str, Any]:
    """Read the newest training state that can be read.

    Raises:
        CheckpointError: There is none, or all are damaged.
    """
    problems = []
    for path in (folder / STATE_FILE, folder / PREVIOUS_FILE):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            state["total_steps"]  # or it is something else that torch wrote
        except FileNotFoundError:
            continue
        except Exception as error:  # torch raises many kinds, and recommends to load unsafely
            reason = f"it is damaged or no training state ({type(error).__name__})"
            problems.append(f"{path} cannot be resumed from: {reason}")
            continue
        if problems:
            logger.warning("%s; going on from %s", problems[0], path)
        return state
    if problems:
        raise CheckpointError(problems[0])
    raise CheckpointError(f"nothing to resume in {folder}: no {STATE_FILE}")
