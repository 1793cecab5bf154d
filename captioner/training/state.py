"""What exact resume needs, in ``last/state.pt``; loading it cannot run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from captioner.errors import CheckpointError
from captioner.files import replacing

STATE_FILE = Path("last") / "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the training state atomically, with the random generators as they stand now."""
    random = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    with replacing(folder / STATE_FILE) as temporary:
        torch.save({**state, "random": random}, temporary)


def load_state(folder: Path) -> dict[str, Any]:
    """Read the training state.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    path = folder / STATE_FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"nothing to resume in {folder}: no {STATE_FILE}") from None
    except Exception as error:  # torch raises many kinds, and recommends to load unsafely
        reason = f"it is damaged or no training state ({type(error).__name__})"
        raise CheckpointError(f"{path} cannot be resumed from: {reason}") from None
    return state


def restore_random(state: dict[str, Any]) -> None:
    """Put the random generators back; call last, just before training goes on."""
    torch.set_rng_state(state["random"]["torch"])
    if "cuda" in state["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random"]["cuda"])
