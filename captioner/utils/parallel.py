"""Work in threads over a stream of any length, in order, a few items ahead of the reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    depth: int,
    initializer: Callable[..., Any] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """`map(work, items)` in threads: lazy, in order, at most `depth` results ahead.

    Closing the iterator early, or an error in `work`, cancels what has not begun.

    Args:
        work: Called once per item, in any of the threads; its exception is raised here.
        items: Taken one by one, in the calling thread.
        workers: Number of threads.
        depth: How many items are begun or done before the first result is asked for.
        initializer: Called first in each thread.
        initargs: Its arguments.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, "captioner", initializer, initargs) as pool:
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
