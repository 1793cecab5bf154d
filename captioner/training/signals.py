"""Ctrl-C, and the SIGTERM of torchrun and of batch systems: finish the step, save, stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def on_signals(handler: Handler) -> Iterator[None]:
    """Let a handler answer SIGINT and SIGTERM while the block runs.

    Python takes signals in the main thread only; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
