"""A batch run: items in, results in the same order out, failures as results, nothing lost.

Resuming repeats the batch that was interrupted and a few before it, with the same photos in each,
and writes only the results that are missing. So a resumed file equals that of an uninterrupted run
to the last digit, though floating-point sums depend on the batch's shape and on how many threads
share the work: `Captioner.stream` computes several batches at once if it has several.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from captioner.batch.item import Item, Result, escaped, reason
from captioner.batch.journal import RowFile
from captioner.batch.metadata import MetadataFolder
from captioner.batch.progress import Progress
from captioner.batch.strips import StripFolder
from captioner.batch.writers import Sink
from captioner.errors import CaptionerError, ImageError
from captioner.image.io import ImageSource

if TYPE_CHECKING:
    from captioner.api import Captioner

logger = logging.getLogger(__name__)

_REPEATED = 3  # whole batches; with the interrupted one, as many as `stream` has in work at once


@dataclass
class Summary:
    """What a run did.

    Attributes:
        captioned: Photos with a caption.
        failed: Photos without.
        kept: Results of an earlier run.
        kept_failed: How many of these are failures.
        kinds: Number of failures of each kind.
        uncopied: Number of captioned photos without the copy that was asked for, by reason.
        seconds: Wall-clock time, without loading the model.
        stopped_by: With ``fail_fast``: the failure that ended the run.
    """

    captioned: int = 0
    failed: int = 0
    kept: int = 0
    kept_failed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    uncopied: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    stopped_by: str | None = None

    @classmethod
    def of_shards(cls, summaries: Iterable[Summary]) -> Summary:
        """What processes that ran at the same time did together."""
        total = cls()
        for summary in summaries:
            total.captioned += summary.captioned
            total.failed += summary.failed
            total.kept += summary.kept
            total.kept_failed += summary.kept_failed
            total.kinds.update(summary.kinds)
            total.uncopied.update(summary.uncopied)
            total.seconds = max(total.seconds, summary.seconds)
        return total

    @property
    def ok(self) -> bool:
        """Whether every photo has a caption, and the copy that was asked for."""
        return not (self.failed or self.kept_failed or self.uncopied or self.stopped_by)

    def lines(self) -> list[str]:
        """For people: ``9,998 captioned, 2 failed, 41 images/s``, then failures by kind."""
        text = f"{self.captioned:,} captioned, {self.failed:,} failed"
        if self.seconds:
            rate = (self.captioned + self.failed) / self.seconds
            text += f", {rate:,.0f} images/s" if rate >= 10 else f", {rate:.1f} images/s"
        if self.kept:
            text += f"; {self.kept:,} kept from an earlier run"
            text += f" ({self.kept_failed:,} of them failed)" if self.kept_failed else ""
        kinds = [f"  {count:,} × {kind}" for kind, count in self.kinds.most_common(10)]
        copies = [f"  {count:,} × no copy: {kind}" for kind, count in self.uncopied.most_common(10)]
        return [text, *kinds, *copies]

    def add(self, result: Result) -> None:
        """Count one result."""
        if isinstance(result, str):
            self.failed += 1
            self.kinds[failure_kind(result)] += 1
        else:
            self.captioned += 1


def failure_kind(error: str) -> str:
    """An error without what differs from photo to photo: numbers, details, brackets."""
    return re.sub(r"\d[\d,.]*", "#", re.split(r" \(|: ", error)[0])


def caption_items(
    captioner: Captioner,
    items: Iterable[Item],
    *,
    batch_size: int = 32,
    workers: int | None = None,
    **search: Any,
) -> Iterator[tuple[Item, Result]]:
    """Caption items in order; see `Captioner.stream` for the options.

    Yields:
        Each item with its caption or, as a string, the reason why it has none.

    Raises:
        CaptionerError: The device has not enough memory.
    """
    from captioner.api import Failure

    waiting: deque[Item] = deque()  # in the pipeline, in order

    def photos() -> Iterator[ImageSource]:
        for item in items:
            waiting.append(item)
            # A broken item travels as a picture without data: a million of them do not pile up.
            yield item.source if item.error is None else b""

    stream = captioner.stream(photos(), batch_size=batch_size, workers=workers, **search)
    with contextlib.closing(stream):  # type: ignore[type-var]
        try:
            for result in stream:
                item = waiting.popleft()
                if item.error is not None:
                    yield item, item.error
                elif isinstance(result, Failure):
                    yield item, reason(item.source, result.error)
                else:
                    yield item, result
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise CaptionerError(
                f"the device ran out of memory: lower --batch-size (now {batch_size})"
            ) from None


def run(
    captioner: Captioner,
    items: Iterable[Item],
    sink: Sink,
    *,
    batch_size: int = 32,
    strips: StripFolder | None = None,
    copies: MetadataFolder | None = None,
    errors: RowFile | None = None,
    fail_fast: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Caption items into a sink, going on where an earlier run of the sink stopped.

    Args:
        captioner: The model.
        items: From `open_sources`.
        sink: Closed at the end, whatever happens.
        batch_size: Photos encoded and decoded together.
        strips: Where attention strips go.
        copies: Where copies with the caption in their metadata go.
        errors: Also takes the failures, those of the earlier run included; closed at the end.
        fail_fast: Stop before the first failure, which gets no row: a resumed run tries it again.
        progress: The bar.
        **options: As for `caption_items`.

    Raises:
        CaptionerError: The output cannot be written or does not belong to these items.
    """
    progress = progress or Progress(enabled=False)
    summary = Summary()
    start = time.monotonic()
    resumed = _Resume(sink, strips, copies, errors, summary, progress, batch_size)
    results = caption_items(captioner, resumed.items(items), batch_size=batch_size, **options)
    complete = False
    try:
        with contextlib.closing(results), warnings.catch_warnings():  # type: ignore[type-var]
            warnings.filterwarnings("ignore", module="PIL")  # remarks on files that are rows anyway
            for item, result in results:
                if resumed.is_repeated():
                    continue
                if strips is not None and not isinstance(result, str):
                    try:
                        strips.write(item, result)
                    except ImageError as error:
                        result = f"no attention strip: {reason(item.source, str(error))}"
                if copies is not None and not isinstance(result, str):
                    try:
                        copies.write(item, result)
                    except ImageError as error:
                        logger.warning("%s: captioned, but no copy: %s", escaped(item.name), error)
                        summary.uncopied[failure_kind(str(error))] += 1
                if isinstance(result, str) and fail_fast:
                    summary.stopped_by = f"{escaped(item.name)}: {result}"
                    return summary
                deliver(item, result, sink, errors, summary)
                progress.advance(summary.failed)
        complete = True
    finally:
        summary.seconds = time.monotonic() - start
        try:
            sink.close(complete)
        finally:
            if errors is not None:
                errors.close()
    return summary


def deliver(
    item: Item, result: Result, sink: Sink, errors: RowFile | None, summary: Summary
) -> None:
    """Bring one result to all who want it.

    Args:
        item: The photo.
        result: Its caption or failure.
        sink: Takes it; failures that it does not show are logged.
        errors: Takes failures.
        summary: Counts it.

    Raises:
        CaptionerError: It cannot be written.
    """
    if isinstance(result, str):
        if not sink.shows_errors:
            logger.error("%s: %s", escaped(item.name), result)
        if errors is not None:
            errors.write(errors.form.encode(item, result) or "")
    sink.write(item, result)
    summary.add(result)


class _Resume:
    """Skips what an earlier run has done, but for the last few batches, which are repeated."""

    def __init__(
        self,
        sink: Sink,
        strips: StripFolder | None,
        copies: MetadataFolder | None,
        errors: RowFile | None,
        summary: Summary,
        progress: Progress,
        batch_size: int,
    ):
        self.sink = sink
        self.strips = strips
        self.copies = copies
        self.errors = errors
        self.summary = summary
        self.progress = progress
        self.batch_size = batch_size
        self._repeated = 0

    def is_repeated(self) -> bool:
        """Whether the next result of the stream is in the sink already."""
        self._repeated -= 1
        return self._repeated >= 0

    def items(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items still to caption, after the repeated ones."""
        batches: deque[list[Item]] = deque([[]], maxlen=_REPEATED + 1)  # the last that are done
        skipping = True
        for item in items:
            if item.error is None:
                item = replace(item, error=self.sink.refuse(item))
            kept = self.sink.kept(item)
            if kept is not None:
                self._note(item, kept.error)
                if skipping:
                    batches[-1].append(item)
                    if len(batches[-1]) == self.batch_size:
                        batches.append([])
                continue
            if skipping:
                skipping = False
                self._repeated = sum(map(len, batches))
                yield from itertools.chain(*batches)
                batches.clear()
            yield item

    def _note(self, item: Item, error: str | None) -> None:
        """Count a kept result, and do what its writing would have done beside the sink."""
        self.summary.kept += 1
        self.progress.skip()
        if error is None:
            if self.strips is not None:
                self.strips.claim(item)
            if self.copies is not None and not self.copies.has(item):
                self.summary.uncopied["none was made by the earlier run"] += 1
        else:
            self.summary.kept_failed += 1
            if self.errors is not None:
                self.errors.write(self.errors.form.encode(item, error) or "")
