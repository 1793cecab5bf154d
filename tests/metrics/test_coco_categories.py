import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.metrics.coco_categories import CATEGORIES, name_categories, word_class


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("a puppy and two geese", {"puppy": "dog", "geese": "bird"}),
        ("people on bikes", {"people": "person", "bikes": "bicycle"}),
        ("a motorbike near a jet", {"motorbike": "motorcycle", "jet": "airplane"}),
        ("a sofa and a television", {"sofa": "couch", "television": "tv"}),
        ("babies with toothbrushes", {"babies": "person", "toothbrushes": "toothbrush"}),
        ("knives beside scissors", {"knives": "knife", "scissors": "scissors"}),
        # compounds count at their last word
        ("a hot dog", {"dog": "hot dog"}),
        ("two teddy bears", {"bears": "teddy bear"}),
        ("a red traffic light", {"light": "traffic light"}),
        ("a tennis player with a tennis racket", {"player": "person", "racket": "tennis racket"}),
        ("a laptop computer on a dining table", {"computer": "laptop", "table": "dining table"}),
        ("a cell phone by a fire hydrant", {"phone": "cell phone", "hydrant": "fire hydrant"}),
        ("a microwave oven", {"oven": "microwave"}),
        ("a passenger train", {"train": "train"}),
        # qualifiers name nothing
        ("a train station", {}),
        ("the clock tower", {}),
        ("a bowl of dog food", {"bowl": "bowl"}),
        ("a baby elephant", {"elephant": "elephant"}),
        ("a mother polar bear", {"bear": "bear"}),
        ("people riding horses", {"people": "person", "horses": "horse"}),
        ("a coffee table", {}),
        # two readings
        ("an orange cat", {"cat": "cat"}),
        ("a bowl of oranges", {"bowl": "bowl", "oranges": "orange"}),
        ("a bat in a cave", {}),
        ("a batter swings a bat", {"batter": "person", "bat": "baseball bat"}),
        ("a mouse in the grass", {}),
        ("a keyboard and a mouse", {"keyboard": "keyboard", "mouse": "mouse"}),
        ("a glass of water", {}),
        ("a glass of wine", {"glass": "wine glass"}),
        ("two wine glasses", {"glasses": "wine glass"}),
        ("on top of a remote beach", {}),
        ("a lap top", {"top": "laptop"}),
        ("a man will tie his shoe", {"man": "person"}),
        ("a man in a tie", {"man": "person", "tie": "tie"}),
        ("", {}),
    ],
)
def test_names(sentence, named):
    words = sentence.split()
    found = {w: c for w, c in zip(words, name_categories(words), strict=True) if c is not None}
    assert found == named


@pytest.mark.parametrize("category", [c for c in CATEGORIES if c != "orange"])
def test_every_category_is_named_by_itself(category):
    words = category.split()
    context = ["baseball", "computer"]  # settles bat, glove and mouse
    named = name_categories(["a", *words, "beside", *context])
    assert named[len(words)] == category
    assert [c for c in named if c is not None] == [category]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "a",
                "baby",
                "hot",
                "dog",
                "teddy",
                "bear",
                "stop",
                "light",
                "glass",
                "of",
                "wine",
                "tie",
            ]
        )
    )
)
def test_any_sentence_gets_one_entry_a_word(words):
    named = name_categories(words)
    assert len(named) == len(words)
    assert {name for name in named if name is not None} <= set(CATEGORIES)


def test_word_classes():
    classes = [word_class(word) for word in ("the", "red", "three", "running", "<unk>")]
    assert classes == ["function", "colour", "number", "other", "other"]
