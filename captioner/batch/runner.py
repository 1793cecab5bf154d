"""A batch run: items in, results out in the same order, failures as results, nothing lost.

A resumed run computes the interrupted batch and a few before it again, with the same images in
each, and writes only the missing results. So its output equals that of an uninterrupted run to the
last digit, although floating-point sums depend on the shape of a batch and on how many threads
compute it: `Captioner.stream` computes several batches at once, each on its share of the cores, if
there are that many.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from captioner.backends.base import BackendName
from captioner.batch.item import Item, Result, escaped, reason
from captioner.batch.metadata import MetadataFolder
from captioner.batch.sidecars import StripFolder
from captioner.batch.writers import Writer
from captioner.errors import CaptionerError, ImageError
from captioner.image.io import ImageSource
from captioner.outputs import Failure
from captioner.utils.device import Precision

if TYPE_CHECKING:
    from captioner.api import Captioner

logger = logging.getLogger(__name__)

_REPEATED = 3  # whole batches; with the interrupted one, as many as `stream` computes at once


@dataclass
class Summary:
    """Counts of what a run did.

    Attributes:
        captioned: Images with a caption.
        failed: Images without one.
        kept: Results of an earlier run.
        kept_failed: How many of these are failures.
        kinds: Number of failures of each kind.
        uncopied: Number of captioned images without the copy that was asked for, by reason.
        left_out: Number of files in folders that are no images, by ending.
        seconds: Wall-clock time, without loading the model.
        stopped_by: The failure that ended the run, with `fail_fast`.
    """

    captioned: int = 0
    failed: int = 0
    kept: int = 0
    kept_failed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    uncopied: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    stopped_by: str | None = None

    @classmethod
    def of_shards(cls, summaries: Iterable[Summary]) -> Summary:
        """Return the sum over processes that ran at the same time."""
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
        """Whether every image has a caption, and the copy that was asked for."""
        return not (self.failed or self.kept_failed or self.uncopied or self.stopped_by)

    def lines(self) -> list[str]:
        """Return `9,998 captioned, 2 failed, 41 images/s`, then the failures by kind."""
        text = f"{self.captioned:,} captioned, {self.failed:,} failed"
        if self.seconds:
            rate = (self.captioned + self.failed) / self.seconds
            text += f", {rate:,.0f} images/s" if rate >= 10 else f", {rate:.1f} images/s"
        if self.kept:
            text += f"; {self.kept:,} kept from an earlier run"
            text += f" ({self.kept_failed:,} of them failed)" if self.kept_failed else ""
        kinds = [f"  {count:,} × {kind}" for kind, count in self.kinds.most_common(10)]
        copies = [f"  {count:,} × no copy: {kind}" for kind, count in self.uncopied.most_common(10)]
        return [text, *kinds, *copies, *self._others()]

    def _others(self) -> list[str]:
        """Return `3 files are no images: .mov, .txt` if folders had other files."""
        if not self.left_out:
            return []
        count, endings = self.left_out.total(), ", ".join(sorted(self.left_out)[:10])
        what = "1 file is no image" if count == 1 else f"{count:,} files are no images"
        return [f"  {what}: {endings}"]

    def add(self, error: str | None) -> None:
        """Count one result: its error, None if there is a caption."""
        if error is None:
            self.captioned += 1
        else:
            self.failed += 1
            self.kinds[failure_kind(error)] += 1


class Progress:
    """A progress bar on standard error, or in a notebook, with rate and time left.

    Args:
        enabled: Whether to show it.
        count: Returns the number of images, None if it is unknown; called in a thread, because a
            million names take a while to list.
        label: The text before the bar.
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

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, failed: int) -> None:
        """Count one more image; `failed` is the number of failures so far."""
        if failed:
            self._bar.set_postfix(failed=failed, refresh=False)
        self._bar.update()

    def skip(self) -> None:
        """Count one image of an earlier run, which must not count towards the rate."""
        if not self._bar.disable:
            self._bar.initial += 1
            self._bar.n += 1

    def _find_total(self) -> None:
        assert self._count is not None
        with contextlib.suppress(Exception):  # the run itself meets the same error and reports it
            self._bar.total = self._count()


def failure_kind(error: str) -> str:
    """Return an error without what differs between images: numbers, details, brackets."""
    return re.sub(r"\d[\d,.]*", "#", re.split(r" \(|: ", error)[0])


def load_captioner(
    paths: Sequence[str] | None,
    *,
    backend: BackendName = "auto",
    device: str = "auto",
    precision: Precision = "auto",
) -> Captioner:
    """Load a model, or several models that caption together.

    Args:
        paths: Model files; None or none is the shipped model.
        backend: As for `Captioner.from_pretrained`.
        device: As for `Captioner.from_pretrained`.
        precision: As for `Captioner.from_pretrained`.
    """
    from captioner.api import Captioner, Ensemble

    if paths and len(paths) > 1:
        return Ensemble.load(paths, backend=backend, device=device, precision=precision)
    return Captioner.from_pretrained(
        paths[0] if paths else None, backend=backend, device=device, precision=precision
    )


def caption_items(
    captioner: Captioner,
    items: Iterable[Item],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    **search: Any,
) -> Iterator[tuple[Item, Result]]:
    """Caption items in order; see `Captioner.stream` for the options.

    Yields:
        Each item with its caption or failure.

    Raises:
        CaptionerError: The device runs out of memory.
    """
    batch_size = batch_size or captioner.batch_size
    waiting: deque[Item] = deque()  # in the pipeline, in order

    def sources() -> Iterator[ImageSource]:
        for item in items:
            waiting.append(item)
            # A broken item passes through as an image without data, so that they never pile up.
            yield item.source if item.error is None else b""

    stream = captioner.stream(sources(), batch_size=batch_size, workers=workers, **search)
    with contextlib.closing(stream):  # type: ignore[type-var]
        try:
            for result in stream:
                item = waiting.popleft()
                if item.error is not None:
                    yield item, Failure(item.source, item.error)
                elif isinstance(result, Failure):
                    yield item, Failure(item.source, reason(item.source, result.error))
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
    writer: Writer,
    *,
    batch_size: int | None = None,
    strips: StripFolder | None = None,
    copies: MetadataFolder | None = None,
    errors: Writer | None = None,
    fail_fast: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Caption items into a writer, continuing where an earlier run stopped.

    Args:
        captioner: The model.
        items: From `open_sources`.
        writer: Takes the results; closed at the end, whatever happens.
        batch_size: Images encoded and decoded together; None as for `Captioner.stream`.
        strips: Takes attention strips.
        copies: Takes copies with the caption in their metadata.
        errors: Also takes the failures, those of the earlier run included; closed at the end.
        fail_fast: Stop before the first failure, which gets no row: a resumed run tries it again.
        progress: The progress bar.
        **options: As for `caption_items`.

    Raises:
        CaptionerError: The output cannot be written or does not belong to these items.
    """
    batch_size = batch_size or captioner.batch_size
    progress = progress or Progress(enabled=False)
    summary = Summary()
    start = time.monotonic()
    resumed = _Resume(writer, copies, errors, summary, progress, batch_size)
    results = caption_items(captioner, resumed.items(items), batch_size=batch_size, **options)
    complete = False
    try:
        with contextlib.closing(results), warnings.catch_warnings():  # type: ignore[type-var]
            warnings.filterwarnings("ignore", module="PIL")  # about files that get a row anyway
            for item, result in results:
                if resumed.is_repeated():
                    continue
                if strips is not None and not isinstance(result, Failure):
                    try:
                        strips.write(item, result)
                    except ImageError as error:
                        why = reason(item.source, str(error))
                        result = Failure(item.source, f"no attention strip: {why}")
                if copies is not None and not isinstance(result, Failure):
                    try:
                        copies.write(item, result)
                    except ImageError as error:
                        logger.warning("%s: captioned, but no copy: %s", escaped(item.name), error)
                        summary.uncopied[failure_kind(str(error))] += 1
                if isinstance(result, Failure):
                    if fail_fast:
                        summary.stopped_by = f"{escaped(item.name)}: {result.error}"
                        return summary
                    if not writer.shows_errors:
                        logger.error("%s: %s", escaped(item.name), result.error)
                    if errors is not None:
                        errors.write(item, result)
                writer.write(item, result)
                summary.add(result.error if isinstance(result, Failure) else None)
                progress.advance(summary.failed)
        complete = True
    finally:
        summary.seconds = time.monotonic() - start
        try:
            writer.close(complete)
        finally:
            if errors is not None:
                errors.close(complete=True)
    return summary


@dataclass
class _Resume:
    """Skips what an earlier run has done, except the last few batches, which are computed again.

    Images that the earlier run did not have come last, so that the batches of the others, and with
    them the last digits of their scores, stay as they were.
    """

    writer: Writer
    copies: MetadataFolder | None
    errors: Writer | None
    summary: Summary
    progress: Progress
    batch_size: int
    _repeated: int = 0

    def is_repeated(self) -> bool:
        """Return whether the next result of the stream has been written already."""
        self._repeated -= 1
        return self._repeated >= 0

    def items(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items still to caption, after those that are computed again."""
        batches: deque[list[Item]] = deque([[]], maxlen=_REPEATED + 1)  # the last ones done
        skipping = True
        missing: list[Item] = []
        for item in items:
            if item.error is None:
                item = replace(item, error=self.writer.refuse(item))
            previous = self.writer.previous(item)
            if previous is not None:
                is_new = previous.missing and previous.error is None
                if previous.missing:
                    missing.append(item)
                else:
                    self._keep(item, previous.error)
                if skipping and not is_new:
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
        if missing:
            for item, late in zip(missing, self.writer.late(missing), strict=True):
                if late is None:
                    yield item
                else:
                    self._keep(item, late.error)

    def _keep(self, item: Item, error: str | None) -> None:
        """Count a result of an earlier run, and repeat what goes with writing it."""
        self.summary.kept += 1
        self.progress.skip()
        if error is not None:
            self.summary.kept_failed += 1
            if self.errors is not None:
                self.errors.write(item, Failure(item.source, error))
        elif self.copies is not None and not self.copies.has(item):
            self.summary.uncopied["none was made by the earlier run"] += 1
