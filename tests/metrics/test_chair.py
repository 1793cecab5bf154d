"""CHAIR, counted by hand."""

import json
import math
from importlib.resources import files

import pytest

from captioner.metrics.chair import measure_hallucination, name_objects
from captioner.metrics.coco_categories import CATEGORIES


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
    assert found.per_image == [("cat",), ("dog",), (), ()]
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
    assert found.images == 2
    assert found.per_image == [None, ("dog",), (), None]
    assert found.chair_s == pytest.approx(1 / 2)


def test_nothing_named_is_undefined_and_not_zero():
    found = measure_hallucination(CANDIDATES[2:3], REFERENCES[2:3], OBJECTS[2:3])
    assert math.isnan(found.chair_i)
    assert found.chair_s == 0
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["chair_i"] is None
    assert dict(found.rows())["CHAIR_i"].startswith("- of 0")


def test_the_list_has_every_category_and_no_name_twice():
    lines = files("captioner.metrics").joinpath("chair_synonyms.txt").read_text().splitlines()
    names = [line.split(", ") for line in lines]
    assert sorted(first for first, *_ in names) == sorted(CATEGORIES)
    flat = [name for line in names for name in line]
    assert len(flat) == len(set(flat))


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("two men on bikes chase puppies", ["person", "bicycle", "dog"]),
        ("children and people with knives", ["person", "person", "knife"]),
        ("a baby elephant beside a baby", ["elephant", "person"]),
        ("an adult giraffe and adults", ["giraffe", "person"]),
        ("a passenger train with passengers", ["train", "person"]),
        ("hot dogs on a dining table", ["hot dog", "dining table"]),
        ("a man in a bow tie", ["person", "tie"]),
        ("the toilet seat is up", ["toilet"]),
        ("the seat of a toilet", ["toilet"]),
        ("seats in a stadium", ["chair"]),
        ("a traffic light and a street light", ["traffic light", "traffic light"]),
        ("a runner slides into home plate", []),
        ("a motor bike on train tracks", []),  # as in the authors' program
        ("a teddy bear and two wine glasses", ["teddy bear", "wine glass"]),
        ("skis buses sheep geese ladies", ["skis", "bus", "sheep", "bird", "person"]),
        ("a glass of water", []),
    ],
)
def test_objects_are_named_as_by_the_authors(caption, named):
    assert name_objects(caption.split()) == named
