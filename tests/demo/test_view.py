"""What a visitor of the demo looks at, and what of it goes to the browser."""

import base64
import io
import json
import math

import numpy as np
import pytest
from helpers.damaged import png_header
from PIL import Image

pytest.importorskip("gradio", reason="the extra demo is not installed")

import gradio as gr

from captioner.api import Captioner
from captioner.demo.downloads import KINDS, make_file
from captioner.demo.models import Models
from captioner.demo.payload import (
    chance,
    encode_half,
    encode_look,
    encode_map,
    error_payload,
    find_nouns,
    lit_word,
    place,
    view_payload,
)
from captioner.demo.session import SHOWN_SIDE, caption_image, continue_sentence, score_sentence
from captioner.demo.tabs.caption import on_other_word
from captioner.errors import CaptionerError, ConfigError, ImageError
from captioner.image.look import half_level, heat_colours, heat_opacity, light
from captioner.image.visualize import spread_weights


@pytest.fixture(scope="module")
def captioner(model):
    return Captioner.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    coarse = np.random.default_rng(1).integers(0, 255, (5, 3, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photo") / "portrait.png"
    Image.fromarray(coarse).resize((1200, 2000)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def view(captioner, photo):
    return caption_image(captioner, photo, {"beam": 3, "num_captions": 3})


def test_a_view_holds_what_the_library_says(captioner, photo, view):
    expected = captioner(photo, beam=3, num_captions=3)
    assert [each.text for each in view.sentences] == [each.text for each in expected.candidates]
    found = [each.log_prob for each in view.sentences]
    assert found == pytest.approx([each.score for each in expected.candidates])
    for sentence, candidate in zip(view.sentences, expected.candidates, strict=True):
        np.testing.assert_array_equal(sentence.attention, candidate.attention)


def test_the_photo_is_made_small_and_keeps_its_shape(view):
    assert max(view.size) == SHOWN_SIDE
    assert view.image.size == view.size
    assert view.size[0] / view.size[1] == pytest.approx(1200 / 2000, abs=1e-3)


def test_a_turned_photo_is_shown_upright(captioner, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (90, 30), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert caption_image(captioner, str(tmp_path / "turned.jpg"), {}).size == (30, 90)


def test_probabilities_are_those_of_the_words(view):
    for sentence in view.sentences:
        assert len(sentence.probabilities) == len(sentence.words)
        logs = [math.log(probability) for probability in sentence.probabilities]
        assert logs == pytest.approx(sentence.log_probs[: len(sentence.words)], abs=1e-5)


@pytest.mark.parametrize("content", [b"", b"<svg onload=alert(1)>" * 9, png_header(50_000, 50_000)])
def test_what_is_no_photo_is_told_without_the_servers_path(captioner, tmp_path, content):
    path = tmp_path / "secret-place.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"^This photo cannot be used: .") as caught:
        caption_image(captioner, str(path), {})
    assert "secret" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_photo_that_has_gone_is_told_without_its_path(captioner, tmp_path):
    with pytest.raises(CaptionerError, match="no longer here") as caught:
        caption_image(captioner, str(tmp_path / "gone.jpg"), {})
    assert "gone.jpg" not in str(caught.value)


def test_options_that_contradict_each_other_are_told(captioner, photo):
    with pytest.raises(ConfigError):
        caption_image(captioner, photo, {"beam": 1, "num_captions": 2})


def test_an_own_sentence_takes_the_place_of_the_last_one(captioner, photo, view):
    first = score_sentence(captioner, view, "A dog runs.")
    assert [each.origin for each in first.sentences] == ["model"] * 3 + ["yours"]
    assert first.sentence.words == ["a", "dog", "runs"]
    assert first.sentence.log_prob == pytest.approx(captioner.score(photo, "a dog runs").total)
    second = score_sentence(captioner, first, "a zorbly cat")
    assert [each.origin for each in second.sentences] == ["model"] * 3 + ["yours"]
    assert second.sentence.known == [True, False, True]


def test_another_word_leads_on(captioner, photo, view):
    words = view.sentence.words
    offered = view_payload(view)["sentences"][0]["words"]
    assert all(len(word["others"]) == 5 or not index for index, word in enumerate(offered))
    assert "<end>" not in [other for other, _ in offered[0]["others"]]
    found = dict(offered[0]["others"])
    assert found[words[0]] == offered[0]["probability"]
    other = next(each for each in found if each != words[0])
    longer = continue_sentence(captioner, view, 0, other, {"beam": 3, "num_captions": 3})
    assert longer.sentence.words == captioner(photo, beam=3, prefix=other).words
    assert longer.sentence.origin == "continued"
    assert len(longer.sentences) == len(view.sentences) + 1
    ended = continue_sentence(captioner, longer, 1, "<end>", {})
    assert ended.sentence.words == [other]
    assert len(ended.sentences) == len(view.sentences) + 1  # in the place of the last one
    with pytest.raises(ConfigError, match="zorbly"):
        continue_sentence(captioner, view, 1, "zorbly", {})


@pytest.mark.parametrize(
    "data", [None, {}, {"place": 99, "word": "dog"}, {"place": 0, "word": "dog " * 99}]
)
def test_a_word_that_the_page_cannot_send_is_refused(captioner, view, data):
    models = Models.of({"tiny": captioner})
    with pytest.raises(gr.Error):
        on_other_word(models, data, view, "tiny", "spotlight", 0.5)
    with pytest.raises(gr.Error):
        on_other_word(models, {"place": 0, "word": "dog"}, None, "tiny", "spotlight", 0.5)
    payload, _ = on_other_word(
        models, {"place": 0, "word": "dog"}, view, "tiny", "spotlight", 0.5, "Beam search"
    )
    assert payload["sentences"][-1]["text"].startswith("dog")


def test_choosing_what_is_not_there_changes_nothing(view):
    assert view.choose(2).sentence is view.sentences[2]
    for index in (-1, 3):
        assert view.choose(index) is view


def test_the_payload_is_json_that_can_be_drawn(view):
    payload = json.loads(json.dumps(view_payload(view.choose(1), "heatmap", 0.3)))
    assert (payload["chosen"], payload["style"], payload["strength"]) == (1, "heatmap", 0.3)
    kind, data = payload["photo"].split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == view.size
    assert (payload["width"], payload["height"]) == view.size
    for sentence, shown in zip(view.sentences, payload["sentences"], strict=True):
        assert [word["text"] for word in shown["words"]] == sentence.words
        rows, columns = shown["grid"]
        for word in shown["words"]:
            assert len(base64.b64decode(word["map"])) == rows * columns


def test_a_payload_is_new_even_if_nothing_changed(view):
    """Else the page would keep a choice that the server has forgotten."""
    one, two = view_payload(view), view_payload(view)
    assert one.pop("id") != two.pop("id")
    assert one == two


def test_a_map_keeps_its_shape_to_a_255th():
    cells = np.random.default_rng(0).random((4, 6)) * 0.01
    bytes_ = np.frombuffer(base64.b64decode(encode_map(cells)), np.uint8).reshape(4, 6)
    np.testing.assert_allclose(bytes_ / 255, cells / cells.max(), atol=0.5 / 255 + 1e-6)


def test_a_map_of_nothing_or_nonsense_is_dark():
    assert set(base64.b64decode(encode_map(np.zeros((2, 2))))) == {0}
    assert list(base64.b64decode(encode_map(np.array([[np.nan, -1.0], [np.inf, 2.0]])))) == [
        *(0, 0, 0, 255)
    ]


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        *((0, 0, "top left"), (0, 7, "top"), (0, 13, "top right")),
        *((6, 1, "left"), (6, 7, "centre"), (7, 13, "right")),
        *((13, 0, "bottom left"), (13, 6, "bottom"), (13, 13, "bottom right")),
    ],
)
def test_a_peak_in_words(row, column, expected):
    cells = np.full((14, 14), 0.1)
    cells[row, column] = 1
    assert place(cells) == expected


def test_a_flat_map_in_words():
    assert place(np.full((7, 7), 1 / 49)) == "everywhere"


def test_the_page_draws_by_the_librarys_tables():
    tables = encode_look()
    heat = np.frombuffer(base64.b64decode(tables["heat"]), np.uint8).reshape(256, 4)
    np.testing.assert_array_equal(heat[:, :3], heat_colours())
    np.testing.assert_allclose(heat[:, 3] / 255, heat_opacity(), atol=0.002)
    lit = np.frombuffer(base64.b64decode(tables["light"]), np.uint8)
    np.testing.assert_allclose(lit / 255, light(), atol=0.002)


def test_the_outline_is_at_the_same_level_at_any_size():
    cells = np.random.default_rng(0).random((7, 7)) ** 3
    level = half_level(spread_weights(cells, (900, 600)))
    assert encode_half(cells) == pytest.approx(level, abs=0.01)
    assert json.dumps(encode_half(np.zeros((7, 7)))) == "2.0"


@pytest.mark.parametrize(
    ("probability", "said"),
    [
        *((1, "over 99 %"), (0.99, "99 %"), (0.284, "28 %"), (0.0284, "2.8 %"), (0.001, "0.1 %")),
        *((0.0009, "1 in 1,000"), (1 / 43_210, "1 in 43,000"), (1 / 999_400, "1 in 999,000")),
        *(
            (1 / 999_600, "1 in 1 million"),
            (1 / 2.4e9, "1 in 2 billion"),
            (1e-12, "1 in 1 trillion"),
        ),
        (1e-40, "under 1 in 1,000 trillion"),
    ],
)
def test_chances_can_be_compared(probability, said):
    assert chance(math.log(probability)) == said


def test_a_sentence_has_one_chance_whatever_search_found_it(captioner, photo, view):
    """The score depends on the length penalty, what the page shows does not."""
    other = caption_image(captioner, photo, {"beam": 3, "num_captions": 3, "length_penalty": 2.0})
    own = score_sentence(captioner, view, view.sentences[0].text)
    shown = [
        {each["text"]: each["chance"] for each in view_payload(given)["sentences"]}
        for given in (view, other, own)
    ]
    assert shown[0].keys() & shown[1].keys()
    for text in shown[0].keys() & shown[1].keys():
        assert shown[0][text] == shown[1][text]
    assert [*shown[2].values()][-1] == shown[0][view.sentences[0].text]


def test_drawn_sentences_come_the_likeliest_first_and_bars_compare_with_it(captioner, photo):
    options = {"sample": True, "num_captions": 6, "temperature": 1.5, "seed": 3}
    drawn = caption_image(captioner, photo, options)
    found = [each.log_prob for each in drawn.sentences]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) > 1
    shares = [each["share"] for each in view_payload(drawn)["sentences"]]
    assert shares[0] == 1
    assert shares == pytest.approx([math.exp(each - found[0]) for each in found], abs=1e-4)


@pytest.mark.parametrize(
    ("sentence", "nouns"),
    [
        ("a cup of coffee on a table", ["cup", "coffee", "table"]),
        ("a cup of coffee sitting near tea", ["cup", "coffee", "tea"]),
        ("a large building in the snow", ["snow"]),
        ("a dog on top of the snow", ["dog", "snow"]),
        ("a man who runs is covered in red paint", ["man", "paint"]),
        ("a dog that runs", ["dog"]),
        ("the sun sets", []),  # rather none than a verb
        ("surfing the waves", ["waves"]),
        ("", []),
    ],
)
def test_nouns_are_found_by_what_stands_around_them(sentence, nouns):
    words = sentence.split()
    assert [words[index] for index in find_nouns(words)] == nouns


@pytest.mark.parametrize(
    ("words", "sharp", "expected"),
    [
        ("a cup of coffee on a table", 3, 3),
        ("a dog runs on the sand", 1, 1),
        ("a dog and a cat on the sand", 6, 1),  # "the": no function word stays lit
        ("a dog and a cat on the sand", 4, 4),  # of two nouns, the one with the sharper map
        ("the sun is setting", 3, 1),  # no category of COCO; no verb in -ing
        ("running", 0, 0),
        ("of the", 1, 1),
    ],
)
def test_the_noun_with_the_sharpest_map_stays_lit(words, sharp, expected):
    words = words.split()
    maps = np.full((len(words), 4, 4), 1 / 16)
    maps[[index for index, word in enumerate(words) if word == "dog"], 0] += 1
    maps[sharp] = np.eye(16)[5].reshape(4, 4)
    assert lit_word(words, [0.5] * len(words), maps) == expected


def test_a_sure_noun_stays_lit_rather_than_a_guess_with_a_sharp_map():
    words = ["a", "cat", "on", "a", "table"]
    maps = np.full((5, 4, 4), 1 / 16)
    maps[1, :2] += 1
    maps[4, :1] += 1
    assert lit_word(words, [0.9] * 5, maps) == 4
    assert lit_word(words, [0.9, 0.9, 0.9, 0.9, 0.1], maps) == 1


def test_no_words_light_nothing():
    assert lit_word([], [], np.zeros((0, 4, 4))) is None


def test_messages_start_with_a_capital_letter():
    assert error_payload("the model is gone") == {"error": "The model is gone"}
    assert error_payload("") == {"error": ""}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["spotlight", "heatmap"])
def test_files_to_take_home(view, kind, style):
    name, content = make_file(view.choose(1), kind, style, 0.6)
    assert name.rsplit(".", 1)[0].replace("-", " ") == view.sentences[1].text.lower()[:60].strip()
    if kind == "numbers":
        found = json.loads(content)
        assert found["caption"] == view.sentences[1].text
        maps = np.array([word["attention"] for word in found["words"]])
        np.testing.assert_allclose(maps, view.sentences[1].attention, atol=1e-5)
    else:
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == {"strip": "PNG", "film": "GIF"}[kind]
            frames = len(view.sentences[1].words) + 1 if kind == "film" else 1
            assert getattr(image, "n_frames", 1) == frames
