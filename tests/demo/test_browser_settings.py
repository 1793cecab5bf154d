"""Settings, and what a visitor takes home."""

import json

import numpy as np
import pytest
from helpers.browser import overlay_alpha, save, shown_words, upload, wait_for_word
from helpers.known_captioner import SENTENCES, KnownCaptioner, known_maps
from helpers.tiny_files import make_photos
from PIL import Image

pytest.importorskip("gradio", reason="the extra demo is not installed")

from captioner.api import Captioner

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings") / "photos"
    make_photos(folder, 1)
    return folder / "00.png"


@pytest.fixture(scope="module")
def address(model, serve_demo):
    tiny, known = (
        each.from_pretrained(model, device="cpu") for each in (Captioner, KnownCaptioner)
    )
    return serve_demo({"tiny": tiny, "known": known})


@pytest.fixture
def page(visit, address, photo, settle):
    page = visit(address)
    upload(page, photo)
    page.get_by_role("button", name="Settings").click()
    settle(page)  # an accordion that is still opening puts old values back
    return page


def sentences(page):
    return page.locator("#viewer .candidate .text").all_text_contents()


def choose(page, name, option):
    page.locator(f"#{name} input").click()
    page.get_by_role("option", name=option).click()


def give_number(page, name, value):
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.blur()


def test_numbers_of_sentences_and_beams(page):
    from playwright.sync_api import expect

    give_number(page, "captions", 5)
    expect(page.locator("#viewer .candidate")).to_have_count(5)
    assert len(set(sentences(page))) == 5


def test_banned_and_required_words(page):
    from playwright.sync_api import expect

    first = sentences(page)[0]
    banned = first.split()[0]
    page.locator("#ban textarea, #ban input").first.fill(banned)
    page.keyboard.press("Enter")
    expect(page.locator("#viewer .candidate .text").first).not_to_have_text(first)
    assert not any(banned in text.split() for text in sentences(page))
    other = "dog" if banned != "dog" else "cat"
    page.locator("#require textarea, #require input").first.fill(other)
    page.keyboard.press("Enter")
    expect(page.locator("#viewer .candidate .text").first).to_contain_text(other)
    assert all(other in text.split() for text in sentences(page))


def test_a_word_that_the_model_does_not_have_is_told_and_can_be_mended(page):
    from playwright.sync_api import expect

    before = sentences(page)
    require = page.locator("#require textarea, #require input").first
    require.fill("dogg")
    require.press("Enter")
    field = page.locator("#require")
    expect(field).to_contain_text("required word 'dogg'; near: dog")
    expect(require).to_have_attribute("aria-invalid", "true")
    assert sentences(page) == before  # photo and sentences stay
    expect(page.locator("#viewer .viewer")).to_have_attribute("data-state", "ready")
    require.fill("dog")
    require.press("Enter")
    expect(page.locator("#viewer .candidate .text").first).to_contain_text("dog")
    expect(require).not_to_have_attribute("aria-invalid", "true")
    expect(field).not_to_contain_text("dogg")


def test_a_contradiction_and_a_new_photo_leave_the_old_one_with_a_message(page, tmp_path):
    from playwright.sync_api import expect

    before = sentences(page)
    for name in ("require", "ban"):
        field = page.locator(f"#{name} textarea, #{name} input").first
        field.fill("dog")
        field.press("Enter")
    expect(page.locator("#require")).to_contain_text("'dog' is banned and required")
    before = sentences(page)
    make_photos(tmp_path / "photos", 2)
    page.set_input_files("#photo input[type=file]", tmp_path / "photos" / "01.png")
    problem = page.locator("#viewer .problem")
    expect(problem).to_contain_text("'dog' is banned and required")
    assert sentences(page) == before
    page.locator("#ban textarea, #ban input").first.fill("")
    page.keyboard.press("Enter")
    expect(problem).to_be_hidden()
    expect(page.locator("#viewer .candidate .text").first).to_contain_text("dog")


def test_an_unknown_banned_word_says_so_at_its_field(page):
    from playwright.sync_api import expect

    field = page.locator("#ban textarea, #ban input").first
    field.fill("zebu")
    field.press("Enter")
    expect(page.locator("#ban")).to_contain_text("Unknown to the model, so never written: zebu")
    expect(field).not_to_have_attribute("aria-invalid", "true")


def test_a_slider_is_moved_by_arrow_keys(page):
    from playwright.sync_api import expect

    page.locator("#captions input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer .candidate")).to_have_count(4)
    page.keyboard.press("Home")
    expect(page.locator("#viewer .candidate")).to_have_count(1)


def test_sampling_with_another_seed_says_other_things(page):
    from playwright.sync_api import expect

    text = page.locator("#viewer .candidates")
    before = text.text_content()
    expect(page.locator("#seed")).to_be_hidden()
    choose(page, "mode", "Sampling")
    expect(text).not_to_have_text(before)
    sampled = text.text_content()
    give_number(page, "seed", 7)
    expect(text).not_to_have_text(sampled)
    expect(page.locator("#beam")).to_be_hidden()


def test_strength_dims_without_asking_the_model(page):
    page.locator("#viewer .word").first.click()
    wait_for_word(page, 0)
    before = overlay_alpha(page).max()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    give_number(page, "strength", 0.3)
    page.wait_for_function(
        """most => {
            const canvas = document.querySelector("#viewer canvas.overlay");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return Math.max(...data.filter((_, i) => i % 4 === 3)) < 255 * most;
        }""",
        arg=before - 0.02,
    )
    after = overlay_alpha(page).max()
    assert after == pytest.approx(before * 0.3 / 0.5, abs=0.01)
    assert page.locator("#viewer .viewer").get_attribute("data-word") == "0"
    assert not [url for url in asked if "queue" in url]


def test_another_model_captions_the_same_photo(page):
    choose(page, "model", "known")
    page.wait_for_selector("#viewer .word >> text=upper")
    assert shown_words(page) == list(SENTENCES[0])


@pytest.fixture
def take(visit, address, photo, settle, tmp_path):
    """Choose the second known sentence and download: ``take(kind) -> path``."""
    page = visit(address)
    page.get_by_role("button", name="Settings").click()
    settle(page)
    choose(page, "model", "known")
    upload(page, photo)
    page.locator("#viewer .candidate").nth(1).click()

    def take_home(kind):
        download = save(page, kind)
        path = tmp_path / download.suggested_filename
        download.save_as(path)
        return path

    return take_home


def test_files_to_take_home_are_of_the_sentence_on_show(take):
    words = list(SENTENCES[1])
    name = "-".join(words)

    numbers = take("numbers")
    assert numbers.name == f"{name}.json"
    content = json.loads(numbers.read_text(encoding="utf-8"))
    assert [word["word"] for word in content["words"]] == words
    maps = np.array([word["attention"] for word in content["words"]])
    np.testing.assert_allclose(maps, known_maps(words))

    strip = take("strip")
    assert strip.name == f"{name}.png"
    with Image.open(strip) as image:
        image.load()
        assert image.format == "PNG"

    film = take("film")
    assert film.name == f"{name}.gif"
    with Image.open(film) as image:
        assert image.is_animated
        assert image.n_frames == len(words) + 1
