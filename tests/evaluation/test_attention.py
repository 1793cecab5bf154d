import json
import math

import numpy as np
import pytest
import torch
from helpers.instances import box, write_instances

from captioner.errors import DataError
from captioner.evaluation.attention import AttentionMeasure, centre_map, pointing
from captioner.evaluation.masks import CocoInstances, grid_coverage
from captioner.metrics.coco_categories import CATEGORIES
from captioner.models.attention import map_entropy


def measure_attention(captions, objects, *, tolerance=0, **options):
    """The report of (image id, words, maps) triples."""
    measure = AttentionMeasure(objects, tolerance=tolerance)
    for image_id, words, maps in captions:
        measure.add(image_id, words, maps)
    return measure.report(**options)


def coverage(masks, image_id, category, grid):
    return grid_coverage(masks.mask(image_id, category), grid)


def uniform(words, grid=(6, 8)):
    return np.full((len(words), *grid), 1 / (grid[0] * grid[1]))


# --- the measures of one map


def test_entropy_runs_from_one_cell_to_uniform():
    one_cell, half = torch.zeros(35), torch.zeros(16)
    one_cell[17], half[:8] = 1, 1 / 8
    assert map_entropy(one_cell) == 0
    assert map_entropy(torch.full((35,), 1 / 35)) == pytest.approx(1)
    assert map_entropy(torch.ones(1)) == 0
    assert map_entropy(torch.stack((half, half))).tolist() == pytest.approx(
        [math.log(8) / math.log(16)] * 2
    )


def test_pointing_takes_the_peak_and_shares_ties():
    mask = box(0, 20, 15, 40)
    weights = np.full((2, 2), 0.1)
    weights[0, 1] = 0.7
    assert pointing(weights, mask) == 1
    assert pointing(weights[::-1], mask) == 0
    assert pointing(np.array([[0.0, 0.5], [0.5, 0.0]]), mask) == 0.5


def test_centre_map_is_symmetric_and_the_same_blob_on_every_grid():
    blob = centre_map((14, 14))
    assert blob.sum() == pytest.approx(1)
    np.testing.assert_allclose(blob, blob[::-1, ::-1])
    np.testing.assert_allclose(blob.reshape(7, 2, 7, 2).sum(axis=(1, 3)), centre_map((7, 7)))
    assert centre_map((7, 5)).argmax() == 17


# --- the measurement


def test_perfect_maps_score_one(masks):
    words = ["a", "dog"]
    maps = uniform(words)
    dog = coverage(masks, 1, "dog", (6, 8))
    maps[1] = dog / dog.sum()
    report = measure_attention([(1, words, maps)], masks)
    assert report.named.words == 1
    assert report.named.correctness == pytest.approx(1)
    assert report.named.pointing == 1
    assert report.named.correctness_uniform == pytest.approx(0.25)  # a quarter of the photo
    assert report.named.ratio == pytest.approx(4)
    assert report.named.entropy == pytest.approx(math.log(12) / math.log(48))
    assert report.entropy == pytest.approx((1 + report.named.entropy) / 2)


def test_uniform_maps_equal_their_baseline(masks):
    captions = [(i, words, uniform(words, (14, 14))) for i, words in enumerate(
        [["a", "dog"], ["two", "people"]], start=1
    )]  # fmt: skip
    named = measure_attention(captions, masks).named
    assert named.ratio == pytest.approx(1, abs=1e-12)
    assert named.pointing == pytest.approx(named.pointing_uniform)
    assert named.entropy == pytest.approx(1)
    shares = [masks.mask(1, "dog").mean(), masks.mask(2, "person").mean()]
    assert named.correctness_uniform == pytest.approx(np.mean(shares))


def test_centre_maps_equal_their_baseline(masks):
    words = ["people"]
    named = measure_attention([(2, words, centre_map((7, 7))[None])], masks).named
    assert named.correctness == pytest.approx(named.correctness_centre)
    assert named.pointing == named.pointing_centre == 1
    assert named.pointing_gain == 0
    assert named.entropy == pytest.approx(named.entropy_centre)


def test_only_present_categories_are_measured(masks):
    words = ["a", "dog", "two", "red", "people", "running"]
    report = measure_attention([(2, words, uniform(words))], masks)
    assert set(report.by_category) == {"person"}  # the dogs of photo 2 are a crowd region
    assert {name: figures.words for name, figures in report.by_class.items()} == {
        "colour": 1,
        "function": 1,
        "no mask": 1,
        "number": 1,
        "other": 1,
        "person": 1,
    }
    assert report.words == 6
    assert report.by_class["other"].entropy == pytest.approx(1)
    assert math.isnan(report.by_class["other"].correctness)


def test_words_weigh_the_same_and_tables_add_up(masks):
    rng = np.random.default_rng(0)
    captions = []
    for image_id, words in [(1, ["dog"]), (2, ["man", "and", "woman"]), (1, ["puppy", "dog"])]:
        maps = rng.random((len(words), 4, 5))
        captions.append((image_id, words, maps / maps.sum(axis=(1, 2), keepdims=True)))
    report = measure_attention(captions, masks)
    assert (report.images, report.captions, report.images_measured) == (2, 3, 2)
    assert report.named.words == 5
    dog, person = report.by_category["dog"], report.by_category["person"]
    mixed = (3 * dog.correctness + 2 * person.correctness) / 5
    assert report.named.correctness == pytest.approx(mixed)
    inside = coverage(masks, 1, "dog", (4, 5))
    expected = [(maps * inside).sum() for i, _, all_maps in captions if i == 1 for maps in all_maps]
    assert dog.correctness == pytest.approx(np.mean(expected))
    assert report.by_class["animal"] == dog


def test_tolerance_turns_a_near_miss_into_a_hit(masks):
    weights = np.zeros((1, 3, 4))
    weights[0, 0, 1] = 1  # its centre is the pixel (5, 15), five columns left of the dog
    hits = [
        measure_attention([(1, ["dog"], weights)], masks, tolerance=pixels).named.pointing
        for pixels in (0, 4, 5, 9)
    ]
    assert hits == [0, 0, 1, 1]


def test_intervals_hold_the_mean_and_depend_on_the_seed_alone(tmp_path):
    rng = np.random.default_rng(3)
    photos = {i: [(1, box(0, 0, 5 + i % 20, 10 + i % 30), 0)] for i in range(1, 41)}
    masks = CocoInstances(write_instances(tmp_path / "instances.json", photos))
    captions = [(i, ["dog"], rng.dirichlet(np.ones(20)).reshape(1, 4, 5)) for i in photos]
    report = measure_attention(captions, masks, samples=200)
    means = report.named.to_dict() | {
        "entropy": report.entropy,
        "entropy_named": report.named.entropy,
    }
    for name, (low, high) in report.intervals.items():
        assert low < means[name] < high
    assert set(report.intervals) == {
        "correctness", "ratio", "pointing", "pointing_gain", "entropy", "entropy_named",
    }  # fmt: skip
    assert measure_attention(captions, masks, samples=200) == report
    assert measure_attention(captions, masks, samples=200, seed=1).intervals != report.intervals
    wider = measure_attention(captions, masks, samples=200, confidence=0.99).intervals["ratio"]
    assert wider[0] <= report.intervals["ratio"][0]
    assert wider[1] >= report.intervals["ratio"][1]


def test_one_photo_has_no_interval_and_what_is_undefined_is_no_number(masks):
    words = ["a", "cat"]
    report = measure_attention([(1, words, uniform(words))], masks, samples=20)
    assert report.intervals == {}
    assert report.named.words == 0
    assert report.entropy == pytest.approx(1)
    assert "nan" not in report.table()
    assert measure_attention([(1, ["dog"], uniform(["dog"]))], masks).intervals == {}


@pytest.mark.parametrize(
    "captions",
    [
        [],
        [(3, ["a", "dog"], np.full((2, 2, 2), 0.25))],
        [(1, [], np.zeros((0, 2, 2))), (1, [], np.zeros(0))],
        [(1, ["dog"], np.full((1, 2, 2), 0.25))],
    ],
    ids=["nothing", "nothing-named", "empty-captions", "one-photo"],
)
def test_every_report_prints_and_is_plain_json(masks, captions):
    report = measure_attention(captions, masks, samples=20)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["captions"] == len(captions)
    assert f"{report.named.words} of {report.words} words" in report.table()
    assert report.table().startswith(report.table(details=False))


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.full((2, 2, 2), 0.25), "1 words need maps"),
        (np.full((1, 4), 0.25), "1 words need maps"),
        (np.full((1, 2, 2), 0.2), "sum to 1"),
        (np.array([[[1.5, -0.5]]]), "negative"),
        (np.full((1, 2, 2), np.nan), "sum to 1"),
    ],
)
def test_wrong_maps_are_refused(masks, maps, message):
    with pytest.raises(DataError, match=message):
        measure_attention([(1, ["dog"], maps)], masks)


@pytest.mark.parametrize("scale", [0.995, 1.005])
def test_rounded_maps_are_made_to_sum_to_one(masks, scale):
    maps = (uniform(["dog"], (14, 14)) * scale).astype(np.float16)
    named = measure_attention([(1, ["dog"], maps)], masks).named
    assert named.ratio == pytest.approx(1, abs=1e-12)
    assert named.entropy == pytest.approx(1)


def test_unknown_photo_is_named(masks):
    with pytest.raises(DataError, match="77"):
        measure_attention([(77, ["dog"], uniform(["dog"]))], masks)


# --- the real photos, where they are at hand


def test_real_masks(shared_data):
    folder = shared_data / "coco"
    masks = CocoInstances(folder / "instances_val.json")
    listed = json.loads((folder / "instances_val.json").read_text())["categories"]
    assert {entry["name"] for entry in listed} == set(CATEGORIES)
    captions = json.loads((folder / "captions_val.json").read_text())["annotations"]
    captions = [
        (entry["image_id"], entry["caption"].lower().rstrip(".").split())
        for entry in captions
        if entry["image_id"] in masks
    ]
    grid = (14, 14)
    blobs = [
        (i, words, np.broadcast_to(centre_map(grid), (len(words), *grid))) for i, words in captions
    ]
    report = measure_attention(blobs, masks, samples=50)
    assert 0.1 < report.named.correctness_uniform < 0.25
    assert 1.1 < report.named.ratio < 1.7  # photographers centre their subject
    assert 0.2 < report.named.pointing_centre < 0.5
