"""The feature cache: what is read is what the encoder said, whatever happened in between."""

import json
import logging
import multiprocessing
import os
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from captioner.data.features import FeatureCache, build_features
from captioner.errors import DataError
from captioner.images import Preprocess, open_image

PREPROCESS = Preprocess(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
COUNT = 10


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    result = []
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 40, 3), dtype=np.uint8)
        result.append(folder / f"photo é {number}.png")
        Image.fromarray(pixels).save(result[-1])
    return result


class Encoder:
    """Two stages of pooled pixels; counts its calls, and can be interrupted in one of them."""

    def __init__(self, stop_at=None, scale=1.0):
        self.photos = 0
        self.calls = 0
        self.stop_at = stop_at
        self.scale = scale

    def __call__(self, images):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        assert images.dtype == torch.float32
        assert images.shape[1:] == (3, 16, 16)
        self.photos += len(images)
        return [functional.avg_pool2d(images, s) * self.scale for s in (4, 8)]


def build(root, paths, encoder=None, **options):
    options = {"batch_size": 3, "workers": 0, "fingerprint": "a", "save_every": 3} | options
    return build_features(root, paths, PREPROCESS, encoder or Encoder(), **options)


def check_content(cache, paths):
    encoder = Encoder()
    for index, path in enumerate(paths):
        image = PREPROCESS(open_image(path))[None]
        for view in range(cache.views):
            expected = encoder(image.flip(-1) if view else image)
            for got, stage in zip(cache.read(index, view), expected, strict=True):
                assert got.dtype == np.float16
                np.testing.assert_array_equal(got, stage[0].half().numpy())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mirror", [True, False])
def test_round_trip(workers, mirror, paths, tmp_path):
    cache = build(tmp_path / "cache", paths, workers=workers, mirror=mirror)
    assert len(cache) == COUNT
    assert cache.views == 1 + mirror
    assert cache.shapes == [(3, 4, 4), (3, 2, 2)]
    assert cache.nbytes == (1 + mirror) * COUNT * (48 + 12) * 2
    check_content(cache, paths)
    check_content(FeatureCache.open(cache.folder), paths)


def test_the_mirrored_view_is_that_of_the_mirrored_photo(paths, tmp_path):
    cache = build(tmp_path / "cache", paths)
    mirrored = Image.open(paths[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = Encoder()(PREPROCESS(mirrored)[None])
    for got, stage in zip(cache.read(0, view=1), expected, strict=True):
        # Within one level of 8 bits (of std .2), since resizing rounds.
        np.testing.assert_allclose(got, stage[0].numpy(), atol=1.01 / 255 / 0.2)


def test_what_is_read_is_a_copy(paths, tmp_path):
    cache = build(tmp_path / "cache", paths)
    cache.read(0)[0][:] = 0
    check_content(cache, paths)


def test_building_leaves_the_global_generator_alone(paths, tmp_path):
    # Or a training that finds its cache would differ from the one that built it.
    before = torch.random.get_rng_state()
    build(tmp_path / "cache", paths)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_finished_cache_is_not_built_again(paths, tmp_path):
    build(tmp_path / "cache", paths)
    encoder = Encoder()
    build(tmp_path / "cache", paths, encoder)
    assert encoder.calls == 0


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 6, 7, 8])
def test_an_interrupted_build_continues(stop_at, paths, tmp_path):
    root = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        build(root, paths, Encoder(stop_at))
    (folder,) = root.iterdir()
    with pytest.raises(DataError):
        FeatureCache.open(folder)
    encoder = Encoder()
    cache = build(root, paths, encoder)
    done = (stop_at - 1) // 2 * 3  # two calls, for the two views, per batch of 3
    assert encoder.photos == 2 * (COUNT - done)
    check_content(cache, paths)


def test_key_names_everything_that_features_depend_on(paths, tmp_path):
    def key(fingerprint="a", preprocess=PREPROCESS, paths=paths, views=2):
        return FeatureCache.key(fingerprint, preprocess.to_dict(), paths, views)

    keys = {
        key(),
        key(fingerprint="b"),
        key(preprocess=Preprocess(17, PREPROCESS.mean, PREPROCESS.std)),
        key(preprocess=Preprocess(16, PREPROCESS.mean, PREPROCESS.std, "bicubic")),
        key(paths=paths[::-1]),
        key(paths=paths[:-1]),
        key(views=1),
    }
    assert len(keys) == 7
    assert key(paths=[str(path) for path in paths]) == key()
    with pytest.raises(DataError, match=r"missing\.png"):
        key(paths=[tmp_path / "missing.png"])


def test_a_changed_photo_changes_the_key_and_the_features(paths, tmp_path):
    root = tmp_path / "cache"
    old = build(root, paths)
    status = paths[4].stat()
    Image.new("RGB", (24, 40), "red").save(paths[4])
    new = build(root, paths)
    assert new.folder != old.folder
    check_content(new, paths)
    # The modification time alone counts, and so does the size alone.
    os.utime(paths[4], ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    touched = build(root, paths)
    assert touched.folder not in (old.folder, new.folder)
    status = paths[4].stat()
    with open(paths[4], "ab") as file:
        file.write(b"more")
    os.utime(paths[4], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert build(root, paths).folder not in (old.folder, new.folder, touched.folder)


def test_caches_of_several_encoders_lie_side_by_side(paths, tmp_path):
    root = tmp_path / "cache"
    one = build(root, paths, fingerprint="one")
    two = build(root, paths, Encoder(scale=2), fingerprint="two")
    assert sorted(path.name for path in root.iterdir()) == sorted(
        [one.folder.name, two.folder.name]
    )
    assert all(len(path.name) == 16 for path in root.iterdir())
    check_content(one, paths)
    np.testing.assert_array_equal(two.read(3)[1], 2 * one.read(3)[1])


def _read_in_child(cache, queue):
    queue.put([stage.tolist() for stage in cache.read(7, 1)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reading_in_another_process(method, paths, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    cache = build(tmp_path / "cache", paths)
    cache.read(0)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(cache, queue))
    child.start()
    assert queue.get(timeout=60) == [stage.tolist() for stage in cache.read(7, 1)]
    child.join()


def test_pickle_carries_no_features(paths, tmp_path):
    cache = build(tmp_path / "cache", paths)
    cache.read(0)
    pickled = pickle.dumps(cache)
    assert len(pickled) < 1000 < cache.nbytes
    check_content(pickle.loads(pickled), paths)


def test_reading_outside_the_cache(paths, tmp_path):
    cache = build(tmp_path / "cache", paths, mirror=False)
    for index, view in [(COUNT, 0), (-1, 0), (0, 1), (0, -1)]:
        with pytest.raises(IndexError):
            cache.read(index, view)


def test_check_files(paths, tmp_path):
    cache = build(tmp_path / "cache", paths)
    cache.check_files([str(path) for path in paths])
    for other in (paths[::-1], paths[1:], [*paths[:-1], "x.png"]):
        with pytest.raises(DataError, match="another list"):
            cache.check_files(other)


def test_large_features_are_clamped_and_broken_ones_refused(paths, tmp_path, caplog):
    cache = build(tmp_path / "cache", paths, Encoder(scale=1e6))
    assert "clamped" in caplog.text
    assert np.isfinite(cache.read(0)[0]).all()
    assert np.abs(cache.read(0)[0]).max() == 65504
    for scale in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="not finite"):
            build(tmp_path / "cache", paths, Encoder(scale=scale), fingerprint=str(scale))


def test_too_little_room_is_said_before_anything_is_written(paths, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with caplog.at_level(logging.INFO), pytest.raises(DataError, match="GB free"):
        build(tmp_path / "cache", paths)
    assert "feature cache: " in caplog.text
    assert not list((tmp_path / "cache").rglob("*.npy"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_photo_is_one_line_that_names_it(workers, paths, tmp_path):
    paths[5].write_bytes(b"not a photo")
    with pytest.raises(DataError, match=r"photo é 5\.png") as caught:
        build(tmp_path / "cache", paths, workers=workers)
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_caches_are_clear_errors(paths, tmp_path):
    with pytest.raises(DataError, match="no feature cache"):
        FeatureCache.open(tmp_path)
    cache = build(tmp_path / "cache", paths)
    stage = cache.folder / "stage_1.npy"
    content = stage.read_bytes()
    stage.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="stage_1"):
        FeatureCache.open(cache.folder)
    np.save(stage, np.zeros((2, COUNT, 3, 2, 3), np.float16))
    with pytest.raises(DataError, match="stage_1"):
        FeatureCache.open(cache.folder)
    stage.unlink()
    with pytest.raises(DataError, match="stage_1"):
        FeatureCache.open(cache.folder)
    (cache.folder / "meta.json").write_text("{")
    check_content(build(tmp_path / "cache", paths), paths)  # built anew


def test_meta_is_written_whole(paths, tmp_path):
    cache = build(tmp_path / "cache", paths)
    meta = json.loads((cache.folder / "meta.json").read_text())
    assert meta["done"] == meta["count"] == COUNT
    assert meta["key"].startswith(cache.folder.name)
    assert {path.name for path in cache.folder.iterdir()} == {
        "meta.json",
        "lock",
        "stage_0.npy",
        "stage_1.npy",
    }
