"""Take the pictures of the demo in the README: an example, its caption, its words lighting up.

    python scripts/demo_picture.py docs/images/demo.png --word coffee
    python scripts/demo_picture.py docs/images/words.webp

A PNG shows the page with one word's attention; a WebP plays all words of the caption. Needs the
extras demo and dev, and Chromium. It starts the demo itself, on a free port.
"""

import argparse
import io
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from captioner.demo.app import EXAMPLES, serve
from captioner.demo.models import Models

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SHAPE = {"width": 1280, "height": 900}
COLOURS = 256  # of the PNG, which would be twice as large with all of them
FILM_WIDTH = 640  # pixels
STAY, FADE, STEPS = 750, 60, 3  # milliseconds of a word and of a step to the next; steps
QUALITY = 72  # of the WebP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="PNG or WebP file")
    parser.add_argument("--photo", default=str(EXAMPLES / "coffee.jpg"))
    parser.add_argument("--word", default="coffee", help="whose attention the PNG shows")
    parser.add_argument("-m", "--model", action="append", default=[], help="default: the shipped")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()

    with visit(args.model, args.photo, dark=args.dark) as page:
        if args.out.endswith(".webp"):
            save_film(film(page), args.out)
            return
        shot = screenshot(page, args.word)
    palette = shot.quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=3)
    shot.quantize(palette=palette).save(args.out, optimize=True)  # dithered


@contextmanager
def visit(models: list[str], photo: str, *, dark: bool) -> Iterator[Page]:
    """Serve the demo and open it in a browser; it starts with this photo."""
    others = [str(path) for path in sorted(EXAMPLES.glob("*.jpg")) if str(path) != photo]
    served, address = serve(Models.from_files(models), examples=[photo, *others])
    try:
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or playwright.chromium.executable_path
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            scheme = "dark" if dark else "light"
            page = browser.new_page(viewport=SHAPE, color_scheme=scheme, reduced_motion="reduce")
            page.goto(address)
            page.wait_for_selector("#viewer .viewer[data-state=ready]")
            yield page
            browser.close()
    finally:
        served.close()


def capture(page: Page, clip: dict[str, float]) -> Image.Image:
    """Return a part of the page, when no map is fading."""
    page.wait_for_selector("#viewer .viewer[data-fading=false]")
    shot = page.screenshot(full_page=True, clip=clip, animations="disabled")
    return Image.open(io.BytesIO(shot)).convert("RGB")


def box(page: Page, selector: str) -> dict[str, float]:
    """Return the place of an element on the page."""
    found = page.locator(selector).first.bounding_box()
    assert found is not None
    return dict(found)


def screenshot(page: Page, word: str) -> Image.Image:
    """Return the page as an image, from its top to the sentences, while a word is on show."""
    page.locator("#viewer .words .word").get_by_text(word, exact=True).last.click()
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    last = box(page, "#viewer .sentences")
    height = int(last["y"] + last["height"]) + 24
    return capture(page, {"x": 0, "y": 0, "width": SHAPE["width"], "height": height})


def film(page: Page) -> list[Image.Image]:
    """Return photo and sentence, first plain, then with each word on show."""
    frame, words = box(page, "#viewer .frame"), box(page, "#viewer .words")
    left = min(frame["x"], words["x"]) - 12
    right = max(frame["x"] + frame["width"], words["x"] + words["width"]) + 12
    bottom = words["y"] + words["height"] + 12
    top = frame["y"] - 12
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    page.keyboard.press("Tab")
    page.locator("#viewer .words .word").first.focus()
    page.keyboard.press("Escape")  # puts out what stays lit
    page.locator("#viewer .play").focus()
    pictures = [capture(page, clip)]
    chips = page.locator("#viewer .words .word")
    for index in range(chips.count()):
        chips.nth(index).hover()
        page.wait_for_selector(f"#viewer .viewer[data-word='{index}']")
        pictures.append(capture(page, clip))
    scale = FILM_WIDTH / pictures[0].width
    size = (FILM_WIDTH, round(pictures[0].height * scale))
    return [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]


def save_film(pictures: list[Image.Image], out: str) -> None:
    """Write an endless WebP that fades from one picture to the next."""
    frames, lengths = [], []
    for picture, following in itertools.pairwise([*pictures, pictures[0]]):
        frames.append(picture)
        lengths.append(STAY)
        for step in range(1, STEPS):
            frames.append(Image.blend(picture, following, step / STEPS))
            lengths.append(FADE)
    options = {"quality": QUALITY, "method": 6, "loop": 0, "duration": lengths}
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], **options)


if __name__ == "__main__":
    main()
