"""The demo's tabs beside the first: many photos, two sides, and what is told about the models."""

import csv
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.damaged import make_zip, png_header
from helpers.tiny_files import make_photos

pytest.importorskip("gradio", reason="the extra demo is not installed")

import gradio as gr

from captioner.api import Captioner
from captioner.demo import app, mechanisms, model_card, security, settings, uploads
from captioner.demo.components import list_uploads
from captioner.demo.messages import for_visitors
from captioner.demo.models import SHIPPED, Models
from captioner.demo.security import prepare_gradio
from captioner.demo.tabs import about as about_tab
from captioner.demo.tabs import batch as batch_tab
from captioner.demo.tabs import compare as compare_tab
from captioner.demo.uploads import Upload, caption_uploads
from captioner.errors import ImageError
from captioner.image.io import open_image
from captioner.outputs import Failure

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def models(model):
    captioner = Captioner.from_pretrained(model, device="cpu")
    return Models.of({"tiny": captioner, "other": captioner})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tabs") / "photos"
    make_photos(folder, 5)
    return folder


# ----------------------------------------------------------------------------------- many photos


@pytest.fixture
def given(folder, tmp_path):
    """Two photos, a zip of two others, a bomb, and a file that is none with an evil name."""
    archive = make_zip(
        tmp_path / "a.zip", {f"{n}.png": (folder / f"{n}.png").read_bytes() for n in ("02", "03")}
    )
    (tmp_path / "none").write_bytes(b"nonsense")
    (tmp_path / "bomb.png").write_bytes(png_header(50_000, 50_000))
    return [
        Upload(str(folder / "00.png"), "00.png"),
        Upload(archive, "a.ZIP"),
        Upload(str(tmp_path / "none"), EVIL + ".jpg"),
        Upload(str(tmp_path / "bomb.png"), "bomb.png"),
        Upload(str(folder / "01.png"), "01.png"),
    ]


def test_many_photos_are_captioned_as_the_library_does(models, given, folder):
    expected = {
        f"{number}.png": models["tiny"](str(folder / f"{number}.png")).text
        for number in ("00", "01", "02", "03")
    }
    found = {
        photo.name: result.error if isinstance(result, Failure) else result.text
        for photo, result in caption_uploads(models["tiny"], given, {})
    }
    assert list(found) == ["00.png", "02.png", "03.png", EVIL + ".jpg", "bomb.png", "01.png"]
    assert "not a picture" in found.pop(EVIL + ".jpg")
    assert "over the limit" in found.pop("bomb.png")
    assert found == expected
    assert uploads.count_uploads(given) == 6


def test_too_many_photos_are_cut_off_and_told(models, folder, monkeypatch):
    monkeypatch.setattr(security, "MAX_IMAGES", 3)
    files = [Upload(str(folder / "00.png"), "a.png")] * 5
    results = [result for _, result in caption_uploads(models["tiny"], files, {})]
    assert len(results) == 4 == uploads.count_uploads(files)
    assert results[3].error == "only 3 photos at a time: the rest is left out"


def test_giving_up_early_leaves_nothing_running(models, folder):
    files = [Upload(str(folder / "00.png"), "a.png")] * 50
    stream = caption_uploads(models["tiny"], files, {})
    next(stream)
    stream.close()


def run(models, cache, files, *, anew=True, **changes):
    """What the table and the files to save become, and what the fields of words are told."""
    values = {"mode": settings.BEAM, "captions": 1, "beam": 3, "penalty": 0.0, "temperature": 1.0}
    values |= {"top_p": 0.9, "seed": 0, "require": "", "ban": ""}
    given = (values | changes).values()
    steps = list(batch_tab.on_files(models, str(cache), anew, files, "tiny", *given))
    return [step[:3] for step in steps], steps[-1][3:]


def test_the_table_grows_and_ends_in_files_to_take_home(models, given, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_tab, "_EVERY", 0)
    (*growing, (table, lines, cells)), _ = run(models, tmp_path / "cache", given, captions=2)
    counts = [len(shown["rows"]) for shown, *_ in growing]
    assert counts == list(range(7))
    assert not any(update["interactive"] for _, *both in growing for update in both)

    assert (table["total"], table["done"]) == (6, True)
    assert [EVIL in row["name"] for row in table["rows"]] == [
        False,
        False,
        False,
        True,
        *[False] * 2,
    ]
    assert ["error" in row for row in table["rows"]] == [False, False, False, True, True, False]
    assert all(len(row["others"]) == 1 for row in table["rows"] if "caption" in row)
    assert all(row["thumbnail"].startswith("data:") for row in table["rows"] if "caption" in row)

    rows = [json.loads(line) for line in Path(lines["value"]).read_text("utf-8").splitlines()]
    assert [row.get("caption") for row in rows] == [row.get("caption") for row in table["rows"]]
    read = list(csv.DictReader(io.StringIO(Path(cells["value"]).read_text("utf-8"), newline="")))
    assert [row["image"] for row in read] == [row["name"] for row in table["rows"]]
    assert [row["caption_2"] for row in read if not row["error"]] == [
        row["others"][0] for row in table["rows"] if "caption" in row
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_name_becomes_a_formula(models, folder, tmp_path, start):
    name = start + "cmd|' /C calc'!A0.png"
    archive = make_zip(tmp_path / "a.zip", {name: (folder / "00.png").read_bytes()})
    (*_, (table, lines, cells)), _ = run(models, tmp_path / "cache", [Upload(archive, "a.zip")])
    assert table["rows"][0]["name"] == json.loads(Path(lines["value"]).read_text())["image"] == name
    text = Path(cells["value"]).read_bytes().decode()
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row["image"] == "'" + name


def test_a_file_over_the_limit_does_not_refuse_the_others(models, given, monkeypatch):
    monkeypatch.setattr(security, "MAX_FILE_BYTES", Path(given[0].path).stat().st_size)
    large = Path(given[2].path)
    large.write_bytes(bytes(security.MAX_FILE_BYTES + 1))
    results = [result for _, result in caption_uploads(models["tiny"], [given[2], given[0]], {})]
    assert "over the limit" in results[0].error
    assert not isinstance(results[1], Failure)


def test_a_setting_that_fails_gives_a_message(models, given, tmp_path):
    (_, (table, lines, cells)), notes = run(models, tmp_path, given, require="dogg")
    assert "near: dog" in table["error"]
    assert lines["value"] is cells["value"] is None
    (shown,), again = run(models, tmp_path, given, anew=False, require="dogg")
    assert all("value" not in update for update in shown)  # the table before stays
    for required, banned in (notes, again):
        assert "near: dog" in required["info"]
        assert required["elem_classes"] == ["wrong"]
        assert (banned["info"], banned["elem_classes"]) == ("", [])


def test_nothing_given_shows_nothing(models, tmp_path):
    ((table, lines, _),), _ = run(models, tmp_path, [])
    assert table is None
    assert not lines["interactive"]


def test_only_uploads_are_read(folder):
    prepare_gradio()
    payload = SimpleNamespace(path=str(folder / "00.png"), orig_name="a.png")
    for given in (payload, [payload]):
        with pytest.raises(gr.Error, match="Upload the file"):
            list_uploads(given)
    assert list_uploads(None) == []


# ------------------------------------------------------------------------------------- two sides


def test_two_models_or_two_searches_stand_side_by_side(models, folder):
    several = app.build(models, [str(folder / "00.png")]).get_config_file()
    alone = app.build(Models.of({"tiny": models["tiny"]}), []).get_config_file()

    def value(config, name):
        return next(
            each["props"].get("value")
            for each in config["components"]
            if each["props"].get("elem_id") == name
        )

    assert (value(several, "a-model"), value(several, "b-model")) == ("tiny", "other")
    assert value(several, "a-mode") == value(several, "b-mode") == settings.BEAM
    assert (value(alone, "a-mode"), value(alone, "b-mode")) == (settings.BEAM, settings.SAMPLE)
    for side in "ab":
        assert "notice" in value(several, f"viewer-{side}")
        assert value(alone, f"viewer-{side}") is None


def test_the_example_is_captioned_once_for_all_visitors(models, folder):
    view = app.caption_example(models, str(folder / "00.png"))
    for _, model, mode, _ in compare_tab.sides(models):
        assert view(model, mode).sentences
        assert view(model, mode) is view(model, mode)


def test_a_side_says_what_it_shows(models, folder):
    looks, search = ("heatmap", 0.5), (settings.SAMPLE, 2, 3, 0.0, 1.0, 0.9, 0, "", "")
    path = str(folder / "00.png")
    shown = compare_tab.on_settings(models, "B", path, None, "other", *looks, *search)
    payload, view, heading = shown
    assert len(payload["sentences"]) == len(view.sentences) == 2
    assert heading["label"] == "B: other, sampling"


def test_no_two_elements_share_an_id(models, folder):
    config = app.build(models, [str(folder / "00.png")]).get_config_file()
    ids = [each["props"].get("elem_id") for each in config["components"]]
    counted = {name: ids.count(name) for name in ids if name}
    assert {name: count for name, count in counted.items() if count > 1} == {}


# ----------------------------------------------------------------------------------------- about


def with_record(captioner, record):
    """A captioner whose model file says this of its training."""
    header = replace(captioner.header, record=record)
    return SimpleNamespace(
        header=header, backend=captioner.backend, vocabulary=captioner.vocabulary
    )


def test_a_card_tells_what_the_record_says(models):
    paths = ("birds/annotations/a.json", "birds/b.json", "boats.json", "/data/cats/all.json")
    record = {
        "training_photos": 7667,
        "validation_photos": 1000,
        "recipe": {
            "data": {"train": [{"captions": path} for path in paths]},
            "validation": {"beam": 4},
        },
        "validation": {"cider": 0.5966, "bleu4": 0.2375},
        "date": "2026-11-22",
    }
    card = about_tab.card("mine", with_record(models["tiny"], record))
    for told in (
        "7,667 photos",
        "from birds, boats.json and cats",
        "2026-11-22",
        "beam 4",
        "1,000 photos",
    ):
        assert told in card
    assert "<dt>CIDEr-D</dt><dd>0.597</dd>" in card
    assert "<dt>BLEU-4</dt><dd>23.8</dd>" in card
    assert model_card.LICENCE not in html.unescape(card)
    assert model_card.MEASURES in html.unescape(card)


def test_what_measures_mean_is_told_only_before_them(models):
    record = {"validation": {"attention_entropy": 0.6, "words": 9}}
    card = html.unescape(about_tab.card("mine", with_record(models["tiny"], record)))
    assert "<dd>0.6</dd>" in card
    assert model_card.MEASURES not in card


@pytest.mark.parametrize("record", [{}, {"validation": 3, "recipe": []}, {"validation": {"a": 1}}])
def test_a_record_without_figures_is_told(models, record):
    card = about_tab.card("mine", with_record(models["tiny"], record))
    assert "tells no figures" in card
    assert "The model file does not tell." in card
    assert "ask whoever trained it" in card


def test_a_malicious_record_and_name_are_text(models):
    fields = ("date", "training_photos", "validation_photos", "commit", EVIL)
    record = dict.fromkeys(fields, EVIL + "`${alert(1)}")
    record["recipe"] = {"data": {"train": [{"captions": EVIL}]}, "validation": {"beam": EVIL}}
    record["validation"] = {"cider": 1.0, EVIL: EVIL}
    card = about_tab.card(EVIL, with_record(models["tiny"], record))
    assert "<img" not in card
    assert card.count(html.escape(EVIL)) >= 6


def test_the_card_of_the_shipped_model_is_complete(models):
    text = html.unescape(about_tab.about(Models.of({SHIPPED: models["tiny"]})))
    for told in (model_card.LICENCE, *model_card.FAILURES, *model_card.COMMON_FAILURES):
        assert told in text
    assert "You cannot say" in text


@pytest.mark.parametrize("name", [SHIPPED, "mine"])
def test_what_a_table_says_is_told_if_there_is_one(models, name):
    text = about_tab.about(Models.of({name: models["tiny"]}))
    assert ("the table says" in text) == ("<table" in text) == (name == SHIPPED)


def test_the_figures_about_attention_are_those_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "attention.md").read_text("utf-8")

    def row(name):
        line = re.search(rf"^\| {name} \|(.*)\|$", text, re.MULTILINE)
        return [cell.strip() for cell in line[1].split("|")]

    inside, peak = row("correctness"), row("pointing, hits")
    ours, chance = row("attention"), row("random")  # by deletion; the mean is the last but one
    assert [figures for _, *figures in model_card.MEASURED] == [
        [inside[0], inside[-1]],
        [peak[0], peak[-1]],
        [ours[-2], chance[-2]],
    ]


def test_the_figures_of_the_shipped_model_are_those_of_readme():
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    for name, told in model_card.VALIDATION:
        cells = re.search(rf"^\| {name.lower()} \|(.*)\|$", text, re.MULTILINE)[1].split("|")
        columns = ("CIDEr-D", "BLEU-4", "BLEU-1", "ROUGE-L")
        pairs = zip(columns, cells, strict=True)
        assert told == ", ".join(f"{column} {cell.strip()}" for column, cell in pairs)
    prose = " ".join(text.split())
    bleu, *others = model_card.TEST
    assert f"BLEU {bleu[1].replace(', ', ' / ')}" in prose
    for name, value in others:
        assert f"{name} {value}" in prose


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("a HEIC photo needs one more package: pip install pillow-heif", "save this one as JPEG"),
        (
            "10,000 x 6,500 = 65,000,000 pixels is over the limit of 64,000,000 (a bomb?)",
            "it has 65 megapixels, over the limit of 64: make it smaller",
        ),
        ("a JPEG of 999 scans: over the limit of 100 (a bomb?)", "over the limit of 100"),
        ("the file is empty (0 bytes)", "the file is empty (0 bytes)"),
    ],
)
def test_messages_are_for_visitors(reason, told):
    assert told in for_visitors(reason)
    assert not re.search("pip|bomb", for_visitors(reason))


def test_the_messages_are_those_of_the_library(tmp_path):
    heic = tmp_path / "a.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    for data, told in ((heic.read_bytes(), "JPEG"), (png_header(10_000, 6_500), "65 megapixels")):
        with pytest.raises(ImageError) as caught:
            open_image(data, max_pixels=security.MAX_PIXELS)
        assert told in for_visitors(str(caught.value))


def test_every_tab_is_on_the_page(models):
    config = app.build(models, []).get_config_file()
    tabs = [each["props"]["label"] for each in config["components"] if each["type"] == "tabitem"]
    there = ["Mechanisms"] if mechanisms.available() else []
    assert tabs == ["Caption", "Compare", *there, "Batch", "About"]
