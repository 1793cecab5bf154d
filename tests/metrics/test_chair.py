"""CHAIR, counted by hand."""

import json
import math

import pytest

from captioner.errors import DataError
from captioner.metrics.chair import measure_hallucination, read_objects


def split(*captions):
    return [caption.split() for caption in captions]


CANDIDATES = split(
    "a dog and a cat on a sofa",  # the cat is not there; the sofa is COCO's couch
    "a man with a dog and another dog",  # neither dog
    "grass in the sun",  # names nothing
    "a hot dog on a table",  # no dog is named; people mention the table
)
REFERENCES = [
    split("a puppy lies down"),
    split("a man stands"),
    split("a field"),
    split("food on a table"),
]
OBJECTS = [{"dog", "couch"}, {"person"}, set(), {"hot dog"}]


def test_chair_by_hand():
    found = measure_hallucination(CANDIDATES, REFERENCES, OBJECTS)
    assert (found.named, found.hallucinated) == (8, 3)
    assert found.chair_i == pytest.approx(3 / 8)
    assert found.chair_s == pytest.approx(2 / 4)
    assert found.per_photo == [("cat",), ("dog",), (), ()]
    assert found.by_category["dog"] == (3, 2)
    assert found.by_category["cat"] == (1, 1)
    assert found.by_category["dining table"] == (1, 0)


def test_what_a_reference_names_is_there():
    references = [*REFERENCES[:1], split("a man", "a man and his puppy"), *REFERENCES[2:]]
    found = measure_hallucination(CANDIDATES, references, OBJECTS)
    assert found.hallucinated == 1


def test_photos_without_annotations_or_caption_are_not_measured():
    candidates = [None, *CANDIDATES[1:]]
    found = measure_hallucination(candidates, REFERENCES, [*OBJECTS[:3], None])
    assert found.photos == 2
    assert found.per_photo == [None, ("dog",), (), None]
    assert found.chair_s == pytest.approx(1 / 2)


def test_nothing_named_is_undefined_and_not_zero():
    found = measure_hallucination(CANDIDATES[2:3], REFERENCES[2:3], OBJECTS[2:3])
    assert math.isnan(found.chair_i)
    assert found.chair_s == 0
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["chair_i"] is None
    assert dict(found.rows())["CHAIR_i"].startswith("- of 0")


def test_objects_are_read_from_instances_crowds_included(tmp_path):
    content = {
        "images": [{"id": 1}, {"id": 2}, {"id": 3}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "iscrowd": 1},
            {"image_id": 1, "category_id": 18, "iscrowd": 0},
            {"image_id": 2, "category_id": 18, "iscrowd": 0},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    assert read_objects([path]) == {1: {"person", "dog"}, 2: {"dog"}, 3: set()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a COCO instances file"),
        ('{"images": [], "annotations": []}', "categories"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "kit"}]}',
            "none of COCO's",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_objects([path])
    with pytest.raises(DataError, match="cannot read"):
        read_objects([tmp_path / "none.json"])
