"""Stop a run by a signal: after the step that it computes, or at once where nothing is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from captioner.training.distributed import world_size

logger = logging.getLogger(__name__)

_GRACE = 5.0  # seconds


class StopWaiting(KeyboardInterrupt):
    """Raised by a signal while the run waits for images: its state is whole, and can be saved."""


class StopSignals:
    """What SIGINT and SIGTERM do to a run, depending on what it is doing.

    The trainer keeps the attributes up to date.

    Args:
        step: Returns the number of steps done.

    Attributes:
        told: A signal asked this process to stop.
        awaits_batch: The run is between two steps.
        loses_nothing: Ending at once would lose no step.
        slowest_step: The longest step so far, in seconds.
    """

    def __init__(self, step: Callable[[], int]):
        self.told = False
        self.awaits_batch = False
        self.loses_nothing = True
        self.slowest_step = 0.0
        self._step = step
        self._ended = threading.Event()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals while the block runs.

        Python delivers signals to the main thread only; in another thread nothing changes.
        """
        main = threading.current_thread() is threading.main_thread()
        signals = [signal.SIGINT, signal.SIGTERM] if main else []
        previous = {number: signal.signal(number, self._on_signal) for number in signals}
        try:
            yield
        finally:
            self._ended.set()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        if self.told or self.loses_nothing:
            raise KeyboardInterrupt
        self.told = True
        if self.awaits_batch and world_size() == 1:  # several processes stop after one same step
            raise StopWaiting
        logger.warning("finishing this step, then saving (Ctrl-C again to quit at once)")
        threading.Thread(target=self._end_if_stuck, args=(self._step(),), daemon=True).start()

    def _end_if_stuck(self, step: int) -> None:
        """End the run if it is still at this step after much longer than a step takes.

        The main thread may wait for loader workers or processes that will never answer.
        """
        limit = _GRACE + 3 * self.slowest_step
        if self._ended.wait(limit) or self._step() > step:
            return
        logger.error("no step finished in %.0f s: quitting; --resume has the last state", limit)
        if hasattr(signal, "pthread_kill"):  # not on Windows
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if not self._ended.wait(_GRACE):
            os._exit(130)
