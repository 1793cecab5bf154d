"""Streams of any length: in batches, and with work done in threads a few items ahead."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield items in lists of `size`, the last one maybe shorter; they are taken lazily."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def map_ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    depth: int,
    initializer: Callable[[], object] | None = None,
) -> Iterator[Result]:
    """`map(work, items)` in threads: lazy, in order, at most `depth` results ahead.

    Closing the iterator early, or an error in `work`, cancels what has not begun.

    Args:
        work: Called once per item, in any of the threads; its exception is raised here.
        items: Taken one by one, in the calling thread.
        workers: Number of threads.
        depth: How many items are begun or done before the first result is asked for.
        initializer: Called first in each thread.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, "captioner", initializer) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
