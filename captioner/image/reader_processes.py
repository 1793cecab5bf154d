"""Read images in processes of their own, for a GPU that computes faster than threads can read.

Decoders let go of the interpreter lock, but what is around them does not: threads of one process
stop gaining at about two cores (`benchmarks/reading.py`). Here each worker is a Python process with
a piece of memory that it shares with this one. It gets a few images at a time, writes their squares
there, and answers with the errors.

A worker is not forked and does not import the caller's `__main__`, so scripts need no guard. It
ends when its connection does, however this process ends. The memory has no name and takes no room
in `/dev/shm`.

Shapes: S side of an encoder's square.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from captioner.errors import CaptionerError, ImageError
from captioner.image.io import ImageSource, open_image
from captioner.image.transforms import Preprocess
from captioner.utils.parallel import batched

Squares: TypeAlias = "list[np.ndarray] | CaptionerError"
"""The square that each model sees of an image, (S, S, 3) uint8; or why it cannot be opened."""

_AHEAD = 2  # chunks that a worker has: one that it reads, and one that waits
_PATIENCE = 5.0  # seconds that a worker may take to end
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from captioner.image.reader_processes import serve; serve(*map(int, sys.argv[2:]))"
)


def available() -> bool:
    """Whether this system has what is needed: Linux has."""
    return hasattr(os, "memfd_create") and bool(sys.executable)


def portable(source: ImageSource) -> bool:
    """Whether another process can be told about a source: a path, or encoded bytes."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path") or b""
    return isinstance(source, (str, bytes, os.PathLike))


def read_squares(source: ImageSource, shapes: Sequence[Preprocess]) -> Squares:
    """Open an image once and bring it to the square of each model."""
    try:
        image = open_image(source, shrink_to=max(shape.size for shape in shapes))
    except ImageError as error:
        return error
    return [shape.to_uint8(image) for shape in shapes]


def read_in_processes(
    sources: Iterable[ImageSource], shapes: Sequence[Preprocess], workers: int, depth: int
) -> Iterator[tuple[ImageSource, Squares]]:
    """Yield each source with its squares, in order, while processes read the next ones.

    Args:
        sources: Taken lazily; those that are not `portable` are read in this process.
        shapes: Of the models.
        workers: Number of processes.
        depth: About how many images are read or being read ahead.

    Raises:
        CaptionerError: A worker was killed.
    """
    size = max(1, depth // (_AHEAD * workers))  # images of a chunk
    with contextlib.ExitStack() as stack:
        pool = [stack.enter_context(_Worker(shapes, size)) for _ in range(workers)]
        for worker in pool:  # all at once, before one is waited for
            stack.callback(worker.leave)
        begun: deque[tuple[_Worker, list[ImageSource]]] = deque()
        for number, chunk in enumerate(batched(sources, size)):
            worker = pool[number % workers]
            if len(begun) == _AHEAD * workers:
                yield from _finish(*begun.popleft(), shapes)
            worker.begin(chunk)
            begun.append((worker, chunk))
        while begun:
            yield from _finish(*begun.popleft(), shapes)


def _finish(
    worker: _Worker, chunk: list[ImageSource], shapes: Sequence[Preprocess]
) -> Iterator[tuple[ImageSource, Squares]]:
    found = iter(worker.finish())
    for source in chunk:
        yield source, next(found) if portable(source) else read_squares(source, shapes)


class _Worker:
    """A process that reads images; a context manager that ends it.

    Args:
        shapes: Of the models.
        size: Most images of a chunk.
    """

    def __init__(self, shapes: Sequence[Preprocess], size: int):
        import subprocess  # only who starts processes needs to import these
        from multiprocessing.connection import Pipe

        self._layout = _Layout(shapes, size)
        self._chunks: deque[int] = deque()  # those begun: how many images are in each
        self._begun = self._finished = 0
        memory = os.memfd_create("captioner")
        try:
            os.ftruncate(memory, self._layout.bytes)
            self._memory = mmap.mmap(memory, self._layout.bytes)
            self._connection, theirs = Pipe()
            with theirs:
                handles = (theirs.fileno(), memory)
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _CODE, json.dumps(sys.path), *map(str, handles)],
                    pass_fds=handles,
                    stdin=subprocess.DEVNULL,  # it may be a list of images
                )
        except OSError as error:
            raise CaptionerError(
                f"a process that reads images cannot be started ({error.strerror}): use fewer "
                "workers; one reads in this process"
            ) from None
        finally:
            os.close(memory)
        self._send((list(shapes), size))

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        from subprocess import TimeoutExpired

        self.leave()
        try:
            self._process.wait(_PATIENCE)
        except TimeoutExpired:  # it reads from a disk that does not answer
            self._process.kill()
            self._process.wait()
        self._memory.close()

    def leave(self) -> None:
        """Tell the process to end."""
        self._connection.close()

    def begin(self, chunk: Sequence[ImageSource]) -> None:
        """Let it read the images that it can be told about."""
        number = self._begun % _AHEAD
        told: list[ImageSource | int] = [source for source in chunk if portable(source)]
        for place, source in enumerate(told):
            # Encoded images lie where their squares will: a connection takes little at a time.
            if isinstance(source, bytes) and len(source) <= self._layout.image_bytes:
                offset = self._layout.offset(number, place)
                self._memory[offset : offset + len(source)] = source
                told[place] = len(source)
        self._chunks.append(len(told))
        self._send((number, told))
        self._begun += 1

    def finish(self) -> list[Squares]:
        """Wait for the chunk that was begun first, and copy its squares."""
        try:
            errors = self._connection.recv()
        except (EOFError, OSError):
            raise self._killed() from None
        count, chunk = self._chunks.popleft(), self._finished % _AHEAD
        self._finished += 1
        return [
            [square.copy() for square in self._layout.squares(self._memory, chunk, place)]
            if errors[place] is None
            else ImageError(errors[place])
            for place in range(count)
        ]

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._killed() from None

    def _killed(self) -> CaptionerError:
        status = self._process.wait()
        return CaptionerError(
            f"a process that reads images has ended (status {status}): out of memory? Use fewer "
            "workers; one reads in this process"
        )


class _Layout:
    """Where the squares of a worker's chunks lie in its memory.

    Args:
        shapes: Of the models.
        size: Most images of a chunk.
    """

    def __init__(self, shapes: Sequence[Preprocess], size: int):
        self._shapes = [(shape.size, shape.size, 3) for shape in shapes]
        self._size = size
        self.image_bytes = sum(map(math.prod, self._shapes))
        self.bytes = _AHEAD * size * self.image_bytes

    def offset(self, chunk: int, place: int) -> int:
        """Return where an image of one of the chunks begins."""
        return (chunk * self._size + place) * self.image_bytes

    def squares(self, memory: mmap.mmap, chunk: int, place: int) -> list[np.ndarray]:
        """Return views of the squares of one image."""
        offset = self.offset(chunk, place)
        views = []
        for shape in self._shapes:
            views.append(np.ndarray(shape, np.uint8, memory, offset))
            offset += math.prod(shape)
        return views


def serve(connection: int, memory: int) -> None:
    """Read images until the connection ends: what a worker runs.

    Args:
        connection: File descriptor, from which only the process that started this one is heard.
        memory: File descriptor of the shared memory.
    """
    from multiprocessing.connection import Connection

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process
    warnings.simplefilter("ignore")  # about files that are captioned, or refused, anyway
    with contextlib.suppress(EOFError, OSError), Connection(connection) as caller:
        shapes, size = caller.recv()
        layout = _Layout(shapes, size)
        shared = mmap.mmap(memory, layout.bytes)
        while True:
            chunk, sources = caller.recv()
            errors: list[str | None] = []
            for place, source in enumerate(sources):
                if isinstance(source, int):
                    offset = layout.offset(chunk, place)
                    source = shared[offset : offset + source]
                squares = read_squares(source, shapes)
                errors.append(str(squares) if isinstance(squares, CaptionerError) else None)
                if isinstance(squares, list):
                    for view, square in zip(
                        layout.squares(shared, chunk, place), squares, strict=True
                    ):
                        view[...] = square
            caller.send(errors)
