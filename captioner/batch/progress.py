"""The progress bar of a run, whose total is counted while the run is under way."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm


class Progress:
    """A bar on standard error with rate and time left.

    Args:
        enabled: Whether to show it at all.
        count: Finds how many photos there are, in a thread of its own: a million names take a
            while to list. None, as its result, means that nobody knows.
        label: What the bar is about.
    """

    def __init__(
        self,
        enabled: bool,
        count: Callable[[], int | None] | None = None,
        label: str | None = None,
    ):
        self._bar = tqdm(
            desc=label,
            unit=" images",
            disable=not enabled,
            file=sys.stderr,
            smoothing=0.1,
            dynamic_ncols=True,
        )
        self._count = count
        if enabled and count is not None:
            threading.Thread(target=self._find_total, daemon=True, name="count").start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self, failed: int) -> None:
        """One more photo is done; so many failed by now."""
        if failed:
            self._bar.set_postfix(failed=failed, refresh=False)
        self._bar.update()

    def skip(self) -> None:
        """One more photo was done by an earlier run: it must not count for the rate."""
        if not self._bar.disable:
            self._bar.initial += 1
            self._bar.n += 1

    def _find_total(self) -> None:
        assert self._count is not None
        with contextlib.suppress(Exception):  # the run itself will meet it and say so
            self._bar.total = self._count()
