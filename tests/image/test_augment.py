"""Augmented copies: drawn from the photo's number alone, kept in the cache, dealt out to epochs."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.features import read_one
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import write_pictures
from PIL import Image
from torch.nn import functional

from captioner.config import Config, from_dict
from captioner.data.annotations import Example
from captioner.data.dataset import CaptionDataset, collate
from captioner.data.feature_cache import FeatureCache
from captioner.data.features import build_features
from captioner.errors import ConfigError, DataError
from captioner.image.io import open_image
from captioner.image.transforms import Augmentation, Preprocess, draw_crop
from captioner.models.encoder import Encoder
from captioner.tokenizer import Vocabulary, tokenize
from captioner.training.data import build_datasets, read_examples

PREPROCESS = Preprocess(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
COUNT = 7


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Photos; the first two are noisy JPEGs that are shrunk by 8, or 4 for crops, when read."""
    folder = tmp_path_factory.mktemp("photos")
    result = []
    for number in range(COUNT):
        size, ending = ((160, 240, 3), "jpg") if number < 2 else ((24, 40, 3), "png")
        pixels = np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)
        result.append(folder / f"{number}.{ending}")
        Image.fromarray(pixels).save(result[-1])
    return result


def encode(images):
    return [functional.avg_pool2d(images, side) for side in (4, 8)]


def build(root, paths, extract=encode, **options):
    options = {"batch_size": 3, "workers": 2, "fingerprint": "a", "save_every": 3} | options
    return build_features(root, paths, PREPROCESS, extract, progress=False, **options)


def stored(cache):
    """The bytes of the features on disk."""
    return [(cache.folder / f"stage_{number}.npy").read_bytes() for number in range(2)]


# The pictures

SIDES = st.integers(1, 4000)


@settings(max_examples=200, deadline=None)
@given(width=SIDES, height=SIDES, seed=st.integers(0, 1000))
def test_a_crop_lies_in_the_photo_and_is_mild(width, height, seed):
    left, top, across, down = draw_crop(width, height, np.random.default_rng(seed))
    assert 0 <= left <= left + across <= width
    assert 0 <= top <= top + down <= height
    assert min(across, down) >= 1
    # Sides are rounded by half a pixel at most.
    assert (across + 0.5) * (down + 0.5) >= 0.6 * width * height
    ratio = width / height
    assert (across - 0.5) / (down + 0.5) <= 1.25 * ratio * (1 + 1e-9)
    assert (across + 0.5) / (down - 0.5) >= 0.8 * ratio * (1 - 1e-9)


def test_crops_use_all_of_their_freedom():
    crops = np.array([draw_crop(600, 400, np.random.default_rng(n)) for n in range(400)])
    left, top, across, down = crops.T
    share, ratio = across * down / 240_000, across / down / 1.5
    assert share.min() < 0.63
    assert share.max() > 0.97
    assert ratio.min() < 0.83
    assert ratio.max() > 1.2
    for start, side, whole in ((left, across, 600), (top, down, 400)):
        place = start[side < whole] / (whole - side[side < whole])
        assert place.min() < 0.02
        assert place.max() > 0.98
        assert 0.4 < place.mean() < 0.6


def test_a_seed_gives_the_pictures_that_caches_have():
    """If this fails, `Augmentation.version` must grow, or caches hold what it does not make."""
    assert Augmentation.version == 1
    crops = [draw_crop(600, 400, np.random.default_rng([3, copy])) for copy in (1, 2)]
    assert crops == [(84, 20, 492, 342), (25, 85, 495, 296)]
    generator = np.random.default_rng([3, 1])
    picture = Augmentation(PREPROCESS)(Image.new("RGB", (60, 40), (100, 120, 90)), generator)
    assert abs(picture - np.array([115.0, 138.0, 104.0])).max() <= 1


def test_an_augmented_photo_depends_on_the_generator_alone(paths):
    augment = Augmentation(PREPROCESS)
    image = open_image(paths[3])

    def picture(seed):
        return augment(image, np.random.default_rng(seed))

    before = torch.random.get_rng_state()
    alone = [picture(seed) for seed in range(24)]
    assert torch.equal(torch.random.get_rng_state(), before)
    with ThreadPoolExecutor(4) as pool:
        assert all(map(np.array_equal, alone, pool.map(picture, range(24))))
    assert len({each.tobytes() for each in alone}) == 24
    assert all(each.shape == (16, 16, 3) and each.dtype == np.uint8 for each in alone)
    # Brighter and darker, but mildly: the jitter is a fifth each way.
    bright = np.array([each.mean() for each in alone]) / np.asarray(image).mean()
    assert 0.7 < bright.min() < 0.95 < 1.05 < bright.max() < 1.3


# The cache


@pytest.mark.parametrize("mirror", [True, False])
def test_the_cache_holds_the_photo_its_copies_and_their_mirror_images(mirror, paths, tmp_path):
    cache = build(tmp_path, paths, mirror=mirror, copies=3)
    assert (cache.copies, cache.views, cache.mirrored) == (3, 6 if mirror else 3, mirror)
    assert cache.nbytes == cache.views * COUNT * (48 + 12) * 2
    plain = build(tmp_path, paths, mirror=mirror)
    augment = Augmentation(PREPROCESS)
    for number, path in enumerate(paths):
        # The photo is to the bit what a cache without copies has, and what a model is shown later.
        shown = encode(PREPROCESS(open_image(path, shrink_to=16))[None])
        for got, stage in zip(read_one(cache, number), shown, strict=True):
            np.testing.assert_array_equal(got, stage[0].half().numpy())
        for flipped in (False, True)[: 1 + mirror]:
            expected = read_one(plain, number, plain.view(0, flipped))
            for got, of in zip(
                read_one(cache, number, cache.view(0, flipped)), expected, strict=True
            ):
                np.testing.assert_array_equal(got, of)
        image = open_image(path, shrink_to=augment.shrink_to)
        for copy in (1, 2):
            picture = augment(image, np.random.default_rng([number, copy]))
            pixels = PREPROCESS.normalize(torch.from_numpy(picture)[None])
            for flipped in (False, True)[: 1 + mirror]:
                got = read_one(cache, number, cache.view(copy, flipped))
                expected = encode(pixels.flip(-1) if flipped else pixels)
                for stage, of in zip(got, expected, strict=True):
                    np.testing.assert_array_equal(stage, of[0].half().numpy())


def test_views_are_numbered_copies_first(paths, tmp_path):
    cache = build(tmp_path, paths[:1], mirror=True, copies=4)
    views = [cache.view(copy, flipped) for flipped in (False, True) for copy in range(4)]
    assert views == list(range(cache.views))
    plain = build(tmp_path, paths[:1])
    assert [plain.view(0, False), plain.view(0, True)] == [0, 1]


def test_an_interrupted_build_gives_the_same_bytes_with_any_number_of_threads(paths, tmp_path):
    whole = build(tmp_path / "whole", paths, copies=3, workers=1)
    calls = []

    def interrupted(images):
        calls.append(len(images))
        if len(calls) == 9:  # six views a batch: in the middle of the second
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "again", paths, interrupted, copies=3, workers=3)
    calls.clear()

    def counted(images):
        calls.append(len(images))
        return encode(images)

    cache = build(tmp_path / "again", paths, counted, copies=3, workers=3)
    assert sum(calls) == 6 * (COUNT - 3)  # the first batch was kept
    assert stored(cache) == stored(whole)


def test_the_key_tells_copies_apart(paths, tmp_path):
    def key(views, **options):
        return FeatureCache.key("a", PREPROCESS.to_dict(), paths, views, **options)

    keys = {
        key(2),
        key(4),
        key(4, copies=2, augmentation=1),  # and their mirror images
        key(4, copies=4, augmentation=1),  # and none
        key(6, copies=3, augmentation=1),
        key(4, copies=2, augmentation=2),
    }
    assert len(keys) == 6
    assert key(2, copies=1, augmentation=1) == key(2)  # caches without copies stay as they are
    # In practice: as many views, but other ones.
    two, four = build(tmp_path, paths, copies=2), build(tmp_path, paths, mirror=False, copies=4)
    assert (two.copies, four.copies) == (2, 4)
    assert two.folder != four.folder


def test_who_reads_a_cache_keeps_it_while_another_is_made_in_its_place(paths, tmp_path):
    """As when two versions of this library meet in one folder: no file shrinks under a reader."""
    cache = build(tmp_path, paths)
    before = [stage.clone() for stage in cache.read_batch(range(COUNT))]
    (cache.folder / "meta.json").write_text("{}", "utf-8")
    build(tmp_path, paths, lambda images: [2 * stage for stage in encode(images)])
    for stage, expected in zip(cache.read_batch(range(COUNT)), before, strict=True):
        assert torch.equal(stage, expected)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_disk_that_knows_no_locks_is_named(paths, tmp_path, monkeypatch, error):
    fcntl = pytest.importorskip("fcntl", reason="no file locks on this system")

    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DataError, match=r"cannot be locked.*choose another folder"):
        build(tmp_path, paths)


# The dataset

SENTENCES = ("A dog on the left", "A cat", "Two dogs run right of a cat")


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.build((tokenize(sentence) for sentence in SENTENCES), min_count=1)


@pytest.fixture(scope="module")
def examples(paths):
    return [Example(str(path), SENTENCES, "train", number) for number, path in enumerate(paths)]


@pytest.fixture(scope="module")
def copied(paths, tmp_path_factory):
    return build(tmp_path_factory.mktemp("cache"), paths, copies=3)


def test_an_epoch_draws_a_copy_by_seed_epoch_and_photo(examples, vocabulary, copied):
    def views(seed=0, **options):
        options = {"augment": True, "mirror": True} | options
        data = CaptionDataset(examples, vocabulary, cache=copied, seed=seed, **options)
        return [[data[(epoch, index)].view for index in range(COUNT)] for epoch in range(40)]

    drawn = views()
    assert drawn == views()
    assert drawn != views(seed=1)
    assert len({tuple(epoch) for epoch in drawn}) > 30
    assert all(len(set(photo)) > 4 for photo in zip(*drawn, strict=True))
    counts = np.bincount(np.ravel(drawn), minlength=6) / np.size(drawn)
    assert (abs(counts - 1 / 6) < 0.06).all()
    assert set(np.ravel(views(mirror=False))) == {0, 1, 2}
    assert set(np.ravel(views(augment=False))) == {0, 3}
    # Whether a photo is mirrored does not depend on its copies.
    flipped = np.array(drawn) >= 3
    np.testing.assert_array_equal(flipped, np.array(views(augment=False)) == 3)


def test_items_and_batches_read_the_view_that_was_drawn(examples, vocabulary, copied):
    data = CaptionDataset(examples, vocabulary, cache=copied, augment=True, mirror=True)
    left = vocabulary.encode(["left"])[0]
    for epoch in range(6):
        items = [data[(epoch, index)] for index in range(COUNT)]
        batch = collate(items)
        for row, index in enumerate(batch.indices.tolist()):
            expected = read_one(copied, index, items[index].view)
            for stage, of in zip(batch.features, expected, strict=True):
                np.testing.assert_array_equal(stage[row], of)
            # The longest sentence says right, and left of a mirrored photo.
            words = max(items[index].captions, key=len).tolist()
            assert (left in words) == (items[index].view >= copied.copies)


def test_a_cache_without_what_is_wanted_is_refused(examples, vocabulary, paths, tmp_path):
    def data(cache, **options):
        return CaptionDataset(examples, vocabulary, cache=cache, **options)

    with pytest.raises(DataError, match="no augmented copies"):
        data(build(tmp_path, paths), augment=True)
    unmirrored = build(tmp_path, paths, mirror=False, copies=2)
    data(unmirrored, augment=True)
    with pytest.raises(DataError, match="no mirrored view"):
        data(unmirrored, augment=True, mirror=True)


# The recipe


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    write_pictures(folder, 4)
    return folder


def recipe(folder, **data):
    stages = data.pop("trainable_stages", 0)
    source = {"captions": "captions.json"}
    encoder = {"name": "timm/mobilenetv3_small_050", "pretrained": False, "image_size": 64}
    values = {
        "model": {"encoder": {**encoder, "trainable_stages": stages}},
        "data": {"root": str(folder), "train": source, "val": source, "min_count": 1, **data},
    }
    return from_dict(Config, {**values, "optim": {"precision": "fp32"}})


def datasets(config):
    train, val = read_examples(config.data, None)
    words = Vocabulary.build((tokenize(c) for e in train for c in e.captions), min_count=1)
    return build_datasets(
        config,
        train,
        val,
        Encoder(config.model.encoder),
        words,
        Preprocess(64, (0.5,) * 3, (0.5,) * 3),
        torch.device("cpu"),
    )


def test_a_recipe_with_copies_caches_them_for_training_photos(pictures, tmp_path):
    cache = str(tmp_path / "cache")
    found = datasets(recipe(pictures, augment=True, copies=3, cache=cache))
    assert (found.train.cache.copies, found.train.cache.views, found.train.copies) == (3, 6, 3)
    assert found.val_cache.views == 1
    assert found.train[(0, 0)].image is None


@pytest.mark.parametrize(
    "data",
    [
        {"augment": True},
        {"augment": True, "copies": 3, "trainable_stages": 1},  # features change all the time
        {"augment": True, "copies": 3, "cache": None},
    ],
    ids=["no-copies", "fine-tuned", "no-cache"],
)
def test_otherwise_augmented_photos_are_read(data, pictures, tmp_path):
    config = recipe(pictures, **{"cache": str(tmp_path / "cache"), **data})
    found = datasets(config)
    assert found.train.cache is None
    assert found.val_cache is None
    assert not (tmp_path / "cache").exists()
    first, second = (found.train[(epoch, 0)].image for epoch in (0, 1))
    assert first.shape == (64, 64, 3)
    assert not np.array_equal(first, second)


def test_wrong_numbers_of_copies(pictures, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.copies must be at least 1"):
        recipe(pictures, augment=True, copies=0)
    with pytest.raises(ConfigError, match=r"copies=3 .*add data\.augment=true"):
        datasets(recipe(pictures, copies=3, cache=str(tmp_path / "cache")))
