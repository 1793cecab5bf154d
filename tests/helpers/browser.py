"""Fixtures that run Chromium and demos for it to visit; `conftest.py` loads them.

A test fails if its page writes an error to the console, opens a dialog, or sends a request to
another machine, or if a script fails.
"""

import io
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
PATIENCE = 30_000  # milliseconds; a loaded machine is slow
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    """Chromium; anew for each module, as Playwright keeps an event loop running in this thread."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    api.expect.set_options(timeout=PATIENCE)
    try:
        playwright = api.sync_playwright().start()
    except Exception as error:  # of no narrower kind
        pytest.skip(f"Playwright does not start ({error}); on Debian, apt-get install libatomic1")
    try:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, NAMES)), own)
        if not Path(path).exists():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
    finally:
        playwright.stop()


@pytest.fixture(scope="module")
def serve_demo():
    """Serve captioners by name, until the module ends: ``serve_demo({"tiny": ...}) -> address``."""
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    from captioner.demo.app import serve
    from captioner.demo.models import Models

    pages = []

    def serve_these(captioners, examples=()):
        page, address = serve(Models.of(captioners), examples=list(map(str, examples)))
        pages.append(page)
        return address

    yield serve_these
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Tiny decoders in the place of those that ship; demos that are served later show them."""
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    from captioner.demo import mechanisms
    from helpers.tiny_mechanisms import save_decoders

    folder = save_decoders(tmp_path_factory.mktemp("decoders"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mechanisms, "DEFAULT_WEIGHTS", folder / "model.safetensors")
        patch.setattr(mechanisms, "MECHANISMS", folder / "all.safetensors")
        yield mechanisms.load_mechanisms()


@pytest.fixture(scope="module")
def _contexts(browser):
    """Browser contexts by their options: pages that share one share its HTTP cache."""
    return {}


@pytest.fixture
def _awaited():
    """Requests for answers of the models that are not there yet, by page."""
    return {}


@pytest.fixture
def visit(browser, _contexts, _awaited):
    """Open an address in a watched page: ``visit(address, viewport=PHONE, ...) -> page``."""
    pages, complaints = [], []

    def open_page(address, **options):
        # Captions that play by themselves would race with a test: those of motion ask for it.
        options = {"viewport": DESKTOP, "reduced_motion": "reduce"} | options
        key = repr(sorted(options.items()))
        if key not in _contexts:
            _contexts[key] = browser.new_context(**options)
            _contexts[key].set_default_timeout(PATIENCE)
        page = _contexts[key].new_page()
        pages.append(page)
        _watch(page, complaints, _awaited.setdefault(page, set()))
        page.goto(address)
        # Where there is an example, it is shown once the model is loaded.
        ready = "#viewer .viewer[data-state]:not([data-state=loading])"
        page.wait_for_selector(ready, state="attached")  # another tab may be open
        return page

    yield open_page
    for page in pages:
        page.evaluate("0")  # so that all that happened has been told
    told = list(complaints)  # a page that is closed while it waits complains
    for page in pages:
        page.close()
    assert not told


@pytest.fixture
def settle(_awaited):
    """Wait until a page changes no more and waits for nothing: ``settle(page)``."""

    def wait(page):
        end = time.monotonic() + PATIENCE / 1000
        while time.monotonic() < end:
            page.evaluate(_UNTIL_QUIET, PATIENCE)
            if not _awaited[page]:
                return
        pytest.fail(f"still waiting for {[request.url for request in _awaited[page]]}")

    return wait


_UNTIL_QUIET = """patience => new Promise((resolve, reject) => {
    let timer;
    const wait = () => {
        clearTimeout(timer);
        timer = setTimeout(() => (observer.disconnect(), resolve()), 300);
    };
    const observer = new MutationObserver(wait);
    const all = {childList: true, attributes: true, characterData: true, subtree: true};
    observer.observe(document.body, all);
    wait();
    setTimeout(() => {
        observer.disconnect();
        reject(new Error("the page does not come to rest"));
    }, patience);
})"""


def _watch(page, complaints, awaited):
    def on_request(request):
        address = urlsplit(request.url)
        if "/queue/" in address.path:
            awaited.add(request)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            complaints.append(f"request to {request.url}")

    def on_dialog(dialog):
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def on_console(message):
        if message.type == "error":
            complaints.append(f"console: {message.text}")

    page.on("request", on_request)
    page.on("requestfinished", lambda request: awaited.discard(request))
    page.on("requestfailed", lambda request: awaited.discard(request))
    page.on("websocket", lambda socket: complaints.append(f"websocket to {socket.url}"))
    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("dialog", on_dialog)


def upload(page, photo):
    """Upload an image (a path, or what Playwright takes) and wait for its caption or an error."""
    image = page.locator("#viewer img.photo")
    before = image.get_attribute("src")
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_function(
        """before => {
            const root = document.querySelector("#viewer .viewer");
            const photo = root.querySelector("img.photo").getAttribute("src");
            return root.dataset.state === "error" || photo !== before;
        }""",
        arg=before,
    )


def stop_the_clock(page):
    """Let nothing end by itself: no word that plays, no message that is cleared."""
    page.evaluate("window.setTimeout = () => 1")


def put_out(page):
    """Put out the word that stays lit after a caption."""
    page.locator("#viewer .frame").click(position={"x": 20, "y": 20})
    page.mouse.move(5, 5)
    wait_for_word(page, None)


def save(page, kind):
    """Choose a kind of file from the menu; return the download."""
    page.locator("#viewer .save").click()
    with page.expect_download() as download:
        page.locator(f"#viewer .kinds [data-kind={kind}]").click()
    return download.value


def wait_for_word(page, index, *, viewer="viewer"):
    """Wait until this word's map is on show; None: until there is none on the photo."""
    number = "" if index is None else str(index)
    page.wait_for_selector(f"#{viewer} .viewer[data-word='{number}'][data-fading=false]")


def shown_words(page):
    """Return the words of the sentence on show."""
    return page.locator("#viewer .words .word").all_text_contents()


def overlay_alpha(page):
    """Return the opacity of the overlay, (height, width), 0 to 1."""
    values, width = page.locator("#viewer canvas.overlay").evaluate(
        """canvas => {
            const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [Array.from(image.data.filter((_, i) => i % 4 === 3)), canvas.width];
        }"""
    )
    return np.array(values, float).reshape(-1, width) / 255


def photograph(page, selector="#viewer .frame"):
    """Return a screenshot of an element, as RGB."""
    return Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")
