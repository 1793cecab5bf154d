"""The log of a run: `log.jsonl`, one JSON object per line; TensorBoard on request.

Also the means that go into it, and the training record that goes into the model file.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import captioner
from captioner.config import Config, to_dict
from captioner.errors import ConfigError, DataError
from captioner.utils.files import replacing

if TYPE_CHECKING:
    from captioner.training.data import TrainingData

LOG_FILE = "log.jsonl"

_NOT_CURVES = {"step", "epoch", "seconds"}


class AverageMeter:
    """Means of named values over the steps since they were last asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps = 0

    def add(self, **values: float) -> None:
        """Add the values of one step."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def pop_means(self) -> dict[str, float]:
        """Return the means of the steps so far, and start again."""
        means = {name: round(total / self.steps, 5) for name, total in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the state for exact resume."""
        return {"steps": self.steps, "sums": dict(self.sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.steps, self.sums = state["steps"], dict(state["sums"])


class RunLog:
    """Appends records to `log.jsonl` and, on request, writes them for TensorBoard.

    Args:
        folder: Of the run; `log.jsonl` and `tensorboard/` lie in it.
        keep: When resuming, the steps and the epochs that are done: the records of later ones are
            dropped, because those run again. (A validation counts as of the next epoch.)
        tensorboard: Write for TensorBoard too.

    Raises:
        ConfigError: TensorBoard is wanted but not installed.
    """

    def __init__(
        self, folder: Path, keep: tuple[int, int] | None = None, *, tensorboard: bool = False
    ):
        self._board: TensorBoardLog | None = None
        if tensorboard:  # first: if it is not installed, the log stays untouched
            self._board = TensorBoardLog(folder / "tensorboard", None if keep is None else keep[0])
        self._path = folder / LOG_FILE
        kept = []
        if keep is not None and self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _is_done(line, *keep)]
        with replacing(self._path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._start = time.monotonic()

    def write(self, **values: Any) -> None:
        """Append one record, which has a `step`; `seconds` since the start is added."""
        values["seconds"] = round(time.monotonic() - self._start, 1)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
        if self._board is not None:
            self._board.write(**values)

    def close(self) -> None:
        """Write to the disk what TensorBoard still buffers."""
        if self._board is not None:
            self._board.close()


def _is_done(line: str, step: int, epoch: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:  # a crash cut this line short
        return False
    done: bool = record["step"] <= step and record.get("epoch", 0) <= epoch
    return done


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of a log, in the order of their steps.

    Args:
        path: A run's folder, or its `log.jsonl`. A last line that is still being written is left
            out.

    Raises:
        DataError: There is no log, or the file is not one.
    """
    file = path / LOG_FILE if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        what = f"no {LOG_FILE} in it" if path.is_dir() else "no such run folder or log"
        raise DataError(f"{path}: {what}; name the folder that a training wrote (out=)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot read this log ({error})") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), (int, float)):
                raise ValueError("expected an object with a step")
        except ValueError as error:
            if number == len(lines):  # no newline after it
                break
            raise DataError(f"{file}, line {number}: not a training log ({error})") from error
        records.append(record)
    return records


class TensorBoardLog:
    """Writes records as TensorBoard events: `tensorboard --logdir runs`. Extra `tensorboard`.

    Losses, attention entropy, gradient norm and learning rate appear under `train/`, metrics under
    `validation/`, the histogram of the attention that each location received over a sentence under
    `attention/`.

    Args:
        folder: Of the event files.
        keep_until: When resuming, events of later steps are hidden, because those run again.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, keep_until: int | None = None):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "log.tensorboard=true needs TensorBoard: pip install 'captioner[tensorboard]'"
            ) from None
        # Also for a new run: an earlier one may have ended here before it saved a state.
        first = 0 if keep_until is None else keep_until + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=first)

    def write(self, **values: Any) -> None:
        """Write one record of the log, which has a `step`."""
        step = values["step"]
        for name, value in values.items():
            if name == "validation":
                for metric, score in value.items():
                    self._writer.add_scalar(f"validation/{metric}", score, step)
            elif name == "attention_sums":
                self._histogram("attention/sum_over_words", value, step)
            elif name not in _NOT_CURVES and isinstance(value, (int, float)):
                self._writer.add_scalar(f"train/{name}", value, step)
        if "validation" in values:
            self._writer.flush()

    def close(self) -> None:
        """Write to the disk what is still buffered."""
        self._writer.close()

    def _histogram(self, tag: str, sums: dict[str, Any], step: int) -> None:
        """Write what `AttentionSums.record` returned."""
        edges, counts = sums["edges"], sums["counts"]
        filled = [number for number, count in enumerate(counts) if count]
        if not filled:
            return
        self._writer.add_histogram_raw(
            tag,
            min=edges[filled[0]],
            max=edges[filled[-1] + 1],
            num=sum(counts),
            sum=sums["sum"],
            sum_squares=sums["sum_squares"],
            bucket_limits=edges[1:],
            bucket_counts=counts,
            global_step=step,
        )


def _without_folders(value: Any) -> Any:
    """Shorten the absolute paths in a recipe to their names."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def training_record(
    config: Config, data: TrainingData, epoch: int, step: int, metrics: dict[str, float]
) -> dict[str, Any]:
    """Describe a run for the header of its model file, without paths of the machine it ran on.

    Args:
        config: The recipe.
        data: The data it read.
        epoch: Epochs done.
        step: Steps done.
        metrics: Of the last validation.
    """
    recipe = to_dict(config)
    for key in ("model", "out", "device"):  # the model's configuration is in the header already
        del recipe[key]
    recipe["data"]["root"] = recipe["data"]["cache"] = None
    if config.init:
        recipe["init"] = Path(config.init).name
    return {
        "recipe": _without_folders(recipe),
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
    """Return the commit of the source tree, if captioner runs from one."""
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
