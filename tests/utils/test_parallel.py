import itertools
import threading
import time

import numpy as np
import pytest
import torch
from helpers.tiny import MODEL
from PIL import Image

from captioner.api import Captioner, Failure
from captioner.checkpoint import Header
from captioner.image.transforms import Preprocess
from captioner.tokenizer import Vocabulary
from captioner.utils.parallel import batched, map_ahead


def test_order_is_kept_whatever_takes_longest():
    def work(n):
        time.sleep(0.002 * (n % 3))
        return n * n

    results = list(map_ahead(work, range(20), workers=4, depth=5))
    assert results == [n * n for n in range(20)]
    assert list(map_ahead(work, [], workers=4, depth=5)) == []


def test_items_are_taken_no_further_ahead_than_depth():
    taken = []

    def endless():
        for n in itertools.count():
            taken.append(n)
            yield n

    results = map_ahead(lambda n: n, endless(), workers=2, depth=3)
    assert taken == []  # nothing happens before the first result is asked for
    for n in range(10):
        assert next(results) == n
        assert len(taken) <= n + 1 + 3
    results.close()
    assert len(taken) <= 13


def test_an_error_comes_in_its_place_and_cancels_what_has_not_begun():
    done = []

    def work(n):
        if n == 2:
            raise ValueError("two")
        done.append(n)
        return n

    results = map_ahead(work, range(100), workers=1, depth=10)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert len(done) < 20


def test_initializer_runs_in_every_thread():
    seen = threading.local()

    def initialize():
        seen.value = 7

    assert set(
        map_ahead(
            lambda _: seen.value,
            range(9),
            workers=3,
            depth=9,
            initializer=initialize,
        )
    ) == {7}


@pytest.fixture
def captioner(tiny_model):
    vocabulary = Vocabulary((*Vocabulary.SPECIALS, *(f"word{n}" for n in range(26))))
    header = Header(
        config=MODEL, vocabulary=vocabulary, preprocess=Preprocess(64, (0.5,) * 3, (0.5,) * 3)
    )
    return Captioner(tiny_model, header, device="cpu", precision="fp32")


@pytest.fixture
def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 60, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


@pytest.fixture
def three_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("three_threads")
def test_batches_side_by_side_say_what_one_batch_says(captioner, pictures):
    sources = [*pictures[:3], b"no picture", *pictures[3:]]
    alone = captioner(pictures, batch_size=100, max_length=5)
    for batch_size in (1, 3):
        results = list(captioner.stream(sources, batch_size=batch_size, max_length=5))
        assert isinstance(results.pop(3), Failure)
        assert [result.text for result in results] == [caption.text for caption in alone]
        for result, caption in zip(results, alone, strict=True):
            np.testing.assert_allclose(result.attention, caption.attention, atol=1e-5)
        assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_threads_are_given_back_when_a_stream_is_left_early(captioner, pictures):
    stream = captioner.stream(pictures, batch_size=1, max_length=3)
    next(stream)
    stream.close()
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [3]
    assert torch.get_num_threads() == 3


def test_batches_are_taken_one_by_one():
    numbers = iter(range(7))
    found = batched(numbers, 3)
    assert next(found) == [0, 1, 2]
    assert next(numbers) == 3
    assert list(found) == [[4, 5, 6]]
