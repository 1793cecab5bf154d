"""The page of an evaluation: what it shows, and that nothing in it can do harm."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from helpers.tiny import MODEL, shake
from PIL import Image

from captioner.checkpoint import Header, save_checkpoint
from captioner.cli import main as cli
from captioner.data.annotations import Example
from captioner.errors import ConfigError
from captioner.evaluation.caption_metrics import measure_quality
from captioner.evaluation.plots import curves, histogram
from captioner.evaluation.report import ReportImage, write_report
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import Vocabulary

EVIL = [
    "</script><script>document.title='PWNED'</script>",
    "<img src=x onerror=\"document.title='PWNED'\">",
    "a dog --><!-- <style>body{display:none}</style>",
    "{{data}} {{hash}} \\1 \\g<0> ${document.title='PWNED'}",
    "'\" onload=alert(1) & &lt;b&gt; \u2028\u2029 \ud800 \x00",
    "一只狗在草地上跑",
]


class Page(HTMLParser):
    """A page as a browser reads it: elements, the text of the data, attributes that load things."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.loads, self.text, self.data = [], [], [], ""
        self._stack = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.content = json.loads(self.data)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._stack.append((tag, dict(attributes)))
        self.loads += [value for name, value in attributes if name in ("src", "href", "action")]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        tag, attributes = self._stack[-1] if self._stack else ("", {})
        if tag == "script" and attributes.get("id") == "data":
            self.data += data
        elif tag not in ("script", "style"):
            self.text.append(data)


def quality_of(captions, references=None, ids=None):
    references = references or [("a dog runs", "a brown dog")] * len(captions)
    return measure_quality(ids or list(range(len(captions))), captions, references)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "secret folder" / "dog.png"
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((800, 600)).save(path)
    return path


def maps_of(words, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (len(words), 2, 3)).astype(np.uint8)


def test_the_page_needs_nothing_else(tmp_path, photo):
    words = ("a", "dog", "runs")
    shown = ReportImage(7, str(photo), words, maps_of(words), (0.5, 0.25, 1.0))
    path = write_report(tmp_path / "new" / "report", quality_of(["a dog runs"], ids=[7]), [shown])
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]
    page = Page(path)
    assert page.loads == []
    assert "://" not in page.source
    assert "url(" not in page.source
    assert "secret" not in page.source  # a page is passed on: no paths
    row = page.content["photos"][0]
    assert row["file"] == "dog.png"
    assert (row["caption"], row["refs"]) == ("a dog runs", ["a dog runs", "a brown dog"])
    assert np.array_equal(
        np.frombuffer(base64.b64decode(row["maps"]), np.uint8).reshape(-1, *row["grid"]),
        maps_of(words),
    )
    assert row["size"] == [448, 336]
    assert base64.b64decode(row["jpeg"]).startswith(b"\xff\xd8")


def test_only_the_page_s_own_script_may_run(tmp_path):
    page = Page(write_report(tmp_path, quality_of(["a dog", "a cat"]), []))
    script = re.search(r"<script>(.*?)</script>", page.source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.source
    assert "default-src 'none'" in page.source


def evil_report(folder):
    """Every string that a stranger can choose is hostile."""
    examples = [Example(f"photos/{text}.jpg", tuple(EVIL), "val", text) for text in EVIL]
    photos = [ReportImage(e.image_id, e.image, tuple(EVIL), None) for e in examples]
    quality = quality_of(EVIL, [EVIL] * len(EVIL), ids=EVIL)
    return write_report(folder, quality, photos, title=EVIL[0], notes=EVIL)


def test_hostile_text_stays_text(tmp_path):
    plain = Page(write_report(tmp_path / "plain", quality_of(["a dog"] * len(EVIL)), []))
    page = Page(evil_report(tmp_path / "evil"))
    assert set(page.tags) == set(plain.tags)  # no kind of element came in
    for tag in ("script", "style", "meta", "main", "section", "h1"):
        assert page.tags.count(tag) == plain.tags.count(tag)
    texts = [text.replace("\ud800", "?") for text in EVIL]
    assert sorted(row["caption"] for row in page.content["photos"]) == sorted(texts)
    assert all(row["refs"] == texts for row in page.content["photos"])
    assert any(EVIL[1] in text for text in page.text)  # it is there to be read


def test_ranks_and_the_choice_of_photos(tmp_path):
    good, fair, bad = "a dog runs on the grass", "a dog runs on the beach", "two men"
    captions = [fair, bad, good, *["the grass"] * 40]
    references = [[good, f"a dog number {i} runs"] for i in range(len(captions))]
    quality = quality_of(captions, references)
    rows = Page(write_report(tmp_path, quality, [])).content["photos"]
    assert [row["n"] for row in rows] == list(range(43))
    assert [row["caption"] for row in rows[:2]] == [good, fair]
    assert rows[-1]["caption"] == bad
    page = Page(write_report(tmp_path, quality, [], most=8))
    few = [row["n"] for row in page.content["photos"]]
    assert len(set(few)) == 8
    assert few[:2] == [0, 1]
    assert few[-2:] == [41, 42]
    assert page.content["total"] == 43
    assert any("8 of the 43 photos" in text for text in page.text)


@pytest.mark.parametrize(
    ("captions", "references"),
    [
        (["a dog"], [["a dog"]]),  # one photo: no CIDEr-D, no interval
        (["", "a dog"], None),
        ([None, "a dog", None], None),  # left out of a file of results
        (["a dog"] * 5, None),
        (["一只狗", "狗"], [["一只狗在跑"], ["狗"]]),
        (["."], [["!"]]),  # no word at all
    ],
)
def test_odd_sets(tmp_path, captions, references):
    path = write_report(tmp_path, quality_of(captions, references), [])
    rows = Page(path).content["photos"]
    assert sorted(map(str, (row["caption"] for row in rows))) == sorted(map(str, captions))
    assert "nan" not in path.read_text(encoding="utf-8").lower()


def test_photos_that_cannot_be_read_leave_a_blank(tmp_path, photo, caplog):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no photo")
    photos = [ReportImage(0, str(broken)), ReportImage(1, "gone.jpg"), ReportImage(2, str(photo))]
    page = Page(write_report(tmp_path, quality_of(["a dog"] * 4), photos))
    assert ["jpeg" in row for row in sorted(page.content["photos"], key=lambda r: r["id"])] == [
        False,
        False,
        True,
        False,
    ]
    assert caplog.text.count("the report shows no photo") == 2


def test_the_old_page_survives_a_failure(tmp_path, monkeypatch):
    path = write_report(tmp_path, quality_of(["a dog"]), [], title="old")
    monkeypatch.setattr("captioner.evaluation.report._context", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path, quality_of(["a dog"]), [], title="new")
    assert "<h1>old</h1>" in path.read_text()
    assert len(list(tmp_path.iterdir())) == 1


# ------------------------------------------------------------------------------------------ plots


def bars(svg):
    """The heights of a histogram's bars, in units of the SVG."""
    paths = re.findall(r'<path d="([^"]*)" style="fill: var\(--s0\)"', svg)
    ys = [[float(y) for y in re.findall(r"[ML] [-0-9.]+ ([-0-9.]+)", path)] for path in paths]
    return np.array([max(y) - min(y) for y in ys])


def test_histogram_counts_everything():
    heights = bars(histogram(np.random.default_rng(0).gamma(2, 0.4, 500), label="x"))
    assert 8 <= (heights > 0).sum() <= 24
    shares = 500 * heights / heights.sum()
    np.testing.assert_allclose(shares, shares.round(), atol=0.01)
    whole = bars(histogram([8, 8, 9, 12], label="words", whole=True))
    np.testing.assert_allclose(whole / whole.sum(), [0.5, 0.25, 0, 0, 0.25], atol=1e-4)


@pytest.mark.parametrize(
    "values", [[], [float("nan")], [0.0], [3.0, 3.0], [-1.0, 2.0], [1e-9], [0, 9e9]]
)
@pytest.mark.parametrize("whole", [False, True])
def test_histogram_of_odd_values(values, whole):
    svg = histogram(values, label="<x>", whole=whole, others=values[:1] if len(values) > 1 else ())
    assert svg == "" or ("nan" not in svg and "<x>" not in svg and svg.endswith("</svg>"))


def test_curves():
    svg = curves(
        [0.01, 0.1, 0.5],
        {"<a>": [0.1, 0.2, 0.9], "b": [0.0, -0.1, 0.0]},
        {"<a>": [(0.0, 0.2)] * 3, "b": [(-0.2, 0.1)] * 3},
        x_label="share",
        y_label="drop",
    )
    assert ">10 %</text>" in svg
    assert "&lt;a&gt;</text>" in svg
    assert "<a>" not in svg
    for series in ("var(--s0)", "var(--s1)"):  # the page's colours, light or dark
        assert f"stroke: {series}" in svg
    assert not re.search("#[0-9a-f]{6}", svg)


def test_a_missing_library_is_one_sentence_before_the_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        "captioner.evaluation.report.importlib.util.find_spec", lambda name: name != "jinja2"
    )
    with pytest.raises(ConfigError, match=r"pip install 'captioner\[plots\]'"):
        write_report(tmp_path, quality_of(["a dog"]), [])
    arguments = ["--captions", "gone.json", "--report", "page", "-m", "gone.safetensors"]
    assert cli.main(["evaluate", *arguments]) != 0
    assert "captioner[plots]" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ the command


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``captioner evaluate`` with a random model on five drawn photos -> (status, output)."""
    torch.manual_seed(3)
    words = ["dog", "cat", "runs", "sits", "grass", "red", "ball"]  # content words only
    vocabulary = Vocabulary.build([words], min_count=1)
    network = CaptionModel(MODEL, len(vocabulary))
    shake(network.decoder, 0.5)
    preprocess = Preprocess(size=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    header = Header(config=MODEL, vocabulary=vocabulary, preprocess=preprocess, record={})
    save_checkpoint(tmp_path / "tiny.safetensors", header, network.state_dict())
    rng = np.random.default_rng(0)
    lines = []
    for number in range(5):
        pixels = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(tmp_path / f"{number}.png")
        line = {"image": f"{number}.png", "captions": ["A dog runs."], "image_id": number}
        lines.append(json.dumps(line))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = cli.main(["evaluate", "--captions", "captions.jsonl", *arguments])
        return status, capsys.readouterr().out

    return call


def write_instances(path):
    """Every photo shows a dog and a cat, its left and its right half."""
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(5)]
    annotations = [
        {
            "id": 10 * image["id"] + category["id"],
            "image_id": image["id"],
            "category_id": category["id"],
            "iscrowd": 0,
            "segmentation": [[left, 0, left + 32, 0, left + 32, 48, left, 48]],
        }
        for image in images
        for category, left in zip(categories, (0, 32), strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


@pytest.mark.slow
def test_command(run, tmp_path):
    write_instances(tmp_path / "instances.json")
    files = ["--report", "page", "--json", "figures.json", "--results-out", "results.json"]
    options = ["-m", "tiny.safetensors", "--instances", "instances.json", "--faithfulness", "3"]
    status, out = run(*options, *files)
    assert status == 0
    assert "deletion check" in out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["faithfulness"]["photos"] == 3
    attention, saliency = figures["attention"], figures["saliency"]
    assert attention["named"]["words"] == saliency["named"]["words"] > 0
    assert attention["named"]["correctness"] != saliency["named"]["correctness"]
    page = Page(tmp_path / "page" / "index.html")
    for text in (
        "tiny.safetensors",
        "Attention against object masks",
        "Does a word depend on what its map shows?",
    ):
        assert text in page.text
    for row in page.content["photos"]:
        words = len(row["words"])
        assert len(base64.b64decode(row["maps"])) == words * np.prod(row["grid"])
        assert len(row["peaks"]) == words
    both = ["-m", "tiny.safetensors", "-m", "tiny.safetensors"]  # together: the same captions
    status, _ = run(*both, "--json", "both.json", "--report", "both")
    assert status == 0
    assert json.loads((tmp_path / "both.json").read_text())["metrics"] == figures["metrics"]
    assert "tiny.safetensors + tiny.safetensors" in Page(tmp_path / "both" / "index.html").text
    status, _ = run("--results", "results.json", "--report", "other")
    assert status == 0
    rows = Page(tmp_path / "other" / "index.html").content["photos"]
    assert all("jpeg" in row and "maps" not in row for row in rows)


# ---------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="session")
def browse():
    """Open a page in Chromium without a network -> its document after the script has run."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium here")

    def call(path, profile):
        done = subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={profile}",
                "--virtual-time-budget=5000",
                "--dump-dom",
                path.as_uri(),
            ],
            capture_output=True,
            timeout=120,
            check=True,
        )
        return done.stdout.decode(errors="replace")

    return call


@pytest.mark.browser
def test_in_a_browser(browse, tmp_path, photo):
    words = ("a", "dog", "runs")
    shown = ReportImage(0, str(photo), words, maps_of(words), (0.5, 0.25, 1.0))
    quality = quality_of(["a dog runs", "a cat sits"])
    document = browse(write_report(tmp_path / "page", quality, [shown]), tmp_path / "profile")
    assert document.count('class="card"') == 4  # one best, one worst, all two
    assert document.count('class="word looks"') == 6
    assert document.count("<figcaption>runs</figcaption>") == 1  # the strip, where it is open
    assert ">2 photos</span>" in document


@pytest.mark.browser
def test_hostile_text_in_a_browser(browse, tmp_path):
    document = browse(evil_report(tmp_path / "page"), tmp_path / "profile")
    assert document.count('class="card"') == 2 * len(EVIL)
    assert "<title>PWNED" not in document
    assert "<img" not in document
    assert document.count("<script") == 2
    assert "&lt;img src=x onerror=" in document
