"""What a visitor may give that is no photo, and text that would like to be a script."""

import pytest
from helpers.browser import save, shown_words, upload
from helpers.damaged import png_header
from helpers.tiny_files import make_photos, save_model

pytest.importorskip("gradio", reason="the extra demo is not installed")

from captioner.api import Captioner

pytestmark = pytest.mark.browser

EVIL = [  # a word holds no space, which HTML does not need
    "<img/src=x/onerror=alert(1)>",
    "<script>alert(2)</script>",
    '"><svg/onload=alert(3)>',
    "[x](javascript:alert(4))",
    "{{alert(5)}}",
    "${alert(6)}",
    "`+alert(7)+`",
    "</template><iframe/srcdoc='<script>alert(8)</script>'>",
]
NAME = "<img src=x onerror=alert(9)>.png"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("safety") / "photos"
    make_photos(folder, 2)
    return folder / "00.png"


@pytest.fixture(scope="module")
def address(tmp_path_factory, serve_demo, photo):
    """A demo whose model knows no other words; one of its sentences is on show at the start."""
    path = save_model(tmp_path_factory.mktemp("evil") / "evil.safetensors", EVIL)
    evil = Captioner.from_pretrained(path, device="cpu")
    return serve_demo({EVIL[0]: evil, EVIL[1]: evil}, examples=[photo.with_name("01.png")])


def test_words_are_shown_as_text(visit, address, photo):
    from playwright.sync_api import expect

    page = visit(address)
    upload(page, {"name": NAME, "mimeType": "image/png", "buffer": photo.read_bytes()})
    words = shown_words(page)
    assert words
    assert set(words) <= set(EVIL)
    assert words[0] in page.locator("#viewer img.photo").get_attribute("alt")
    page.get_by_role("button", name="All words").click()
    page.locator("#viewer .word").first.click()
    assert words[0] in page.locator("#viewer .reading").text_content()
    page.locator("#viewer .candidate").nth(1).click()
    own = page.locator("#own textarea, #own input").first
    own.fill(" ".join(EVIL))
    own.press("Enter")
    page.wait_for_selector("#viewer .candidate[data-origin=yours]")
    page.get_by_role("button", name="Settings").click()
    require = page.locator("#require textarea, #require input").first
    require.fill(EVIL[0])
    require.press("Enter")
    expect(page.locator("#require")).to_contain_text(EVIL[0])
    made = page.locator("#viewer").locator("img, script, iframe, svg, a")
    kinds = made.evaluate_all(
        "nodes => nodes.map(node => node.className.baseVal ?? node.className)"
    )
    assert set(kinds) <= {"", "photo", "small-photo"}
    for name in ("Compare", "Batch", "About"):
        page.get_by_role("tab", name=name).click()
    expect(page.locator("#about")).to_contain_text(EVIL[1])
    assert page.locator("iframe, [onerror], [onload]").count() == 0


def test_the_file_name_of_a_download_is_harmless(visit, address):
    page = visit(address)
    name = save(page, "numbers").suggested_filename
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"just a letter", "not a picture"),
        (b"", "cannot be used"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "an SVG drawing"),
        (png_header(50_000, 50_000), "over the limit"),
    ],
    ids=["text", "empty", "svg", "bomb"],
)
def test_what_is_no_photo_gets_a_friendly_message(visit, address, photo, content, said):
    from playwright.sync_api import expect

    page = visit(address)
    page.set_input_files(
        "#photo input[type=file]", {"name": NAME, "mimeType": "image/png", "buffer": content}
    )
    page.wait_for_selector("#viewer .problem:not(:empty)")
    message = page.locator("#viewer .problem").text_content()
    assert message.startswith("This photo cannot be used: ")
    assert said in message
    assert "/" not in message
    assert shown_words(page)  # the photo before stays
    expect(page.locator("#photo img")).to_be_hidden()  # no icon of a broken one
