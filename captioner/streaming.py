"""From images to sentences, batch after batch: what `Captioner` does with its backends.

While one batch is searched, others are read and encoded: by threads and lanes on a CPU; on a GPU
by processes that read, and by the device itself.

Shapes: B images, S side of the encoder's square.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from captioner.backends.base import Backend, Stepper
from captioner.decoding.beam_search import beam_search
from captioner.decoding.hypothesis import EnsembleStepper, Hypothesis
from captioner.decoding.options import DecodingOptions
from captioner.decoding.sampling import image_key, sample
from captioner.errors import CaptionerError
from captioner.image.io import ImageSource
from captioner.image.reader_processes import (
    Squares,
    available,
    portable,
    read_in_processes,
    read_squares,
)
from captioner.utils.device import available_cores
from captioner.utils.parallel import map_ahead

_MOST_THREADS = 8  # that read images; more do not read faster

Opened: TypeAlias = "tuple[ImageSource, Squares]"
"""A source and, for each model, the square that it sees; or why it cannot be opened."""

Sentences: TypeAlias = "list[list[Hypothesis]]"
"""What a search found for each image, best first."""


class Search(NamedTuple):
    """A batch that is encoded, or will be soon.

    Attributes:
        finish: Searches it and returns the sentences of each image.
        queued: Whether the device goes on by itself, so that the next batch may be encoded first.
    """

    finish: Callable[[], Sentences]
    queued: bool


def open_all(
    backends: Sequence[Backend],
    sources: Iterable[ImageSource],
    batch_size: int,
    workers: int | None,
) -> Generator[Opened]:
    """Open images, in order and about two batches ahead.

    Threads do it; for a GPU, and where there are more images than two batches, processes.

    Args:
        backends: Of the models that see the images.
        sources: Taken lazily.
        batch_size: Images of a batch.
        workers: Threads or processes; None takes one per CPU core, at most 8 threads.
    """
    shapes = [backend.header.preprocess for backend in backends]
    depth = 2 * batch_size
    if workers != 1 and available() and all(each.reads_in_processes for each in backends):
        sources = iter(sources)
        first = list(itertools.islice(sources, depth + 1))
        many = len(first) > depth and all(map(portable, first))
        sources = itertools.chain(first, sources)
        if many:
            yield from read_in_processes(sources, shapes, workers or available_cores(), depth)
            return
    workers = workers or min(_MOST_THREADS, os.cpu_count() or 1)
    yield from map_ahead(
        lambda source: (source, read_squares(source, shapes)), sources, workers=workers, depth=depth
    )


@contextlib.contextmanager
def inference(backends: Sequence[Backend]) -> Iterator[None]:
    """Enter what each backend needs around `encode` and a search."""
    with contextlib.ExitStack() as stack:
        for backend in backends:
            stack.enter_context(backend.inference())
        yield


def encode(backends: Sequence[Backend], pixels: Sequence[np.ndarray]) -> list[Any]:
    """Encode a batch, (B, S, S, 3) uint8 per model."""
    return [backend.encode(each) for backend, each in zip(backends, pixels, strict=True)]


def make_stepper(backends: Sequence[Backend], memories: Sequence[Any]) -> Stepper:
    """Start to decode what `encode` returned; several models decode together."""
    steppers = [backend.stepper(memory) for backend, memory in zip(backends, memories, strict=True)]
    return steppers[0] if len(steppers) == 1 else EnsembleStepper(steppers)


def begin_search(
    backends: Sequence[Backend], pixels: Sequence[np.ndarray], options: DecodingOptions
) -> Search:
    """Encode a batch, (B, S, S, 3) uint8 per model, and prepare its search.

    A device that computes by itself may not have begun yet when this returns.
    """
    keys = [image_key(square.tobytes()) for square in pixels[0]] if options.sample else []
    memories = encode(backends, pixels)
    on_device = backends[0].search(memories[0], options, keys) if len(backends) == 1 else None

    def finish() -> Sentences:
        if on_device is not None:
            found = on_device()
        else:
            with inference(backends):
                stepper = make_stepper(backends, memories)
                if options.sample:
                    found = sample(stepper, options, keys)
                else:
                    found = beam_search(stepper, options)
        if options.mbr:
            from captioner.decoding.mbr import choose

            found = [choose(sentences, options) for sentences in found]
        return found

    return Search(finish, on_device is not None)


def search_all(
    backends: Sequence[Backend], batches: Iterator[list[Opened]], options: DecodingOptions
) -> Iterator[tuple[list[Opened], Sentences]]:
    """Search batch after batch; yield each with the sentences of the images that opened.

    Several batches may be in work at once: in as many lanes as the backends have, or one that is
    searched beside one that is encoded.
    """

    def begin(batch: list[Opened]) -> Search:
        squares = [image for _, image in batch if not isinstance(image, CaptionerError)]
        if not squares:
            return Search(list, queued=True)
        pixels = [np.stack(each) for each in zip(*squares, strict=True)]  # one per model
        return begin_search(backends, pixels, options)

    def enter_lane() -> None:
        # The models of an ensemble share the threads of their framework: divide them once.
        for backend in {type(backend): backend for backend in backends}.values():
            backend.enter_lane(lanes)

    first = list(itertools.islice(batches, min(backend.lanes for backend in backends)))
    lanes = len(first)
    batches = itertools.chain(first, batches)
    if lanes > 1:
        yield from map_ahead(
            lambda batch: (batch, begin(batch).finish()),
            batches,
            workers=lanes,
            depth=2 * lanes,
            initializer=enter_lane,
        )
        return
    begun: deque[tuple[list[Opened], Search]] = deque()
    for batch in batches:
        last = begin(batch)
        begun.append((batch, last))
        while len(begun) > last.queued:
            done, search = begun.popleft()
            yield done, search.finish()
    for done, search in begun:
        yield done, search.finish()
