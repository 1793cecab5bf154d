"""The other tabs: two sides compared, many photos, and what is told of the model."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest
from helpers.browser import wait_for_word
from helpers.known_captioner import SENTENCES, KnownCaptioner
from helpers.tiny_files import make_photos

pytest.importorskip("gradio", reason="the extra demo is not installed")

from captioner.api import Captioner
from captioner.image import visualize

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=alert(1)>.png"
WORDS = list(SENTENCES[0])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tabs") / "photos"
    make_photos(folder, 3)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def captioner(model):
    return Captioner.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def address(model, captioner, serve_demo, decoders):
    known = KnownCaptioner.from_pretrained(model, device="cpu")
    return serve_demo({"known": known, "tiny": captioner})


@pytest.fixture
def tab(visit, address):
    def open_tab(name):
        page = visit(address)
        page.get_by_role("tab", name=name).click()
        return page

    return open_tab


def give(page, *files):
    """Give the batch tab files, and wait for the end."""
    page.set_input_files("#files input[type=file]", list(files))
    page.wait_for_selector("#table .many[data-done=true]")


def take(page, name):
    with page.expect_download() as download:
        page.locator(f"#take-{name}").click()
    return download.value.path().read_text(encoding="utf-8")


def zipped(*photos):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for photo in photos:
            archive.write(photo, f"folder/{photo.name}")
        archive.writestr(f"folder/{EVIL}", b"nonsense")
    return {"name": "photos.zip", "mimeType": "application/zip", "buffer": buffer.getvalue()}


def test_many_photos_become_a_table_and_files(tab, photos):
    from playwright.sync_api import expect

    page = tab("Batch")
    expect(page.locator("#take-csv")).to_be_disabled()
    evil = {"name": EVIL, "mimeType": "image/png", "buffer": b"nonsense"}
    good = {"name": "good.png", "mimeType": "image/png", "buffer": photos[0].read_bytes()}
    give(page, good, evil)
    rows = page.locator("#table tbody tr")
    assert rows.locator(".sentence").nth(0).text_content() == " ".join(WORDS)
    assert "not a picture" in rows.locator(".sentence").nth(1).text_content()
    assert page.locator("#table .count").text_content() == "2 photos, 1 failed"
    assert rows.locator("img").count() == 1
    names = rows.locator(".file").all_text_contents()
    assert names[0] == "good.png"
    assert "onerror" in names[1]  # and so it was told as text

    lines = [json.loads(line) for line in take(page, "jsonl").splitlines()]
    assert lines[0]["caption"] == " ".join(WORDS)
    assert "not a picture" in lines[1]["error"]
    cells = list(csv.DictReader(io.StringIO(take(page, "csv"))))
    assert [cell["caption"] for cell in cells] == [" ".join(WORDS), ""]


def test_a_zip_is_captioned_photo_by_photo(tab, photos, captioner):
    page = tab("Batch")
    page.get_by_role("button", name="Settings").click()
    page.locator("#batch-model input").click()
    page.get_by_role("option", name="tiny").click()
    give(page, zipped(*photos))
    rows = page.locator("#table tbody tr")
    expected = [captioner(str(photo), beam=3).text for photo in photos]
    assert rows.locator(".sentence").all_text_contents()[:3] == expected
    assert rows.locator(".file").all_text_contents()[:2] == ["folder/00.png", "folder/01.png"]
    assert "failed" in rows.nth(3).get_attribute("class")


def test_a_wrong_word_is_told_at_its_field_and_the_table_stays(tab, photos):
    from playwright.sync_api import expect

    page = tab("Batch")
    give(page, photos[0])
    page.get_by_role("button", name="Settings").click()
    require = page.locator("#batch-require textarea, #batch-require input").first
    require.fill("dogg")
    page.locator("#batch-again").click()
    expect(page.locator("#batch-require")).to_contain_text("required word 'dogg'; near: dog")
    expect(require).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#table tbody tr.done")).to_have_count(1)
    expect(page.locator("#take-csv")).to_be_enabled()
    require.fill("dog")
    page.locator("#batch-again").click()
    expect(require).not_to_have_attribute("aria-invalid", "true")


def test_two_sides_are_compared(tab, photos):
    from playwright.sync_api import expect

    page = tab("Compare")
    page.set_input_files("#compare-photo input[type=file]", str(photos[0]))
    for side in "ab":
        page.wait_for_selector(f"#viewer-{side} .viewer[data-state=ready]")
    texts = {
        side: page.locator(f"#viewer-{side} .words .word").all_text_contents() for side in "ab"
    }
    assert texts["a"] == WORDS
    assert texts["b"] != WORDS
    assert not set(texts["a"]) & set(texts["b"])  # so all words differ
    expect(page.locator("#viewer-a .word.differs")).to_have_text(texts["a"])
    expect(page.locator("#viewer-b .word.differs")).to_have_text(texts["b"])
    own = page.locator("#compare-own textarea, #compare-own input").first
    own.fill("a dog")
    own.press("Enter")
    for side in "ab":
        page.wait_for_selector(f"#viewer-{side} .candidate[data-origin=yours][aria-checked=true]")
    expect(page.locator(".compare-tab .word.differs")).to_have_count(0)
    page.locator("#viewer-b .words .word").nth(0).click()
    expect(page.locator("#viewer-a .words .word").nth(0)).to_have_attribute("aria-pressed", "true")
    page.locator("#viewer-a .words .word").nth(1).hover()
    for side in "ab":  # what is looked at in one is shown in the other
        wait_for_word(page, 1, viewer=f"viewer-{side}")
    pictures = [
        page.locator(f"#viewer-{side} canvas.overlay").evaluate(
            "canvas => [...canvas.getContext('2d').getImageData(0, 0, 99, 99).data]"
        )
        for side in "ab"
    ]
    assert not np.array_equal(*pictures)
    for side in "ab":  # images of half the height, so that both sentences are on the screen too
        box = page.locator(f"#viewer-{side} .frame").bounding_box()
        assert box["height"] < 0.32 * page.viewport_size["height"]


def test_each_mechanism_shows_its_own_map_of_a_word(tab, photos, decoders):
    from playwright.sync_api import expect

    page = tab("Mechanisms")
    page.set_input_files("#mechanisms-photo input[type=file]", str(photos[0]))
    page.wait_for_selector("#mechanisms .mechanisms[data-state=ready]")
    own = page.locator("#mechanisms-own textarea, #mechanisms-own input").first
    own.fill("a red dog runs")
    own.press("Enter")
    words = page.locator("#mechanisms .word")
    words.get_by_text("runs").wait_for()
    maps = [each.captioner.score(photos[0], "a red dog runs").attention for each in decoders]
    for index in (3, 1):
        words.nth(index).hover()
        page.wait_for_selector(f"#mechanisms .mechanisms[data-word='{index}']")
        opacity = page.locator("#mechanisms canvas").evaluate_all(
            """all => all.map(canvas => {
                const {width, height} = canvas;
                const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
                return Array.from({length: height}, (_, y) =>
                    Array.from({length: width}, (_, x) => data[4 * (y * width + x) + 3]));
            })"""
        )
        for drawn, cells in zip(opacity, maps, strict=True):
            expected = visualize.spread_weights(cells[index], (len(drawn[0]), len(drawn)))
            assert np.corrcoef(np.ravel(drawn), expected.ravel())[0, 1] > 0.8
    words.nth(1).focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#mechanisms .live")).to_contain_text("Additive: ")
    expect(page.locator("#mechanisms .live")).to_be_empty()  # a while later
    broken = {"name": "a.png", "mimeType": "image/png", "buffer": b"nonsense"}
    page.set_input_files("#mechanisms-photo input[type=file]", broken)
    expect(page.locator("#mechanisms .problem")).to_contain_text("cannot be used")
    page.mouse.move(5, 5)
    lit = page.locator("#mechanisms .word[aria-pressed=true]").get_attribute("data-index")
    page.wait_for_selector(f"#mechanisms .mechanisms[data-word='{lit}']")


def test_the_model_is_told_about(tab, captioner):
    from playwright.sync_api import expect

    page = tab("About")
    for told in ("known", "tiny", f"{len(captioner.vocabulary)} words", "0.5", "What attention"):
        expect(page.locator("#about")).to_contain_text(told)
