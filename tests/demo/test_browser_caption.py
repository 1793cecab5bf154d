"""The first tab as a person uses it, with a captioner whose maps are known (known_captioner.py)."""

import numpy as np
import pytest
from helpers.browser import (
    PHONE,
    overlay_alpha,
    photograph,
    put_out,
    shown_words,
    stop_the_clock,
    upload,
    wait_for_word,
)
from helpers.known_captioner import (
    CELLS,
    GRID,
    PROBABILITIES,
    SENTENCES,
    KnownCaptioner,
    known_maps,
)
from PIL import Image

pytest.importorskip("gradio", reason="the extra demo is not installed")

from captioner.image.visualize import overlay

pytestmark = pytest.mark.browser

SHAPES = {"landscape": (600, 400), "portrait": (300, 500)}
WORDS = SENTENCES[0]


@pytest.fixture(scope="module")
def address(model, serve_demo):
    return serve_demo({"known": KnownCaptioner.from_pretrained(model, device="cpu")})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of smooth colourful photos by shape, none of whose pixels is dark."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in SHAPES.items():
        coarse = rng.integers(120, 255, (4, 4, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
        photo.save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in SHAPES}


@pytest.fixture
def page(visit, address, pictures):
    page = visit(address)
    upload(page, pictures["landscape"])
    return page


def word(page, index):
    return page.locator("#viewer .words .word").nth(index)


def image(page):
    return page.locator("#viewer img.photo")


def test_a_photo_is_answered_by_its_caption(page):
    assert shown_words(page) == list(WORDS)
    assert image(page).get_attribute("alt") == " ".join(WORDS)
    candidates = page.locator("#viewer .candidate .text")
    assert candidates.all_text_contents() == [" ".join(words) for words in SENTENCES]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_light_falls_on_the_words_place(visit, address, pictures, shape):
    page = visit(address)
    upload(page, pictures[shape])
    photo = Image.open(pictures[shape])
    boxes = [page.locator(f"#viewer {name}").bounding_box() for name in (".photo", ".overlay")]
    assert boxes[0] == pytest.approx(boxes[1])
    assert boxes[0]["width"] / boxes[0]["height"] == pytest.approx(photo.width / photo.height, 0.01)
    for index, name in enumerate(WORDS):
        word(page, index).hover()
        wait_for_word(page, index)
        seen = np.asarray(photograph(page).resize(photo.size), float).mean(2)
        kept = seen / np.asarray(photo, float).mean(2)  # share of the light that is left
        cells = cell_means(kept)
        assert np.unravel_index(cells.argmax(), GRID) == CELLS[name]
        row, column = ((np.array(CELLS[name]) + 0.5) / GRID * kept.shape).astype(int)
        assert 0.97 < kept[row, column] < 1.03
        far = np.abs(np.indices(GRID) - np.array(CELLS[name])[:, None, None]).max(0) > 1
        assert np.all(cells[far] < 0.55)  # a floor of 50 %


def cell_means(values):
    height, width = (size // cells for size, cells in zip(values.shape, GRID, strict=True))
    cut = values[: height * GRID[0], : width * GRID[1]]
    return cut.reshape(GRID[0], height, GRID[1], width).mean((1, 3))


@pytest.mark.parametrize("style", ["spotlight", "heatmap"])
def test_the_page_shows_what_the_library_draws(page, pictures, style):
    if style == "heatmap":
        page.get_by_role("button", name="Settings").click()
        page.get_by_role("radio", name="Heat map").check()
        page.wait_for_selector("#viewer .viewer[data-style=heatmap]")
    word(page, 1).hover()
    wait_for_word(page, 1)
    seen = photograph(page)
    photo = Image.open(pictures["landscape"]).resize(seen.size, Image.Resampling.BILINEAR)
    drawn = overlay(photo, known_maps(WORDS)[1], style=style, floor=0.5, strength=0.5)
    apart = np.abs(np.asarray(drawn, float) - np.asarray(seen, float))[20:-20, 20:-20]
    assert apart.mean() < 3
    assert np.percentile(apart, 98) < 16  # the line's edges are as soft as each draws them


def test_leaving_the_words_gives_the_photo_back(page):
    put_out(page)
    word(page, 0).hover()
    wait_for_word(page, 0)
    assert overlay_alpha(page).max() > 0.4
    page.mouse.move(5, 5)
    wait_for_word(page, None)
    assert overlay_alpha(page).max() == 0


def test_a_photo_is_taken_away_while_it_is_lit(page):
    """The watched page fails the test if a fade goes on without its photo."""
    word(page, 0).hover()
    wait_for_word(page, 0)
    page.evaluate("document.querySelector('#photo button[aria-label=\"Remove Image\"]').click()")
    page.wait_for_selector("#viewer .viewer[data-state=empty]")
    page.mouse.move(5, 5)
    page.wait_for_timeout(300)  # longer than a fade


def test_the_maps_cross_fade(visit, address, pictures):
    """Half-way from one word to another, so is the light."""
    page = visit(address, reduced_motion="no-preference")
    upload(page, pictures["landscape"])
    ends = []
    for index in (2, 0):
        word(page, index).hover()
        wait_for_word(page, index)
        ends.append(overlay_alpha(page))
    page.evaluate(
        """() => {
            window.steps = [];
            window.requestAnimationFrame = step => window.steps.push(step);
            window.performance.now = () => 1000;
        }"""
    )
    word(page, 2).hover()
    page.wait_for_selector("#viewer .viewer[data-word='2'][data-fading=true]")
    page.evaluate("window.steps.splice(0).forEach(step => step(1110))")
    middle = overlay_alpha(page)
    least, most = np.minimum(*ends), np.maximum(*ends)
    assert np.all((middle > least - 0.02) & (middle < most + 0.02))
    apart = most - least > 0.4
    assert apart.any()
    assert np.all(middle[apart] > least[apart] + 0.02)  # the peaks of both are half lit


def test_the_underline_is_as_long_as_the_word_is_likely(page):
    from playwright.sync_api import expect

    for index, name in enumerate(WORDS):
        full, filled = word(page, index).evaluate(
            """node => ["::before", "::after"].map(
                part => parseFloat(getComputedStyle(node, part).width))"""
        )
        assert filled / full == pytest.approx(PROBABILITIES[name], abs=0.02)
        word(page, index).hover()
        said = f"{PROBABILITIES[name]:.0%} sure of “{name}”".replace("%", " %")
        expect(page.locator("#viewer .reading")).to_have_text(said)


def test_the_photo_tells_which_word_looked_there(page):
    box = image(page).bounding_box()
    for index, name in enumerate(WORDS):
        row, column = CELLS[name]
        x = box["x"] + (column + 0.5) / GRID[1] * box["width"]
        page.mouse.move(x, box["y"] + (row + 0.5) / GRID[0] * box["height"])
        wait_for_word(page, index)
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] - 5)
    wait_for_word(page, 0)  # the one that stays lit


def test_a_click_pins_a_word(page):
    word(page, 1).click()
    page.mouse.move(5, 5)
    wait_for_word(page, 1)
    assert word(page, 1).get_attribute("aria-pressed") == "true"
    word(page, 1).click()
    page.mouse.move(5, 5)
    wait_for_word(page, None)


def test_a_tap_pins_a_word_on_a_phone(visit, address, pictures):
    page = visit(address, viewport=PHONE, has_touch=True, is_mobile=True)
    upload(page, pictures["portrait"])
    for index in (2, 0):
        word(page, index).tap()
        wait_for_word(page, index)
    assert overlay_alpha(page).max() > 0.4
    word(page, 0).tap()
    wait_for_word(page, None)


def test_the_keyboard_reads_the_words(page):
    word(page, 0).focus()
    for key, index in (
        *(("ArrowRight", 1), ("ArrowRight", 2), ("ArrowRight", 0), ("ArrowLeft", 2)),
        *(("Home", 0), ("End", 2), ("ArrowLeft", 1)),
    ):
        page.keyboard.press(key)
        wait_for_word(page, index)
        assert page.evaluate("document.activeElement.dataset.index") == str(index)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # one stop for all words: the focus leaves, the pin stays
    assert page.evaluate("document.activeElement.className") == "play"
    wait_for_word(page, 1)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    wait_for_word(page, None)
    assert overlay_alpha(page).max() == 0


def test_a_screen_reader_gets_probability_and_place(page):
    labels = [word(page, index).get_attribute("aria-label") for index in range(3)]
    assert labels == [
        "upper, 90 %, looked at: top left",
        "middle, 50 %, looked at: centre",
        "lower, 20 %, looked at: bottom right",
    ]


RECORD = """() => {
    const root = document.querySelector("#viewer .viewer");
    window.played = [];
    const seen = () => window.played.at(-1) === root.dataset.word ||
        window.played.push(root.dataset.word);
    new MutationObserver(seen).observe(root, {attributeFilter: ["data-word"]});
}"""


def test_a_caption_plays_once_and_then_a_word_stays_lit(visit, address, pictures):
    page = visit(address, reduced_motion="no-preference")
    page.evaluate(RECORD)
    upload(page, pictures["landscape"])
    page.wait_for_function("window.played.length === 4")
    wait_for_word(page, 0)
    assert page.evaluate("window.played") == ["0", "1", "2", "0"]
    assert overlay_alpha(page).max() > 0.4
    page.locator("#viewer .candidate").nth(1).click()  # chosen by hand: it does not play
    page.wait_for_selector("#viewer .viewer[data-playing=false]")


def test_calm_visitors_see_the_lit_word_at_once(page):
    assert page.locator("#viewer .viewer").get_attribute("data-playing") == "false"
    wait_for_word(page, 0)
    assert overlay_alpha(page).max() > 0.4


def test_a_press_on_the_image_puts_the_light_out(page):
    put_out(page)
    assert overlay_alpha(page).max() == 0
    word(page, 1).click()
    page.mouse.move(5, 5)
    wait_for_word(page, 1)
    put_out(page)


def test_the_outline_surrounds_the_words_place(page):
    word(page, 1).hover()
    wait_for_word(page, 1)
    box = page.locator("#viewer canvas.outline").evaluate(
        """canvas => {
            const {width, height} = canvas;
            const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
            const found = [];
            for (let i = 0; i < width * height; i++) {
                if (data[4 * i] > 200 && data[4 * i + 3] > 200) found.push(i);
            }
            const xs = found.map(i => i % width / width);
            const ys = found.map(i => Math.floor(i / width) / height);
            return [Math.min(...ys), Math.max(...ys), Math.min(...xs), Math.max(...xs)];
        }"""
    )
    row, column = CELLS[WORDS[1]]
    assert (row - 0.5) / GRID[0] < box[0] < (row + 0.5) / GRID[0] < box[1] < (row + 1.5) / GRID[0]
    middle = (column + 0.5) / GRID[1]
    assert (column - 0.5) / GRID[1] < box[2] < middle < box[3] < (column + 1.5) / GRID[1]


def test_play_walks_through_the_words(page):
    put_out(page)
    page.evaluate(RECORD)
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("window.played.includes('2')")
    page.wait_for_selector("#viewer .viewer[data-playing=false]")
    wait_for_word(page, None)
    *played, last = page.evaluate("window.played")
    assert [word for word in played if word] == ["0", "1", "2"]
    assert last == ""


def test_playing_can_be_stopped(page):
    stop_the_clock(page)
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("#viewer .viewer[data-playing=false]")
    wait_for_word(page, 0)


def test_what_is_said_aloud_is_cleared(page):
    page.locator("#viewer .candidate").nth(1).click()
    text = " ".join(SENTENCES[1])
    page.wait_for_function(
        "t => document.querySelector('#viewer .live').textContent === t", arg=text
    )
    page.wait_for_function("document.querySelector('#viewer .live').textContent === ''")


def test_a_sentence_is_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    stop_the_clock(page)
    page.locator("#viewer .copy").click()
    page.wait_for_selector("#viewer .copy >> text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == " ".join(WORDS)


def test_the_menu_is_walked_by_the_keyboard(page):
    from playwright.sync_api import expect

    button, items = page.locator("#viewer .save"), page.locator("#viewer .kinds button")
    button.focus()
    page.keyboard.press("ArrowDown")
    expect(button).to_have_attribute("aria-expanded", "true")
    expect(items.nth(0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(items.nth(1)).to_be_focused()
    page.keyboard.press("Escape")
    expect(items.nth(0)).to_be_hidden()
    expect(button).to_be_focused()


def test_another_sentence_brings_its_own_words_and_maps(page):
    page.locator("#viewer .candidate").nth(1).click()
    assert shown_words(page) == list(SENTENCES[1])
    assert image(page).get_attribute("alt") == " ".join(SENTENCES[1])
    word(page, 1).hover()
    wait_for_word(page, 1)
    light = cell_means(1 - overlay_alpha(page))
    assert np.unravel_index(light.argmax(), GRID) == CELLS[SENTENCES[1][1]]


def test_arrows_choose_a_sentence(page):
    rows = page.locator("#viewer .candidate")
    rows.nth(0).focus()
    page.keyboard.press("ArrowDown")
    assert shown_words(page) == list(SENTENCES[1])
    page.keyboard.press("End")
    assert shown_words(page) == list(SENTENCES[2])
    checked = [rows.nth(index).get_attribute("aria-checked") for index in range(3)]
    assert checked == ["false", "false", "true"]


def test_all_words_at_once(page):
    page.get_by_role("button", name="All words").click()
    panels = page.locator("#viewer .strip .panel")
    assert panels.locator(".name").all_text_contents() == list(WORDS)
    panels.nth(2).click()
    wait_for_word(page, 2)
    assert "on" in panels.nth(2).get_attribute("class").split()
    assert page.locator("#viewer .all").get_attribute("aria-expanded") == "true"


def test_an_own_sentence_is_asked(page):
    own = page.locator("#own textarea, #own input").first
    own.fill("Lower zorbly upper")
    own.press("Enter")
    page.wait_for_selector("#viewer .candidate[data-origin=yours][aria-checked=true]")
    assert shown_words(page) == ["lower", "zorbly", "upper"]
    assert "unknown" in word(page, 1).get_attribute("class").split()
    word(page, 0).hover()
    wait_for_word(page, 0)
    light = cell_means(1 - overlay_alpha(page))
    assert np.unravel_index(light.argmax(), GRID) == CELLS["lower"]
