"""The model that ships, on the photos that ship: what the page shows is what the library says."""

import numpy as np
import pytest
from helpers.browser import photograph, shown_words, wait_for_word
from PIL import Image

pytest.importorskip("gradio", reason="the extra demo is not installed")

from captioner.api import DEFAULT_WEIGHTS, Captioner
from captioner.demo.app import EXAMPLES
from captioner.image.io import open_image
from captioner.image.visualize import overlay

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not DEFAULT_WEIGHTS.exists(), reason="no model ships with this copy"),
]


def test_an_example_is_captioned_and_lit_as_by_the_library(visit, serve_demo):
    captioner = Captioner.from_pretrained(device="cpu")
    examples = [EXAMPLES / f"{name}.jpg" for name in ("coffee", "astronaut")]
    page = visit(serve_demo({"shipped": captioner}, examples))
    page.wait_for_selector("#viewer .viewer[data-state=ready]")
    before = shown_words(page)
    page.locator(".gallery button, .gallery .gallery-item").nth(1).click()
    caption = captioner(str(examples[1]), beam=3, num_captions=3)
    page.wait_for_selector(f"#viewer img.photo[alt='{caption.text}']")
    assert shown_words(page) == caption.words != before
    texts = page.locator("#viewer .candidate .text").all_text_contents()
    assert texts == [each.text for each in caption.candidates]

    sharpest = int(caption.attention.max((1, 2)).argmax())
    page.locator("#viewer .words .word").nth(sharpest).hover()
    wait_for_word(page, sharpest)
    seen = np.asarray(photograph(page), float)[20:-20, 20:-20]
    photo = open_image(str(examples[1])).resize(photograph(page).size, Image.Resampling.BILINEAR)
    drawn = np.asarray(overlay(photo, caption.attention[sharpest], floor=0.5), float)
    apart = np.abs(drawn[20:-20, 20:-20] - seen)
    assert apart.mean() < 5
    assert np.abs(np.asarray(photo, float)[20:-20, 20:-20] - seen).mean() > 3 * apart.mean()
