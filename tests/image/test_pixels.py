"""Large pictures: converted tile by tile, decoded a few at a time."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from captioner.errors import ImageError
from captioner.image import io as images
from captioner.image import pixels
from captioner.image.io import open_image

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")


def picture(mode, size=(61, 47)):
    """Noise, and transparent here and there if the mode can be."""
    rng = np.random.default_rng(5)
    if mode in ("I", "F", "I;16", "F below 0"):
        kind = {"I": np.int32, "I;16": np.uint16}.get(mode, np.float32)
        values = rng.random(size[::-1]) * 40_000 - 20_000 * (mode == "F below 0")
        return Image.fromarray(values.astype(kind))
    rgba = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8))
    if mode == "La":
        return rgba.convert("LA").convert("La")
    if mode == "PA":
        return rgba.convert("LA").convert("PA")
    if mode == "LAB":
        return Image.frombytes("LAB", size, rgba.convert("RGB").tobytes())
    return rgba.convert("RGB").convert(mode) if mode in ("CMYK", "HSV") else rgba.convert(mode)


@pytest.mark.parametrize("mode", [*MODES, "I", "F", "F below 0", "I;16"])
@pytest.mark.parametrize("size", [(61, 47), (400, 1), (1, 400)])
def test_tiles_give_what_the_whole_gives(monkeypatch, mode, size):
    image = picture(mode, size)
    whole = open_image(image)
    monkeypatch.setattr(pixels, "_LARGE", 256)
    tiled = open_image(image)
    assert tiled.size == size
    assert tiled.tobytes() == whole.tobytes()


def test_large_pictures_are_averaged_down_to_three_times_the_square(monkeypatch, tmp_path):
    path = tmp_path / "large.png"
    slope = np.add.outer(np.arange(100), np.arange(150)).astype(np.uint8)  # 0..248
    Image.fromarray(slope).save(path)
    assert open_image(path, shrink_to=8).size == (150, 100)
    monkeypatch.setattr(pixels, "_LARGE", 1000)
    small = open_image(path, shrink_to=8)
    assert small.size == (38, 25)  # a quarter; the last column is half a one
    expected = slope[:, :148].reshape(25, 4, 37, 4).mean((1, 3))
    assert np.abs(np.asarray(small)[:, :37, 0] - expected).max() <= 1
    assert open_image(path).size == (150, 100)


def test_hungry_formats_have_a_lower_limit(tmp_path):
    path = tmp_path / "wide.webp"
    Image.new("RGB", (16_000, 3_800)).save(path, lossless=True, method=0)  # 60.8 megapixels
    with pytest.raises(ImageError, match="over the limit of 59,652,323"):
        open_image(path)
    with pytest.raises(ImageError, match="over the limit of 100"):
        open_image(path, max_pixels=100)


def test_hungry_formats_are_not_read_if_the_file_is_large(tmp_path, monkeypatch):
    for name in ("a.webp", "a.png"):
        picture("RGB").save(tmp_path / name)
    monkeypatch.setattr(images, "_MAX_BYTES", 100)
    with pytest.raises(ImageError, match=r"too large for a WEBP picture: [\d,]+ bytes"):
        open_image(tmp_path / "a.webp")
    assert open_image(tmp_path / "a.png").size == (61, 47)  # is read piece by piece


def test_a_large_picture_waits_until_it_is_alone():
    room = images._Room(100)
    inside, most = [], []

    def work(pixels):
        with room.taken(pixels):
            inside.append(pixels)
            most.append(list(inside))
            time.sleep(0.002)
            inside.remove(pixels)

    threads = [threading.Thread(target=work, args=(size,)) for size in (40, 40, 500, 60, 10, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 6
    assert all(sum(now) <= 100 or now == [500] for now in most)


def test_room_is_given_back_after_an_error():
    room = images._Room(100)
    for _ in range(3):
        with pytest.raises(ValueError, match="damaged"), room.taken(90):
            raise ValueError("damaged")
    with room.taken(100):
        pass
