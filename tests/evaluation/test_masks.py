"""The objects of instances files: masks, crowds, and objects that cannot be used."""

import json

import numpy as np
import pytest
from helpers.instances import box, run_lengths, write_instances
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from captioner.errors import DataError
from captioner.evaluation.masks import (
    CocoInstances,
    _decompress,
    cell_centres,
    dilate,
    grid_coverage,
)


def test_objects_of_a_file(masks, capsys):
    assert capsys.readouterr().out == ""
    assert masks.present == {1: {"dog"}, 2: {"person", "dog"}, 3: set()}
    assert 2 in masks
    assert 9 not in masks
    assert masks.supercategory("dog") == "animal"


def test_crowds_are_present_and_have_no_mask(masks):
    assert "dog" in masks.present[2]
    assert masks.outlined(2) == {"person"}
    with pytest.raises(DataError, match="image 2 has no mask of 'dog'"):
        masks.mask(2, "dog")


def test_overlap_counts_once(masks):
    assert (masks.mask(2, "person") == box(0, 0, 20, 20) | box(10, 10, 30, 30)).all()


def with_segmentation(path, segmentation, **fields):
    """An instances file of a sound person and a dog with this outline."""
    whole = box(0, 0, 30, 40)
    write_instances(path, {1: [(2, whole, 0), (1, whole, 0)]})
    content = json.loads(path.read_text())
    content["annotations"][1] |= {"id": 908, "segmentation": segmentation, **fields}
    path.write_text(json.dumps(content))
    return path


def test_polygons_are_drawn_at_the_stored_size(tmp_path):
    polygon = [4, 6, 12, 6, 12, 26, 4, 26]
    found = CocoInstances(with_segmentation(tmp_path / "i.json", [polygon]))
    assert (found.mask(1, "dog") == box(6, 4, 26, 12)).all()
    beyond = [-9.5, 6, 50, 6, 50, 26, -9.5, 26]  # COCO's own files reach over the edge
    found = CocoInstances(with_segmentation(tmp_path / "i.json", [beyond]))
    assert (found.mask(1, "dog") == box(6, 0, 26, 40)).all()


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_compressed_run_lengths_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = np.repeat(rng.random((30, 10)) < rng.random(), 4, axis=1)
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert _decompress(encoded) == run_lengths(mask)["counts"]


NAN, HUGE = float("nan"), 208543216.0


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[]], "a polygon of 0 numbers"),
        ([[5, 5]], "a polygon of 2 numbers"),
        ([[5, 5, 25, 25]], "a polygon of 4 numbers"),  # pycocotools would take it for a box
        ([[5, 5, 25, 5, 25, 25, 9]], "a polygon of 7 numbers"),
        ([5, 5, 25, 5, 25, 25], "not a list of polygons"),
        ("abc", "not a list of polygons"),
        (7, "not iterable"),
        ([[-164.1, -221.8, HUGE, 3.5e8, 225.9, 236.5]], "far outside its image of 40 x 30"),
        ([[5, 5, NAN, 5, 25, 25]], "far outside"),
        ([[5, 5, 10**400, 5, 25, 25]], "too large"),
        ([["5", "5", "25", "5", "25", "25"]], "not numbers"),
        ([[5, 5, None, 5, 25, 25]], "not numbers"),
        ([[0, 0, 80, 60] * 100_000], "too long"),
        ({"size": [30, 40], "counts": [0, 1200, 1]}, "do not fill the image"),
        ({"size": [30, 40], "counts": [-1, 1201]}, "whole numbers"),
        ({"size": [30, 40], "counts": [0, 1200.0]}, "whole numbers"),
        ({"size": [30, 40], "counts": 1200}, "not iterable"),
        ({"size": [3000, 4000], "counts": [0, 12_000_000]}, "of size"),
        ({"size": [30, 40], "counts": "~~~"}, "damaged"),
        ({"size": [30, 40], "counts": "oooooooooo"}, "damaged"),
        ({"size": [30, 40], "counts": "o"}, "end too early"),
        ({"size": [30, 40]}, "no 'counts'"),
        ({"counts": "0"}, "no 'size'"),
    ],
)
def test_an_outline_that_cannot_be_drawn_is_left_out(tmp_path, caplog, segmentation, message):
    found = CocoInstances(with_segmentation(tmp_path / "odd.json", segmentation))
    assert found.outlined(1) == {"person"}
    assert found.present[1] == {"person", "dog"}
    assert "odd.json: 1 of 2 objects cannot be used" in caplog.text
    assert "the first is id 908: " in caplog.text
    assert message in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, "id 908: its image 77 is not in the file"),
        ({"image_id": [1]}, "id 908: "),
        ({"category_id": "dog"}, "id 908: its category 'dog' is not in the file"),
        ({"category_id": None}, "id 908: its category None"),
    ],
)
def test_an_object_of_nowhere_is_left_out(tmp_path, caplog, change, message):
    found = CocoInstances(with_segmentation(tmp_path / "odd.json", [[0, 0, 9, 0, 9, 9]], **change))
    assert found.present[1] == {"person"}
    assert message in caplog.text


def test_objects_that_are_no_objects_are_named_by_their_place(tmp_path, caplog):
    path = write_instances(tmp_path / "odd.json", {1: [(2, box(0, 0, 9, 9), 0)]})
    content = json.loads(path.read_text())
    content["annotations"] = [None, {"id": 3}, *content["annotations"], "x"]
    content["images"] += [None, {"file_name": "no id"}]
    path.write_text(json.dumps(content))
    assert CocoInstances(path).outlined(1) == {"person"}
    assert "3 of 4 objects cannot be used" in caplog.text
    assert "number 0 of the list" in caplog.text


@pytest.mark.parametrize(
    "size", [(0, 30), (-1, 30), (40, None), ("40", "30"), (40.5, 30), (10**9, 9), (65_535, 65_535)]
)
def test_an_image_without_a_size_has_no_masks(tmp_path, caplog, size):
    path = with_segmentation(tmp_path / "odd.json", [[0, 0, 9, 0, 9, 9]])
    content = json.loads(path.read_text())
    content["images"][0] |= dict(zip(("width", "height"), size, strict=True))
    path.write_text(json.dumps(content))
    found = CocoInstances(path)
    assert found.present[1] == {"person", "dog"}
    assert found.outlined(1) == set()
    assert "2 of 2 objects" in caplog.text
    assert "no usable width and height" in caplog.text


def test_objects_without_an_outline_are_present(tmp_path, caplog):
    for nothing in ([], None):
        found = CocoInstances(with_segmentation(tmp_path / "boxes.json", nothing))
        assert found.present[1] == {"person", "dog"}
        assert found.outlined(1) == {"person"}
    assert caplog.text == ""


def test_several_files_are_joined(tmp_path):
    first = write_instances(tmp_path / "a.json", {1: [(1, box(0, 0, 5, 5), 0)]})
    second = write_instances(tmp_path / "b.json", {2: [(2, box(0, 0, 5, 5), 0)]})
    joined = CocoInstances(first, second)
    assert joined.outlined(1) == {"dog"}
    assert joined.outlined(2) == {"person"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a COCO instances file"),
        ("[]", "not a COCO instances file"),
        ("{}", "not a COCO instances file"),
        ("[" * 100_000, "not a COCO instances file"),
        ('{"images": []}', "categories"),
        ('{"images": [{"id": 1}], "annotations": []}', "categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "kit"}]}', "none of"),
    ],
)
def test_foreign_files_are_refused(tmp_path, text, message):
    path = tmp_path / "foreign.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"foreign\.json.*{message}"):
        CocoInstances(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.json"):
        CocoInstances(tmp_path / "nowhere.json")


# --- geometry

sizes = st.integers(1, 13)


@settings(max_examples=60, deadline=None)
@given(height=sizes, width=sizes, rows=sizes, columns=sizes, seed=st.integers(0, 99))
def test_coverage_is_the_exact_area_average(height, width, rows, columns, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    fine = np.kron(mask, np.ones((rows, columns)))  # every cell is now a whole number of pixels
    expected = fine.reshape(rows, height, columns, width).mean(axis=(1, 3))
    np.testing.assert_allclose(grid_coverage(mask, (rows, columns)), expected, atol=1e-12)


def test_coverage_keeps_the_orientation(masks):
    coverage = grid_coverage(masks.mask(1, "dog"), (2, 4))  # the dog is at the top right
    np.testing.assert_allclose(coverage, [[0, 0, 1, 1], [0, 0, 0, 0]], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(height=sizes, width=sizes, rows=sizes, columns=sizes)
def test_cell_centres_lie_under_the_centre(height, width, rows, columns):
    ys, xs = cell_centres((rows, columns), (height, width))
    for r, y in enumerate(ys.ravel()):
        assert y <= (r + 0.5) * height / rows < y + 1 + 1e-9
    for c, x in enumerate(xs.ravel()):
        assert x <= (c + 0.5) * width / columns < x + 1 + 1e-9


@pytest.mark.parametrize("pixels", [0, 1, 3, 50])
def test_dilation_is_the_distance_to_the_mask(pixels):
    mask = np.random.default_rng(1).random((9, 12)) < 0.04
    ys, xs = np.nonzero(mask)
    rows, columns = np.indices(mask.shape)
    squared = (rows[..., None] - ys) ** 2 + (columns[..., None] - xs) ** 2
    assert (dilate(mask, pixels) == (squared.min(axis=-1) <= pixels**2)).all()
