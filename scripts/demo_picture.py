"""Take the screenshot of the demo in the README: an example, its caption, one word's attention.

    python scripts/demo_picture.py docs/images/demo.png --word coffee

Needs the extras demo and dev, and Chromium. It starts the demo itself, on a free port.
"""

import argparse
import io
import shutil

from PIL import Image
from playwright.sync_api import sync_playwright

from captioner.demo.app import EXAMPLES, serve
from captioner.demo.models import Models

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SHAPE = {"width": 1280, "height": 900}
COLOURS = 256  # of the PNG, which would be twice as large with all of them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="PNG file")
    parser.add_argument("--photo", default=str(EXAMPLES / "coffee.jpg"))
    parser.add_argument("--word", default="coffee", help="whose attention is shown")
    parser.add_argument("-m", "--model", action="append", default=[], help="default: the shipped")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()

    page, address = serve(Models.from_files(args.model), examples=_examples(args.photo))
    try:
        shot = screenshot(address, args.word, dark=args.dark)
    finally:
        page.close()
    palette = shot.quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=3)
    shot.quantize(palette=palette).save(args.out, optimize=True)  # dithered


def _examples(first: str) -> list[str]:
    """Return all example images, this one first: the page starts with it."""
    others = [str(path) for path in sorted(EXAMPLES.glob("*.jpg")) if str(path) != first]
    return [first, *others]


def screenshot(address: str, word: str, *, dark: bool) -> Image.Image:
    """Return the page as an image, from its top to the sentences, while a word is on show."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=SHAPE, color_scheme="dark" if dark else "light")
        page.goto(address)
        page.locator("#viewer .words .word").get_by_text(word, exact=True).last.click()
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_selector("#viewer .viewer[data-fading=false]:not([data-word=''])")
        box = page.locator("#viewer .candidates").bounding_box()
        assert box is not None
        height = int(box["y"] + box["height"]) + 24
        clip = {"x": 0, "y": 0, "width": SHAPE["width"], "height": height}
        shot = page.screenshot(full_page=True, clip=clip)
        browser.close()
    return Image.open(io.BytesIO(shot)).convert("RGB")


if __name__ == "__main__":
    main()
