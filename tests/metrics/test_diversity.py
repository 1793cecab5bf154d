"""Diversity, counted by hand."""

import json
import math

import pytest

from captioner.metrics.diversity import measure_diversity, training_captions


def split(*captions):
    return [caption.split() for caption in captions]


REFERENCES = [
    split("a dog runs", "a dog on grass"),
    split("a zebra stands", "one zebra", "a striped horse"),
    split("a dog sleeps", "a dog"),
]


def test_distinct_words_and_pairs():
    found = measure_diversity(split("a dog runs", "a dog", "a dog"), REFERENCES)
    assert found.captions == 3
    assert found.distinct1 == pytest.approx(3 / 7)  # a, dog, runs
    assert found.distinct2 == pytest.approx(2 / 4)  # a dog, dog runs
    assert found.distinct_captions == pytest.approx(1 / 3)
    assert found.vocabulary == 3
    assert found.mean_length == pytest.approx(7 / 3)
    assert found.lengths == {2: 2, 3: 1}
    assert found.copied is None


def test_captions_that_repeat_a_word():
    """Function words may come twice."""
    captions = split("a dog and a dog", "a man in a hat", "a white dog on white snow")
    assert measure_diversity(captions, REFERENCES).repeating == 2


def test_pairs_do_not_cross_captions():
    assert measure_diversity(split("a", "b"), REFERENCES[:2]).to_dict()["distinct2"] is None


def test_all_captions_equal():
    found = measure_diversity(split("a b", "a b", "a b"), REFERENCES)
    assert (found.distinct1, found.distinct2) == pytest.approx((2 / 6, 1 / 3))
    assert found.distinct_captions == 0
    assert found.vocabulary == 2


def test_copies_are_found_whatever_their_case_and_punctuation():
    training = training_captions(["A dog runs.", "Two cats"])
    found = measure_diversity(split("a dog runs", "a dog", "a cat"), REFERENCES, training)
    assert found.copied == pytest.approx(1 / 3)


def test_rare_words_are_those_that_two_people_use_and_few_photos_have():
    # "zebra" is expected in the second photo; "dog" is in two of three photos, "striped" is one
    # person's word.
    seen = measure_diversity(split("a dog", "a zebra", "a dog"), REFERENCES)
    assert (seen.rare_expected, seen.rare_recalled) == (1, 1)
    missed = measure_diversity(split("a dog", "a striped horse", "a dog"), REFERENCES)
    assert (missed.rare_expected, missed.rare_recalled) == (1, 0)
    absent = measure_diversity([["a"], None, ["a"]], REFERENCES)
    assert (absent.captions, absent.rare_expected, absent.rare_recalled) == (2, 1, 0)


def test_one_reference_is_enough_where_there_is_one():
    found = measure_diversity(split("an owl", "a dog"), [split("an owl"), split("a dog")])
    assert found.rare_expected == 4  # an, owl, a, dog: each in one photo
    assert found.rare_recalled == 1


def test_empty_captions_are_captions():
    found = measure_diversity([[], []], REFERENCES[:2])
    assert found.captions == 2
    assert found.lengths == {0: 2}
    assert math.isnan(found.distinct1)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["distinct1"] is None
    assert ("words a caption", "0.0 (0 to 0)") in found.rows()
    assert ("distinct-1, -2", "-, -") in found.rows()
