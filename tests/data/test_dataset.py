"""Sampler, dataset, collate: what a training sees depends on (seed, epoch, photo) alone."""

import os
import pickle
import time
from itertools import chain

import numpy as np
import pytest
import torch
from helpers.features import read_one
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.data import dataset as dataset_module
from captioner.data.annotations import Example
from captioner.data.dataset import CaptionDataset, collate, make_loader, mirror_words
from captioner.data.features import build_features
from captioner.data.sampler import LengthAwareSampler
from captioner.errors import DataError
from captioner.image.transforms import Preprocess
from captioner.tokenizer import Vocabulary, tokenize

PREPROCESS = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SENTENCES = [
    "A red dog runs left.",
    "The dog is on the left of a cat",
    "A dog",
    "Two dogs and a right-handed man play in the snow on the right",
    "Snow.",
    "A man",
    "A cat and a dog",
]


def indices(sampler):
    return [[index for _, index in batch] for batch in sampler]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Photos whose left half is dark and right half bright, with 1 to 7 captions each."""
    folder = tmp_path_factory.mktemp("photos")
    result = []
    for number in range(11):
        pixels = np.random.default_rng(number).integers(0, 100, (20, 30, 3), dtype=np.uint8)
        pixels[:, 15:] += 150
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        captions = tuple(SENTENCES[(number + i) % 7] for i in range(1 + number % 7))
        result.append(Example(str(path), captions, "train", number))
    return result


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.build((tokenize(sentence) for sentence in SENTENCES), min_count=1)


@pytest.fixture(scope="module")
def cache(examples, tmp_path_factory):
    return build_features(
        tmp_path_factory.mktemp("cache"),
        [example.image for example in examples],
        PREPROCESS,
        lambda images: [torch.nn.functional.avg_pool2d(images, s) for s in (4, 8)],
        workers=0,
        fingerprint="pool",
    )


def epochs(dataset, *, workers=0, count=2, batch_size=4):
    sampler = LengthAwareSampler(dataset.lengths, batch_size, seed=3)
    loader = make_loader(dataset, sampler, workers=workers)
    batches = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def same(a, b):
    tensors = [
        [batch.captions, batch.lengths, batch.indices, *(batch.features or [batch.images])]
        for batch in (a, b)
    ]
    return all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))


# The sampler


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 700),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_an_epoch_is_a_permutation_in_even_batches(count, batch_size, seed, epoch):
    lengths = np.random.default_rng(count).integers(3, 20, count)
    sampler = LengthAwareSampler(lengths, batch_size, seed=seed)
    sampler.set_epoch(epoch)
    batches = indices(sampler)
    assert sorted(chain.from_iterable(batches)) == list(range(count))
    assert len(batches) == len(sampler)
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert all(e == epoch for batch in sampler for e, _ in batch)


def test_order_depends_on_seed_and_epoch_only():
    lengths = np.arange(200) % 17

    def order(seed, epoch):
        sampler = LengthAwareSampler(lengths, 8, seed=seed)
        sampler.set_epoch(epoch)
        return indices(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 300), batch_size=st.integers(1, 8), part=st.floats(0, 1))
def test_resuming_gives_exactly_the_rest(count, batch_size, part):
    lengths = np.random.default_rng(count).integers(3, 20, count)
    sampler = LengthAwareSampler(lengths, batch_size, seed=1)
    sampler.set_epoch(2)
    whole = indices(sampler)
    consumed = round(part * len(whole))
    iterator = iter(sampler)
    for _ in range(consumed):
        next(iterator)
        sampler.advance()
    list(iterator)  # prefetched, never consumed
    state = pickle.loads(pickle.dumps(sampler.state_dict()))

    resumed = LengthAwareSampler(lengths, batch_size, seed=1)
    resumed.load_state_dict(state)
    resumed.set_epoch(resumed.epoch)  # as the training loop does
    assert resumed.epoch == 2
    assert indices(resumed) == whole[consumed:]
    resumed.set_epoch(3)
    sampler.set_epoch(3)
    assert indices(resumed) == indices(sampler)
    assert len(indices(resumed)) == len(whole)


def test_resuming_other_data_is_refused():
    state = LengthAwareSampler([3] * 40, 4).state_dict()
    others = [
        LengthAwareSampler([3] * 41, 4),
        LengthAwareSampler([3] * 40, 5),
        LengthAwareSampler([3] * 40, 4, seed=1),
        LengthAwareSampler([3] * 40, 4, world_size=2),
    ]
    for other in others:
        with pytest.raises(DataError, match="cannot resume"):
            other.load_state_dict(state)
    LengthAwareSampler([3] * 40, 2, world_size=2, rank=1).load_state_dict(state)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(4, 400),
    batch_size=st.integers(2, 6),
    world_size=st.integers(1, 4),
    consumed=st.integers(0, 3),
)
def test_ranks_share_the_batches_of_a_single_process(count, batch_size, world_size, consumed):
    lengths = np.random.default_rng(count).integers(3, 20, count)
    single = LengthAwareSampler(lengths, batch_size * world_size, seed=4)
    ranks = [
        LengthAwareSampler(lengths, batch_size, seed=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in [single, *ranks]:
        sampler.advance(min(consumed, len(single)))
    steps = list(zip(*(indices(rank) for rank in ranks), strict=True))  # strict: equal counts
    for step, batch in zip(steps, indices(single), strict=True):
        assert sorted(chain.from_iterable(step)) == sorted(batch)
        sizes = [len(part) for part in step]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


def test_too_few_photos_for_the_processes():
    with pytest.raises(DataError, match="at least one photo"):
        LengthAwareSampler([3, 3], 4, world_size=3)
    with pytest.raises(DataError, match="at least one photo"):
        LengthAwareSampler([3] * 10, 1, world_size=4)
    with pytest.raises(DataError, match="at least one photo"):
        LengthAwareSampler([], 4)


def test_less_padding_than_a_random_order_and_still_random():
    lengths = np.random.default_rng(0).geometric(0.1, 3000)

    def padding(batches):
        return sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in batches)

    sampler = LengthAwareSampler(lengths, 16)
    batches = indices(sampler)
    shuffled = np.array_split(np.random.default_rng(1).permutation(3000), len(batches))
    assert padding(batches) < 0.25 * padding(shuffled)
    means = np.array([lengths[batch].mean() for batch in batches])
    # No short-to-long curriculum: the length of a batch says nothing about the next one.
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3
    # The neighbours of a photo change from epoch to epoch.
    sampler.set_epoch(1)
    pairs = [
        {(a, b) for batch in run for a in batch for b in batch}
        for run in (batches, indices(sampler))
    ]
    assert len(pairs[0] & pairs[1]) < 0.5 * len(pairs[0])


# Items and batches


def test_batch_layout(examples, vocabulary):
    dataset = CaptionDataset(examples, vocabulary, captions_per_image=4, preprocess=PREPROCESS)
    batch = collate([dataset[(0, index)] for index in (0, 2, 6)])  # 1, 3 and 7 captions
    assert batch.captions.shape[:2] == (3, 4) == batch.lengths.shape
    assert batch.captions.dtype == batch.lengths.dtype == torch.int64
    assert batch.images.shape == (3, 16, 16, 3)
    assert batch.images.dtype == torch.uint8
    assert PREPROCESS.normalize(batch.images).shape == (3, 3, 16, 16)
    counts = dict(zip(batch.indices.tolist(), (batch.lengths > 0).sum(1).tolist(), strict=True))
    assert counts == {0: 1, 2: 3, 6: 4}
    longest = batch.lengths.amax(1).tolist()
    assert longest == sorted(longest, reverse=True)
    assert batch.captions.shape[2] == batch.lengths.max() + 1
    for row, example in enumerate(batch.indices.tolist()):
        lengths = batch.lengths[row].tolist()
        assert lengths == sorted(lengths, reverse=True)
        allowed = [tokenize(caption) for caption in examples[example].captions]
        for caption, length in zip(batch.captions[row].tolist(), lengths, strict=True):
            assert set(caption[length + 1 :]) <= {Vocabulary.PAD}
            if length:
                assert caption[0] == Vocabulary.START
                assert caption[length] == Vocabulary.END
                words = vocabulary.decode(caption)
                assert len(words) == length - 1
                allowed.remove(words)  # each caption at most once
            else:
                assert set(caption) == {Vocabulary.PAD}


def test_captions_are_drawn_anew_in_each_epoch(examples, vocabulary):
    dataset = CaptionDataset(examples, vocabulary, captions_per_image=2, preprocess=PREPROCESS)
    seen = {
        tuple(vocabulary.decode(words.tolist()))
        for epoch in range(30)
        for words in dataset[(epoch, 6)].captions
    }
    assert len(seen) == 7  # all captions of photo 6


def test_captions_are_cut(examples, vocabulary):
    dataset = CaptionDataset(examples, vocabulary, max_length=3, preprocess=PREPROCESS)
    assert dataset.lengths.max() == 4
    batch = collate([dataset[index] for index in range(len(dataset))])
    assert batch.captions.shape[2] == 5
    whole = CaptionDataset(examples, vocabulary, preprocess=PREPROCESS)
    assert whole.lengths.tolist() == [
        max(len(tokenize(caption)) for caption in e.captions) + 1 for e in examples
    ]


def test_photo_without_words_counts_nothing(examples, vocabulary, caplog):
    odd = [*examples[:2], Example(examples[2].image, ("...",), "train", 2)]
    dataset = CaptionDataset(odd, vocabulary, preprocess=PREPROCESS)
    assert "no caption with words" in caplog.text
    batch = collate([dataset[2], dataset[1]])
    assert batch.indices.tolist() == [1, 2]  # the longest caption comes first
    assert batch.lengths[0].sum() > 0
    assert batch.lengths[1].sum() == 0


@pytest.mark.parametrize("mode", ["cache", "photos", "augment"])
def test_batches_do_not_depend_on_workers(mode, examples, vocabulary, cache):
    source = {"cache": cache} if mode == "cache" else {"preprocess": PREPROCESS}
    dataset = CaptionDataset(
        examples, vocabulary, mirror=True, augment=mode == "augment", captions_per_image=3, **source
    )
    alone = epochs(dataset, workers=0)
    torch.manual_seed(99)  # whatever the global generator does
    with_workers = epochs(dataset, workers=2)
    assert len(alone) == 6
    assert all(same(a, b) for a, b in zip(alone, with_workers, strict=True))
    assert not all(same(a, b) for a, b in zip(alone[:3], alone[3:], strict=True))  # epochs differ


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generator_alone(workers, examples, vocabulary):
    dataset = CaptionDataset(examples, vocabulary, preprocess=PREPROCESS, augment=True, mirror=True)
    before = torch.random.get_rng_state()
    epochs(dataset, workers=workers)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_resumed_loader_continues_with_the_same_batches(examples, vocabulary):
    dataset = CaptionDataset(examples, vocabulary, preprocess=PREPROCESS, augment=True, mirror=True)
    whole = epochs(dataset)
    sampler = LengthAwareSampler(dataset.lengths, 4, seed=3)
    loader = make_loader(dataset, sampler, workers=1)
    for _ in loader:
        sampler.advance()
        break
    resumed = LengthAwareSampler(dataset.lengths, 4, seed=3)
    resumed.load_state_dict(sampler.state_dict())
    rest = list(make_loader(dataset, resumed))
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(rest, whole[1:3], strict=True))


def test_mirrored_items_swap_left_and_right(examples, vocabulary, cache):
    words = {}
    for source in ({"preprocess": PREPROCESS}, {"cache": cache}):
        dataset = CaptionDataset(
            [examples[i] for i in range(11)],
            vocabulary,
            captions_per_image=7,
            mirror=True,
            **source,
        )
        flipped = 0
        for epoch in range(12):
            item = dataset[(epoch, 6)]  # all seven sentences
            picture = item.image
            if picture is None:
                picture = read_one(item.cache, item.index, item.view)[0].transpose(1, 2, 0)
            half = picture.shape[1] // 2
            mirrored = bool(picture[:, :half].mean() > picture[:, half:].mean())
            flipped += mirrored
            sentences = {tuple(vocabulary.decode(c.tolist())) for c in item.captions}
            assert words.setdefault(mirrored, sentences) == sentences
        assert 0 < flipped < 12
    plain = {tuple(tokenize(sentence)) for sentence in SENTENCES}
    assert words[False] == plain
    # `left-handed` is not in the vocabulary: it must not stay `right-handed`.
    swapped = {tuple(mirror_words(sentence)) for sentence in plain}
    assert words[True] == {
        tuple(word if word in vocabulary else "<unk>" for word in sentence) for sentence in swapped
    }


def test_mirror_words():
    words = ["the", "left-handed", "man", "left", "of", "the", "leftmost", "one"]
    swapped = ["the", "right-handed", "man", "right", "of", "the", "rightmost", "one"]
    assert mirror_words(words) == swapped
    assert mirror_words(mirror_words(words)) == words


def test_augmented_photos_vary_and_keep_their_shape(examples, vocabulary):
    dataset = CaptionDataset(examples, vocabulary, preprocess=PREPROCESS, augment=True)
    views = [dataset[(epoch, 0)].image for epoch in range(4)]
    assert all(view.shape == (16, 16, 3) and view.dtype == np.uint8 for view in views)
    assert all(not np.array_equal(views[0], view) for view in views[1:])
    assert np.array_equal(views[0], dataset[(0, 0)].image)
    # Photos of one epoch are treated differently, even when they are the same photo.
    twice = CaptionDataset([examples[0]] * 2, vocabulary, preprocess=PREPROCESS, augment=True)
    assert not np.array_equal(twice[(0, 0)].image, twice[(0, 1)].image)
    for view in views:  # still dark on the left: mild crops, no mirror
        assert view[:, :4].mean() < view[:, -4:].mean()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_photo_is_one_line_that_names_it(workers, examples, vocabulary, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a photo")
    odd = [*examples, Example(str(bad), ("A dog",), "train", 99)]
    dataset = CaptionDataset(odd, vocabulary, preprocess=PREPROCESS)
    with pytest.raises(DataError, match=r"bad\.jpg") as caught:
        epochs(dataset, workers=workers)
    assert len(str(caught.value).splitlines()) == 1


def test_wrong_arguments(examples, vocabulary, cache):
    with pytest.raises(DataError, match="either preprocess"):
        CaptionDataset(examples, vocabulary)
    with pytest.raises(DataError, match="either preprocess"):
        CaptionDataset(examples, vocabulary, preprocess=PREPROCESS, cache=cache)
    with pytest.raises(DataError, match="augmented"):
        CaptionDataset(examples, vocabulary, cache=cache, augment=True)
    with pytest.raises(DataError, match="another list"):
        CaptionDataset(examples[::-1], vocabulary, cache=cache)
    with pytest.raises(DataError, match="no captioned photos"):
        CaptionDataset([], vocabulary, cache=cache)


def test_batch_moves_as_a_whole(examples, vocabulary, cache):
    for source in ({"preprocess": PREPROCESS}, {"cache": cache}):
        dataset = CaptionDataset(examples, vocabulary, **source)
        batch = collate([dataset[0], dataset[1]])
        moved = batch.to("meta")
        tensors = [moved.captions, moved.lengths, moved.indices]
        tensors += moved.features or [moved.images]
        assert all(tensor.device.type == "meta" for tensor in tensors)
        assert (moved.images is None) == (batch.images is None)
        assert same(batch.to("cpu"), batch)


# ----------------------------------------------------------------------------------- shared memory


def _first_batch(examples, vocabulary):
    data = CaptionDataset(examples, vocabulary, preprocess=PREPROCESS)
    loader = make_loader(data, LengthAwareSampler(data.lengths, batch_size=2), workers=1)
    return next(iter(loader))


def test_a_full_shared_memory_is_an_error_that_names_it(examples, vocabulary, monkeypatch):
    def share(tensor):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", share)
    with pytest.raises(DataError, match=r"No space left.*/dev/shm.*data\.workers=0") as caught:
        _first_batch(examples, vocabulary)
    assert len(str(caught.value).splitlines()) == 1


def test_no_wait_for_workers_is_without_a_limit(examples, vocabulary, monkeypatch):
    monkeypatch.setattr(dataset_module, "_TIMEOUT", 1.0)
    monkeypatch.setattr(dataset_module, "collate", lambda items: time.sleep(60))
    with pytest.raises(DataError, match=r"loading of images has stopped.*data\.workers=0"):
        _first_batch(examples, vocabulary)
    monkeypatch.setattr(dataset_module, "collate", lambda items: os.kill(os.getpid(), 9))
    with pytest.raises(DataError, match=r"stopped .*(killed|exited)"):
        _first_batch(examples, vocabulary)
