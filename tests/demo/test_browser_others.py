"""What else the model might have said: offered at a word, and continued from there."""

import pytest
from helpers.browser import PHONE, put_out, shown_words, upload, wait_for_word
from helpers.tiny_files import make_photos

pytest.importorskip("gradio", reason="the extra demo is not installed")

from captioner.api import Captioner

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(model, serve_demo):
    return serve_demo({"tiny": Captioner.from_pretrained(model, device="cpu")})


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photo") / "all"
    make_photos(folder, 1)
    return folder / "00.png"


@pytest.mark.parametrize("device", [{}, {"viewport": PHONE, "has_touch": True}])
def test_another_word_continues_the_sentence(visit, address, photo, device):
    page = visit(address, **device)
    upload(page, photo)
    before = shown_words(page)
    candidates = page.locator("#viewer .candidate")
    count = candidates.count()
    page.locator("#viewer .words .word").nth(1).click()
    page.mouse.move(5, 5)  # what is pinned stays
    others = page.locator("#viewer .other:enabled")
    names = page.locator("#viewer .other").evaluate_all("all => all.map((b) => b.dataset.word)")
    assert len(names) == 5
    chosen = others.first.get_attribute("data-word")
    assert chosen != before[1]
    if chosen == "<end>":
        chosen = others.nth(1).get_attribute("data-word")
    page.locator(f"#viewer .other[data-word='{chosen}']").click()
    page.wait_for_selector("#viewer .candidate[data-origin=continued][aria-checked=true]")
    assert candidates.count() == count + 1
    assert shown_words(page)[:2] == [before[0], chosen]
    assert page.locator("#viewer .tag").text_content() == "continued"


def test_a_word_stays_on_show_on_the_way_to_what_may_replace_it(visit, address, photo):
    page = visit(address)
    upload(page, photo)
    put_out(page)
    last = len(shown_words(page)) - 1  # no other word lies on the way
    word = page.locator("#viewer .words .word").nth(last)
    word.hover()
    other = page.locator("#viewer .other").nth(2)
    start, end = word.bounding_box(), other.bounding_box()
    page.mouse.move(start["x"] + 5, start["y"] + start["height"] - 2)
    page.mouse.move(end["x"] + 5, end["y"] + 5, steps=8)
    assert other.get_attribute("data-place") == str(last)
    wait_for_word(page, last)
    page.locator("#viewer .play").hover()  # further down, it has gone
    wait_for_word(page, None)


def test_keys_reach_the_words_and_move_nothing(visit, address, photo):
    page = visit(address)
    upload(page, photo)
    words = page.locator("#viewer .words .word")
    words.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")  # pins
    height = page.locator("#viewer .others").bounding_box()["height"]
    page.keyboard.press("Tab")
    focused = "document.activeElement.className"
    assert page.evaluate(focused) == "other"
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer .candidate:not([data-origin=model])")
    page.locator("#viewer .frame").click(position={"x": 9, "y": 9})  # puts out all words
    page.wait_for_selector("#viewer .viewer[data-word='']")
    assert page.locator("#viewer .other").count() == 0
    assert page.locator("#viewer .others").bounding_box()["height"] == height


def test_a_tab_that_opens_later_has_them_too(visit, model, serve_demo, photo):
    """Its viewer is made when there is something to show already."""
    captioner = Captioner.from_pretrained(model, device="cpu")
    page = visit(serve_demo({"tiny": captioner}, examples=[photo]))
    page.get_by_role("tab", name="Compare").click()
    for side in "ab":
        page.wait_for_selector(f"#viewer-{side} .other")
