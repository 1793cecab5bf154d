"""Objects that the tests of attention and of masks share."""

import pytest
from helpers.instances import box, write_instances

from captioner.evaluation.masks import CocoInstances


@pytest.fixture
def masks(tmp_path):
    # Image 1: a dog at the top right. Image 2: two overlapping people and a crowd of dogs.
    images = {
        1: [(1, box(0, 20, 15, 40), 0)],
        2: [(2, box(0, 0, 20, 20), 0), (2, box(10, 10, 30, 30), 0), (1, box(0, 0, 30, 40), 1)],
        3: [],
    }
    return CocoInstances(write_instances(tmp_path / "instances.json", images))
