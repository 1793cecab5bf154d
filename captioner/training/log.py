"""The log of a run: one JSON object a line, appended as the run goes; for TensorBoard as well."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.errors import DataError
from captioner.utils.files import replacing

if TYPE_CHECKING:
    from captioner.training.tensorboard import TensorBoardLog

LOG_FILE = "log.jsonl"


class RunLog:
    """All that a run tells about itself; every record goes everywhere.

    Args:
        folder: Of the run; ``log.jsonl`` and ``tensorboard/`` lie in it.
        keep: When resuming, the steps and the epochs that are done: the records of later ones are
            dropped, for they are run again.
        tensorboard: Write for TensorBoard too.

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: Path, keep: tuple[int, int] | None = None, *, tensorboard: bool = False
    ):
        self._board: TensorBoardLog | None = None
        if tensorboard:  # first: if it is not installed, no log has been touched
            from captioner.training.tensorboard import TensorBoardLog

            self._board = TensorBoardLog(folder / "tensorboard", None if keep is None else keep[0])
        self._lines = JsonLinesLog(folder / LOG_FILE, keep)

    def write(self, **values: Any) -> None:
        """Append one record, which has a ``step``; ``seconds`` since the start is added."""
        self._lines.write(**values)
        if self._board is not None:
            self._board.write(**values)

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._board is not None:
            self._board.close()


class JsonLinesLog:
    """Appends to ``log.jsonl``; a resumed run goes on in the same file.

    Args:
        path: The file.
        keep: When resuming, the steps and the epochs that are done: the lines of later ones are
            dropped, for they are run again. (A validation counts as of the next epoch.)
    """

    def __init__(self, path: Path, keep: tuple[int, int] | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if keep is not None and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _is_done(line, *keep)]
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._path = path
        self._start = time.monotonic()

    def write(self, **values: Any) -> None:
        """Append one record; ``seconds`` since the start is added."""
        values["seconds"] = round(time.monotonic() - self._start, 1)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, in order of their steps as they were written.

    Args:
        path: A run's folder, or its ``log.jsonl``. A last line that is still being written is left
            out.

    Raises:
        DataError: There is no log, or it is none.
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


def _is_done(line: str, step: int, epoch: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:  # a line that a crash cut short
        return False
    done: bool = record["step"] <= step and record.get("epoch", 0) <= epoch
    return done
