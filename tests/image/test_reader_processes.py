"""Processes read what this process would read, and end with it, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_files import environment, make_photos

from captioner.errors import CaptionerError, ImageError
from captioner.image.reader_processes import available, portable, read_in_processes, read_squares
from captioner.image.transforms import Preprocess

pytestmark = pytest.mark.skipif(not available(), reason="needs memfd_create")

SHAPES = [Preprocess(size, (0.5,) * 3, (0.5,) * 3) for size in (32, 20)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "photos"
    make_photos(folder, 12)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(("workers", "depth"), [(1, 1), (2, 6), (3, 64)])
def test_squares_and_errors_are_those_of_this_process(files, workers, depth):
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    encoded = files[3].read_bytes()
    large = encoded + bytes(20_000)  # more than the shared memory of an image
    sources = [
        *(files[0], str(files[1]), encoded, large, "missing.png", b"", noise, b"nonsense"),
        *({"bytes": encoded, "path": None}, {"bytes": None, "path": str(files[2])}, 3, encoded),
        *files,
    ]
    assert [portable(source) for source in sources[6:11]] == [False, True, True, True, False]
    found = list(read_in_processes(iter(sources), SHAPES, workers, depth))
    assert [id(source) for source, _ in found] == [id(source) for source in sources]
    failures = 0
    for source, squares in found:
        expected = read_squares(source, SHAPES)
        if isinstance(expected, ImageError):
            failures += 1
            assert (type(squares), str(squares)) == (ImageError, str(expected))
        else:
            assert [square.shape for square in squares] == [(32, 32, 3), (20, 20, 3)]
            for square, other in zip(squares, expected, strict=True):
                np.testing.assert_array_equal(square, other)
    assert failures == 4


def test_sources_are_taken_lazily(files):
    taken = []
    sources = (taken.append(n) or files[n % 12] for n in range(1000))
    found = read_in_processes(sources, SHAPES, workers=2, depth=8)
    for _ in range(3):
        next(found)
    assert len(taken) <= 12
    found.close()


def children(of="self"):
    """Ids of the processes that a process has started and that have not ended."""
    found = Path(f"/proc/{of}/task/{os.getpid() if of == 'self' else of}/children").read_text()
    return [int(child) for child in found.split()]


def test_a_reader_that_is_killed_is_reported_and_the_others_end(files):
    before = children()
    found = read_in_processes(iter(files * 100), SHAPES, workers=2, depth=8)
    next(found)
    started = [child for child in children() if child not in before]
    assert len(started) == 2
    os.kill(started[0], signal.SIGKILL)
    with pytest.raises(CaptionerError, match="has ended"):
        list(found)
    assert children() == before


def test_leaving_early_ends_the_readers(files):
    before = children()
    found = read_in_processes(iter(files * 100), SHAPES, workers=2, depth=8)
    next(found)
    assert len(children()) == len(before) + 2
    found.close()
    assert children() == before


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from captioner.image.reader_processes import read_in_processes
from captioner.image.transforms import Preprocess

shape = Preprocess(32, (0.5,) * 3, (0.5,) * 3)
for number, _ in enumerate(read_in_processes(iter(sys.argv[1:] * 10**6), [shape], 2, 8)):
    if number == 20:
        print("reading", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_readers_end_with_a_script_that_is_stopped(files, how, tmp_path):
    """A script without a guard, in a session of its own so that Ctrl-C reaches all of it."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout.readline() == "reading\n"
    readers = children(process.pid)
    assert len(readers) == 2
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.kill()
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert errors.count("Traceback") == (how == signal.SIGINT)  # the script's own
    deadline = time.monotonic() + 60
    while any(running(reader) for reader in readers):
        assert time.monotonic() < deadline, "a reader goes on"
        time.sleep(0.05)


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
