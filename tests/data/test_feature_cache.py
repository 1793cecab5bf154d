"""The feature cache: what is read is what the encoder said, whatever happened in between."""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.features import read_one
from PIL import Image
from torch.nn import functional

from captioner.data.feature_cache import FeatureCache
from captioner.data.features import build_features
from captioner.errors import DataError
from captioner.image.io import open_image
from captioner.image.transforms import Preprocess

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
    options = {"batch_size": 3, "workers": 2, "fingerprint": "a", "save_every": 3} | options
    return build_features(root, paths, PREPROCESS, encoder or Encoder(), **options)


def check_content(cache, paths):
    encoder = Encoder()
    for index, path in enumerate(paths):
        image = PREPROCESS(open_image(path))[None]
        for view in range(cache.views):
            expected = encoder(image.flip(-1) if view else image)
            for got, stage in zip(read_one(cache, index, view), expected, strict=True):
                assert got.dtype == np.float16
                np.testing.assert_array_equal(got, stage[0].half().numpy())


@pytest.mark.parametrize("workers", [1, 3])
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
    for got, stage in zip(read_one(cache, 0, view=1), expected, strict=True):
        # Within one level of 8 bits (of std .2), since resizing rounds.
        np.testing.assert_allclose(got, stage[0].numpy(), atol=1.01 / 255 / 0.2)


def test_what_is_read_is_a_copy(paths, tmp_path):
    cache = build(tmp_path / "cache", paths)
    read_one(cache, 0)[0][:] = 0
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


def _build_and_die(root, paths, stop_at):
    """In a process of its own: killed, as by the system, in one call of the encoder."""
    torch.set_num_threads(1)
    encoder = Encoder()

    def compute(images):
        if encoder.calls == stop_at - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return encoder(images)

    build(root, paths, compute)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system"
)
def test_a_killed_build_goes_on_and_gives_the_same_bytes(paths, tmp_path):
    whole = build(tmp_path / "whole", paths)
    root = tmp_path / "killed"
    done = []
    for stop_at in (2, 7):  # 2 calls a batch; while the fourth is computed, the first is written
        child = multiprocessing.get_context("fork").Process(
            target=_build_and_die, args=(root, paths, stop_at)
        )
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        (folder,) = root.iterdir()
        meta = folder / "meta.json"
        done.append(json.loads(meta.read_text())["done"] if meta.exists() else 0)
    assert done[0] == 0 < done[1] < COUNT
    encoder = Encoder()
    cache = build(root, paths, encoder)
    assert encoder.photos == 2 * (COUNT - done[1])
    for name in ("stage_0.npy", "stage_1.npy"):
        assert (cache.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def _build_slowly(root, paths, queue):
    torch.set_num_threads(1)
    encoder = Encoder()

    def compute(images):
        time.sleep(0.02)  # so that the others come while this one is at work
        return encoder(images)

    cache = build(root, paths, compute)
    queue.put((encoder.photos, [stage.tolist() for stage in read_one(cache, COUNT - 1, 1)]))


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system"
)
def test_of_several_processes_one_builds_and_the_others_wait(paths, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (tmp_path / "cache", paths, queue)
    children = [context.Process(target=_build_slowly, args=arguments) for _ in range(3)]
    for child in children:
        child.start()
    results = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert sorted(photos for photos, _ in results) == [0, 0, 2 * COUNT]
    (folder,) = (tmp_path / "cache").iterdir()
    cache = FeatureCache.open(folder)
    check_content(cache, paths)
    expected = [stage.tolist() for stage in read_one(cache, COUNT - 1, 1)]
    assert all(last == expected for _, last in results)


def test_key_names_everything_that_features_depend_on(paths, tmp_path):
    def key(fingerprint="a", preprocess=PREPROCESS, paths=paths, views=2, **precision):
        return FeatureCache.key(fingerprint, preprocess.to_dict(), paths, views, **precision)

    keys = {
        key(),
        key(fingerprint="b"),
        key(preprocess=Preprocess(17, PREPROCESS.mean, PREPROCESS.std)),
        key(preprocess=Preprocess(16, PREPROCESS.mean, PREPROCESS.std, "bicubic")),
        key(paths=paths[::-1]),
        key(paths=paths[:-1]),
        key(views=1),
        key(dtype="bf16"),
        key(precision="fp32"),
        key(precision="bf16"),
    }
    assert len(keys) == 10
    assert key(paths=[str(path) for path in paths]) == key()
    with pytest.raises(DataError, match=r"missing\.png"):
        key(paths=[tmp_path / "missing.png"])


def test_caches_of_earlier_versions_stay_valid(paths, tmp_path):
    """Their keys knew no precision, and their meta data no dtype."""
    cache = build(tmp_path / "cache", paths)
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    parts = json.dumps([1, "a", PREPROCESS.to_dict(), 2, files], sort_keys=True)
    assert hashlib.sha256(parts.encode()).hexdigest()[:16] == cache.folder.name
    path = cache.folder / "meta.json"
    meta = json.loads(path.read_text())
    del meta["dtype"]
    path.write_text(json.dumps(meta))
    encoder = Encoder()
    check_content(build(tmp_path / "cache", paths, encoder), paths)
    assert encoder.calls == 0


def test_a_changed_photo_changes_the_key_and_the_features(paths, tmp_path, caplog):
    root = tmp_path / "cache"
    old = build(root, paths)
    status = paths[4].stat()
    Image.new("RGB", (24, 40), "red").save(paths[4])
    with caplog.at_level(logging.INFO):
        new = build(root, paths)
    assert f"anew; {old.folder.name} was made from these photos" in caplog.text
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
    np.testing.assert_array_equal(read_one(two, 3)[1], 2 * read_one(one, 3)[1])


def test_bf16_keeps_what_fp16_cannot(paths, tmp_path, caplog):
    encoder = Encoder(scale=1e6)
    cache = build(tmp_path / "cache", paths, encoder, dtype="bf16")
    assert "clamped" not in caplog.text
    assert cache.dtype == torch.bfloat16
    pixels = torch.stack([PREPROCESS(open_image(path)) for path in paths])
    for got, stage in zip(cache.read_batch(range(COUNT)), encoder(pixels), strict=True):
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, stage.bfloat16())
        assert got.abs().max() > 1e5
    for one, batch in zip(read_one(cache, 3, 1), cache.read_batch([3], 1), strict=True):
        assert one.dtype == np.float32  # NumPy has no bf16; nothing is lost
        np.testing.assert_array_equal(one, batch[0].float().numpy())


def test_batches_are_the_photos_one_by_one(paths, tmp_path):
    cache = build(tmp_path / "cache", paths)
    indices, views = [7, 0, 7, COUNT - 1], [1, 0, 0, 1]
    expected = [read_one(cache, index, view) for index, view in zip(indices, views, strict=True)]
    for stage, got in enumerate(cache.read_batch(indices, views)):
        assert got.is_contiguous()
        np.testing.assert_array_equal(got, np.stack([each[stage] for each in expected]))
        got[:] = 0  # a copy
    for got, again in zip(cache.read_batch(np.array([7])), read_one(cache, 7, 0), strict=True):
        np.testing.assert_array_equal(got[0], again)
        assert got.any()
    assert [len(stage) for stage in cache.read_batch([])] == [0, 0]
    for wrong in ([COUNT], 0), ([-1], 0), ([0], 2), ([0, 1], [0, -1]):
        with pytest.raises(IndexError):
            cache.read_batch(*wrong)


def _read_in_child(cache, queue):
    queue.put([stage.tolist() for stage in read_one(cache, 7, 1)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reading_in_another_process(method, paths, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    cache = build(tmp_path / "cache", paths)
    read_one(cache, 0)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(cache, queue))
    child.start()
    assert queue.get(timeout=60) == [stage.tolist() for stage in read_one(cache, 7, 1)]
    child.join()


def test_pickle_carries_no_features(paths, tmp_path):
    cache = build(tmp_path / "cache", paths)
    read_one(cache, 0)
    pickled = pickle.dumps(cache)
    assert len(pickled) < 1000 < cache.nbytes
    check_content(pickle.loads(pickled), paths)


def test_reading_outside_the_cache(paths, tmp_path):
    cache = build(tmp_path / "cache", paths, mirror=False)
    for index, view in [(COUNT, 0), (-1, 0), (0, 1), (0, -1)]:
        with pytest.raises(IndexError):
            read_one(cache, index, view)


def test_check_files(paths, tmp_path):
    cache = build(tmp_path / "cache", paths)
    cache.check_files([str(path) for path in paths])
    for other in (paths[::-1], paths[1:], [*paths[:-1], "x.png"]):
        with pytest.raises(DataError, match="another list"):
            cache.check_files(other)


def test_large_features_are_clamped_and_broken_ones_refused(paths, tmp_path, caplog):
    cache = build(tmp_path / "cache", paths, Encoder(scale=1e6))
    assert "clamped" in caplog.text
    assert np.isfinite(read_one(cache, 0)[0]).all()
    assert np.abs(read_one(cache, 0)[0]).max() == 65504
    for scale in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="not finite"):
            build(tmp_path / "cache", paths, Encoder(scale=scale), fingerprint=str(scale))


def test_too_little_room_is_said_before_anything_is_written(paths, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with caplog.at_level(logging.INFO), pytest.raises(DataError, match="GB free"):
        build(tmp_path / "cache", paths)
    assert "feature cache: " in caplog.text
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_size_and_progress_are_told(paths, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        build(tmp_path / "cache", paths)
    size = 2 * COUNT * (48 + 12) * 2
    assert f"10 photos × 2 views × (3×4×4 + 3×2×2) in fp16: {size:,} bytes" in caplog.text
    assert "10 photos in" in caplog.text


def test_a_disk_that_fills_up_is_told_and_what_is_written_stays(paths, tmp_path, monkeypatch):
    calls = []
    fsync = os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) > 5:  # two stages and the meta data for each save: in the second one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left.*3 photos are kept"):
        build(tmp_path / "cache", paths)
    monkeypatch.undo()
    encoder = Encoder()
    cache = build(tmp_path / "cache", paths, encoder)
    assert encoder.photos == 2 * (COUNT - 3)
    check_content(cache, paths)


@pytest.mark.parametrize("workers", [1, 3])
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
        "stage_0.npy",
        "stage_1.npy",
    }
