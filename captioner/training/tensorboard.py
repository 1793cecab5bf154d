"""The records of a run for TensorBoard: ``tensorboard --logdir runs``. Extra ``tensorboard``.

Nothing is measured here. What ``log.jsonl`` gets is written under ``train/`` (loss and its parts,
attention entropy, gradient norm, learning rate) and ``validation/``; the histogram of Σ_t α_ti, how
much attention each place got over a sentence, under ``attention/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captioner.errors import ConfigError

_NOT_CURVES = {"step", "epoch", "seconds"}


class TensorBoardLog:
    """Writes records as TensorBoard events.

    Args:
        folder: Of the event files.
        keep_until: When resuming, events of later steps are hidden, for they are run again.

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
        # Also when the run is new: an earlier one may have died here before its first state.
        first = 0 if keep_until is None else keep_until + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=first)

    def write(self, **values: Any) -> None:
        """Write one record of the log, which has a ``step``."""
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
        """Bring everything to the disk."""
        self._writer.close()

    def _histogram(self, tag: str, sums: dict[str, Any], step: int) -> None:
        """Write what :meth:`AttentionSums.record` gave."""
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
