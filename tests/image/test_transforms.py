import json

import numpy as np
import pytest
from helpers.cells import cell_box
from helpers.images import noise
from PIL import Image

from captioner.errors import ConfigError
from captioner.image.io import open_image
from captioner.image.transforms import Preprocess, grid_to_image

PREPROCESS = Preprocess(8, (0.5, 0.25, 0.0), (0.5, 1.0, 0.25))


def test_preprocess_normalises_by_the_formula() -> None:
    torch = pytest.importorskip("torch")
    image = Image.new("RGB", (30, 20), (255, 51, 102))
    tensor = PREPROCESS(image)
    assert tensor.shape == (3, 8, 8)
    assert tensor.dtype == torch.float32
    assert tensor[:, 3, 5].tolist() == pytest.approx([1.0, 0.2 - 0.25, 0.4 / 0.25], abs=1e-5)


def test_the_batch_path_equals_the_single_path() -> None:
    torch = pytest.importorskip("torch")
    images = [noise(30, 20), noise(9, 50), noise(8, 8)]
    square = np.stack([PREPROCESS.to_uint8(image) for image in images])
    assert square.shape == (3, 8, 8, 3)
    assert square.dtype == np.uint8
    before = square.copy()
    batch = PREPROCESS.normalize(torch.from_numpy(square))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, torch.stack([PREPROCESS(image) for image in images]))
    assert (square == before).all()


def test_the_whole_picture_is_seen() -> None:
    """No crop: a mark in any corner, of any aspect ratio, reaches the encoder."""
    for width, height in ((300, 40), (40, 300), (64, 64)):
        for x in (0, width - width // 8):
            for y in (0, height - height // 8):
                image = Image.new("RGB", (width, height))
                image.paste("white", (x, y, x + width // 8, y + height // 8))
                small = PREPROCESS.to_uint8(image)[..., 0]
                row, col = np.unravel_index(small.argmax(), small.shape)
                assert (row, col) == (7 * (y > 0), 7 * (x > 0))
                assert small.max() > 150


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    small = PREPROCESS.to_uint8(open_image(stripes))
    assert 110 < small.min() <= small.max() < 145


def test_preprocess_round_trip() -> None:
    for kind in ("bilinear", "bicubic", "lanczos", "nearest"):
        preprocess = Preprocess(260, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), kind)
        assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
        assert hash(preprocess) == hash(Preprocess.from_dict(preprocess.to_dict()))


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": -3},
        {"size": True},
        {"size": 2.5},
        {"size": "224"},
        {"mean": [0.5, 0.5]},
        {"mean": 0.5},
        {"mean": "abc"},
        {"mean": [0.5, float("nan"), 0.5]},
        {"std": [1, 1, 0]},
        {"std": [1, 1, -1]},
        {"std": [float("inf"), 1, 1]},
        {"interpolation": "magic"},
        {"interpolation": ["bilinear"]},
        {"crop": 0.9},
    ],
    ids=str,
)
def test_wrong_preprocessing_is_named(change: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        Preprocess.from_dict(PREPROCESS.to_dict() | change)


def test_missing_preprocessing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="std"):
        Preprocess.from_dict({"size": 8, "mean": [0, 0, 0]})
    with pytest.raises(ConfigError):
        Preprocess.from_dict([1, 2])  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------- geometry

GRIDS = [(14, 14), (7, 7), (3, 5), (1, 1)]
SIZES = [(640, 480), (333, 500), (1000, 101), (14, 14), (5, 3)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", SIZES)
def test_cells_tile_the_picture_and_match_nearest(grid, size) -> None:
    values = np.arange(grid[0] * grid[1], dtype=np.float32).reshape(grid)
    spread = grid_to_image(values, size, "nearest")
    assert spread.shape == (size[1], size[0])
    owner = np.full((size[1], size[0]), -1.0)
    for row in range(grid[0]):
        for col in range(grid[1]):
            left, top, right, bottom = cell_box(row, col, grid, size)
            assert (owner[top:bottom, left:right] == -1).all()
            owner[top:bottom, left:right] = values[row, col]
            assert abs(left - col * size[0] / grid[1]) <= 0.5
            assert abs(bottom - (row + 1) * size[1] / grid[0]) <= 0.5
    assert (owner == spread).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_smooth_maps_are_aligned_with_the_cells(interpolation: str) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).random((7, 5)).astype(np.float32)
    spread = grid_to_image(values, (200, 140), interpolation)
    assert spread.shape == (140, 200)
    assert spread.min() >= values.min()
    assert spread.max() <= values.max()
    if interpolation == "bilinear":
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(values)[None, None], (140, 200), mode="bilinear", align_corners=False
        )[0, 0]
        assert np.abs(spread - expected.numpy()).max() < 1e-5
    mirrored = grid_to_image(values[::-1, ::-1], (200, 140), interpolation)
    assert np.allclose(mirrored[::-1, ::-1], spread, atol=1e-6)


def test_the_hot_cell_stays_where_the_encoder_saw_it() -> None:
    """Photo -> square -> grid cell -> photo comes back to the same place."""
    size, grid = (300, 120), (7, 7)
    for row, col in ((0, 0), (2, 5), (6, 6)):
        left, top, right, bottom = cell_box(row, col, grid, size)
        photo = Image.new("RGB", size)
        photo.paste("white", (left, top, right, bottom))
        square = Preprocess(70, (0, 0, 0), (1, 1, 1)).to_uint8(photo)[..., 0].astype(float)
        cells = square.reshape(7, 10, 7, 10).mean(axis=(1, 3))
        assert np.unravel_index(cells.argmax(), cells.shape) == (row, col)
        spread = grid_to_image(cells, size)
        y, x = np.unravel_index(spread.argmax(), spread.shape)
        assert left <= x < right
        assert top <= y < bottom


@pytest.mark.parametrize("bad", [np.zeros(4), np.zeros((0, 3)), np.zeros((2, 3, 4))])
def test_maps_of_the_wrong_shape(bad: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="shape"):
        grid_to_image(bad, (10, 10))
