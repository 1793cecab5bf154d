"""The run folder: its lock, its recipe, and the state for exact resume.

The state lies in `last/state.pt`, and loading it cannot run code. The state before it stays as
`last/previous.pt`, in case the newest one is damaged.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from captioner.config import Config, load_config, to_dict
from captioner.errors import CaptionerError, CheckpointError
from captioner.training.distributed import gather, rank
from captioner.utils.files import LockHeldError, exclusive_lock, replacing

logger = logging.getLogger(__name__)

STATE_FILE = Path("last") / "state.pt"
PREVIOUS_FILE = Path("last") / "previous.pt"

# Loader workers share the lock of the process that started them, and survive it by up to five
# seconds if it is killed.
LOCK_TIMEOUT = 10.0

_MAY_CHANGE = {
    *("out", "init", "device", "save_every", "data.root", "data.cache", "data.workers"),
    *("log.samples", "log.tensorboard"),
}


@contextlib.contextmanager
def exclusive_run_dir(folder: Path) -> Iterator[None]:
    """Hold exclusive use of a run directory while the block runs, creating it if needed.

    All processes of a run call this; the first one takes the lock. Where files cannot be locked
    (some network file systems), nothing is held.

    Raises:
        CaptionerError: Another run trains into it and does not end within ten seconds, or the
            directory cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        if rank() == 0:
            try:
                stack.enter_context(_run_lock(folder))
            except (CaptionerError, OSError) as error:
                refusal = str(error)
        refusal = gather(refusal)[0]  # no process reads the directory before the lock is held
        if refusal is not None:
            raise CaptionerError(refusal)
        yield


@contextlib.contextmanager
def _run_lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                exclusive_lock(
                    folder / ".lock",
                    timeout=LOCK_TIMEOUT,
                    on_wait=lambda: logger.info(
                        "%s: waiting for the run that trains into it", folder
                    ),
                )
            )
        except LockHeldError:
            raise CaptionerError(
                f"another run trains into {folder}: wait until it ends, or change out="
            ) from None
        except OSError:  # files cannot be locked here
            pass
        yield


def write_config(config: Config, path: Path) -> None:
    """Write the recipe of a run, defaults included."""
    with replacing(path) as temporary:
        text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")


def check_same_recipe(config: Config, path: Path) -> None:
    """Refuse to resume a run with a recipe that would give another result.

    Paths, device and number of workers may change.

    Raises:
        CheckpointError: Names the keys that differ.
    """
    now, before = (_flatten(to_dict(each)) for each in (config, load_config(path)))
    differing = [
        f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
        for key in sorted(now.keys() | before.keys())
        if now.get(key) != before.get(key) and key not in _MAY_CHANGE
    ]
    if differing:
        raise CheckpointError(
            f"cannot resume {path.parent}: {'; '.join(differing)}; "
            "resume with the recipe it was started with"
        )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of this process's random number generators."""
    state = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `rng_state` returned; call it last, just before training continues."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the training state atomically, and keep the one before it in reserve."""
    path = folder / STATE_FILE
    with replacing(path) as temporary:
        torch.save(state, temporary)
        if path.exists():
            os.replace(path, folder / PREVIOUS_FILE)


def has_state(folder: str | Path) -> bool:
    """Return whether a run was saved here."""
    return any((Path(folder) / file).exists() for file in (STATE_FILE, PREVIOUS_FILE))


def load_state(folder: Path) -> dict[str, Any]:
    """Read the newest training state that is intact.

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
        except Exception as error:  # torch raises many kinds, and suggests to load unsafely
            reason = f"it is damaged or no training state ({type(error).__name__})"
            problems.append(f"{path} cannot be resumed from: {reason}")
            continue
        if problems:
            logger.warning("%s; going on from %s", problems[0], path)
        return state
    if problems:
        raise CheckpointError(problems[0])
    raise CheckpointError(f"nothing to resume in {folder}: no {STATE_FILE}")
