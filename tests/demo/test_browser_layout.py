"""How the page looks and is walked through: small and large screens, light and dark."""

import pytest
from helpers.browser import DESKTOP, PHONE, overlay_alpha, upload
from helpers.tiny_files import make_photos

pytest.importorskip("gradio", reason="the extra demo is not installed")

from captioner.api import Captioner
from captioner.demo.models import SHIPPED

pytestmark = pytest.mark.browser

SCREENS = {
    "desktop": {"viewport": DESKTOP},
    "phone": {"viewport": PHONE, "has_touch": True, "is_mobile": True},
    "narrow": {"viewport": {"width": 320, "height": 568}},
}
TEXTS = (
    *(".page-header h1", ".page-header p"),
    *(
        f"#viewer {part}"
        for part in (".word", ".reading", ".candidate .text", ".chance", ".legend")
    ),
)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout") / "photos"
    make_photos(folder, 1)
    return folder / "00.png"


@pytest.fixture(scope="module")
def address(model, serve_demo, decoders, photo):
    """A demo that shows an example at the start."""
    return serve_demo({"tiny": Captioner.from_pretrained(model, device="cpu")}, examples=[photo])


def too_wide(page):
    """What reaches beyond the screen: the page itself, or any visible thing on it."""
    return page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth;
            const over = [...document.querySelectorAll("main *")].filter(node => {
                const box = node.getBoundingClientRect();
                return box.width > 1 && box.height > 1 && box.right > width + 1 &&
                    node.checkVisibility({opacityProperty: true, visibilityProperty: true});
            });
            const names = over.map(node => node.tagName + "." + node.className);
            if (document.documentElement.scrollWidth > width) names.unshift("the page");
            return names;
        }"""
    )


def contrast(page, selector):
    """Contrast ratio of a text with what lies behind it (WCAG 2.2, 1.4.3)."""
    return page.locator(selector).first.evaluate(
        """node => {
            const context = new OffscreenCanvas(1, 1).getContext("2d");
            const pixel = () => [...context.getImageData(0, 0, 1, 1).data];
            const behind = [];
            for (let each = node; each; each = each.parentElement) behind.unshift(each);
            for (const each of behind) {
                context.fillStyle = getComputedStyle(each).backgroundColor;
                context.fillRect(0, 0, 1, 1);
            }
            const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
                .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
            const ground = luminance(pixel());
            context.fillStyle = getComputedStyle(node).color;
            context.fillRect(0, 0, 1, 1);
            const text = luminance(pixel());
            return [(Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05), ground];
        }"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_everything_fits_and_can_be_read(visit, address, screen, scheme):
    page = visit(address, color_scheme=scheme, **SCREENS[screen])
    page.wait_for_selector("#viewer .viewer[data-state=ready]")
    page.get_by_role("button", name="All words").click()
    page.get_by_role("button", name="Settings").click()
    page.locator("#require").wait_for()
    page.locator("#viewer .word").first.click()
    assert too_wide(page) == []
    for selector in TEXTS:
        ratio, ground = contrast(page, selector)
        assert ratio >= 4.5, selector
        assert (ground > 0.5) == (scheme == "light"), selector
    for selector in (".word", ".play", ".candidate"):
        box = page.locator(f"#viewer {selector}").first.bounding_box()
        assert min(box["width"], box["height"]) >= 24, selector


@pytest.mark.parametrize("screen", SCREENS)
def test_the_other_tabs_fit_as_well(visit, address, photo, screen):
    page = visit(address, **SCREENS[screen])
    for name in ("Compare", "Mechanisms", "Batch", "About"):
        page.get_by_role("tab", name=name).click()
        if name == "Mechanisms":
            page.wait_for_selector("#mechanisms .mechanisms[data-state=ready]")
        for heading in page.locator("[role=tabpanel] button.label-wrap:visible").all():
            heading.click()
        if name == "Batch":
            page.set_input_files("#files input[type=file]", str(photo))
            page.wait_for_selector("#table .many[data-done=true]")
        assert too_wide(page) == [], name


def test_long_rows_of_about_have_room_on_a_phone(visit, model, serve_demo):
    captioner = Captioner.from_pretrained(model, device="cpu")
    page = visit(serve_demo({SHIPPED: captioner}) + "#about", **SCREENS["phone"])
    values = page.locator("#about section dd")
    values.first.wait_for()
    assert min(value.bounding_box()["width"] for value in values.all()) > 150


@pytest.mark.parametrize(("touch", "said"), [(False, "Move over a word"), (True, "Tap a word")])
def test_the_page_says_what_the_hand_can_do(visit, address, touch, said):
    page = visit(address, has_touch=touch, is_mobile=touch)
    assert said in page.locator(".page-header").inner_text()


def test_each_file_can_be_taken_away(visit, address, photo):
    """Gradio lays its own icons over the first one's."""
    page = visit(address)
    page.get_by_role("tab", name="Batch").click()
    page.set_input_files("#files input[type=file]", [str(photo)] * 2)
    page.wait_for_selector("#table .many[data-done=true]")
    page.get_by_label("Remove this file").first.click()
    page.wait_for_function("document.querySelectorAll('#files tr.file').length === 1")
    assert page.locator("#files [aria-label*='common.']").count() == 0


def test_a_very_long_word_stays_on_a_phone(visit, address):
    page = visit(address, **SCREENS["phone"])
    own = page.locator("#own textarea, #own input").first
    own.fill("w" * 200)
    own.press("Enter")
    page.wait_for_selector("#viewer .candidate[data-origin=yours]")
    assert too_wide(page) == []


def test_the_tab_key_walks_through_the_page_in_reading_order(visit, address):
    page = visit(address)
    page.wait_for_selector("#viewer .viewer[data-state=ready]")
    places = ["#photo", ".words", ".play", ".save", ".candidates", "#own", "#settings"]
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """places => {
                const node = document.activeElement;
                if (node === document.body) return null;
                const box = node.getBoundingClientRect();
                return [places.findIndex(place => node.closest(place)),
                    box.width > 0 && box.height > 0, node.outerHTML.slice(0, 120)];
            }""",
            places,
        )
        if at is None:
            break
        place, visible, html = at
        assert visible, html
        reached.append(place)
    else:
        raise AssertionError(f"the focus never leaves the page: {reached}")
    known = [place for place in reached if place >= 0]
    assert known == sorted(known)
    assert set(known) == set(range(len(places)))
    assert known.count(1) == known.count(4) == 1  # words and sentences are one stop each


def test_calm_visitors_see_no_cross_fade(visit, address, settle):
    page = visit(address, reduced_motion="reduce")
    page.wait_for_selector("#viewer .viewer[data-state=ready]")
    settle(page)
    page.evaluate(
        """() => {
            const context = document.querySelector("#viewer canvas.overlay").getContext("2d");
            const put = context.putImageData.bind(context);
            window.painted = 0;
            context.putImageData = (...given) => { window.painted++; put(...given); };
        }"""
    )
    page.locator("#viewer .word").first.hover()
    page.wait_for_selector("#viewer .viewer[data-word='0'][data-fading=false]")
    assert page.evaluate("window.painted") == 1
    assert overlay_alpha(page).max() > 0


def test_a_new_photo_takes_the_place_of_the_example(visit, address, tmp_path):
    make_photos(tmp_path / "photos", 3)
    page = visit(address)
    image = page.locator("#viewer img.photo")
    before = image.get_attribute("src")
    upload(page, tmp_path / "photos" / "02.png")
    assert image.get_attribute("src") != before
    words = page.locator("#viewer .word").all_text_contents()
    assert image.get_attribute("alt") == " ".join(words)
