"""The demo's settings and handlers, called as Gradio calls them; no server, no browser."""

import itertools
import socket
import sys
from pathlib import Path

import pytest
from helpers.tiny_files import make_photos

pytest.importorskip("gradio", reason="the extra demo is not installed")

import gradio as gr

from captioner.api import Captioner
from captioner.cli import main as cli
from captioner.decoding.options import DecodingOptions
from captioner.demo import app, security, settings
from captioner.demo.components import ASSETS, read_asset
from captioner.demo.models import Models
from captioner.demo.tabs import caption as caption_tab
from captioner.errors import CaptionerError, ConfigError

LOOKS = ("tiny", "heatmap", 0.5)  # model, style, strength


@pytest.fixture(scope="module")
def models(model):
    return Models.of({"tiny": Captioner.from_pretrained(model, device="cpu")})


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "photos"
    make_photos(folder, 1)
    return str(folder / "00.png")


def search(**changes):
    """The values of the settings, in the order of the page."""
    usual = {"mode": settings.BEAM, "captions": 3, "beam": 3, "penalty": 0.0, "temperature": 1.0}
    usual |= {"top_p": 0.9, "seed": 0, "require": "", "ban": ""}
    return tuple((usual | changes).values())


class Choice:
    def __init__(self, data):
        self._data = data


def test_a_photo_gives_a_payload_and_a_state(models, photo):
    payload, view = caption_tab.on_image(models, photo, None, *LOOKS, *search())
    assert (payload["style"], payload["strength"]) == ("heatmap", 0.5)
    assert [each["text"] for each in payload["sentences"]] == [each.text for each in view.sentences]
    assert len(view.sentences) == 3


def test_no_photo_clears_the_page(models):
    assert caption_tab.on_image(models, None, None, *LOOKS, *search()) == (None, None)


def test_what_is_no_photo_gives_a_message(models, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    path.write_bytes(b"nonsense")
    payload, view = caption_tab.on_image(models, str(path), None, *LOOKS, *search())
    assert view is None
    assert payload["error"].startswith("This photo cannot be used: not a picture")
    assert "onerror" not in payload["error"]


def test_a_setting_that_fails_forgets_nothing(models, photo):
    _, view = caption_tab.on_image(models, photo, None, *LOOKS, *search())
    with pytest.raises(ConfigError, match="near: dog"):  # so Gradio changes nothing
        caption_tab.on_settings(models, None, view, *LOOKS, *search(require="dogg"))
    payload, new = caption_tab.on_settings(models, None, view, *LOOKS, *search(require="dog"))
    assert all("dog" in each["text"].split() for each in payload["sentences"])
    assert new.source == photo


def test_the_image_before_stays_with_a_message(models, photo, tmp_path):
    _, view = caption_tab.on_image(models, photo, None, *LOOKS, *search())
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nonsense")
    for path, values in ((str(broken), search()), (photo, search(require="dogg"))):
        payload, same = caption_tab.on_image(models, path, view, *LOOKS, *values)
        assert same is view
        shown = [each["text"] for each in payload["sentences"]]
        assert shown == [each.text for each in view.sentences]
        assert payload["problem"][0].isupper()
    payload, new = caption_tab.on_settings(models, str(broken), view, *LOOKS, *search(captions=1))
    assert new.source == photo
    assert len(payload["sentences"]) == 1


@pytest.mark.parametrize(
    ("require", "ban", "told", "wrong"),
    [
        ("dog", "cat", ("", ""), (False, False)),
        ("dogg", "", ("required word 'dogg'; near: dog", ""), (True, False)),
        ("dog", "dog", ("'dog' is banned and required", ""), (True, False)),
        ("", "zebu, cat", ("", "never written: zebu"), (False, False)),
        ("", "don't", ("", "is not one word"), (False, True)),
    ],
)
def test_a_mistake_is_told_at_its_field(models, photo, require, ban, told, wrong):
    with gr.Blocks():
        made = settings.Settings(models)
    handle = made.told(models, lambda *given: caption_tab.on_settings(models, *given))
    _, view = caption_tab.on_image(models, photo, None, *LOOKS, *search())
    payload, new, *notes = handle(photo, view, *LOOKS, *search(require=require, ban=ban))
    for note, text, bad in zip(notes, told, wrong, strict=True):
        assert text in note["info"]
        assert bool(note["info"]) == bool(text)
        assert note["elem_classes"] == (["wrong"] if bad else [])
    assert ("sentences" in payload) == (new is not view) == (not any(wrong))


def test_settings_before_any_photo_do_nothing(models):
    assert caption_tab.on_settings(models, None, None, *LOOKS, *search()) == (None, None)


def test_an_own_sentence_is_shown(models, photo):
    _, view = caption_tab.on_image(models, photo, None, *LOOKS, *search())
    payload, view = caption_tab.on_sentence(models, "a zorbly dog", view, *LOOKS)
    shown = payload["sentences"][payload["chosen"]]
    assert shown["origin"] == "yours"
    assert [word["known"] for word in shown["words"]] == [True, False, True]


@pytest.mark.parametrize("text", ["", "  ", "..."])
def test_a_sentence_without_words_is_told(models, photo, text):
    _, view = caption_tab.on_image(models, photo, None, *LOOKS, *search())
    with pytest.raises(gr.Error, match="at least one word"):
        caption_tab.on_sentence(models, text, view, *LOOKS)


def test_a_photo_that_has_been_deleted_is_told(models, photo, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(Path(photo).read_bytes())
    _, view = caption_tab.on_image(models, str(path), None, *LOOKS, *search())
    path.unlink()
    with pytest.raises(CaptionerError, match="no longer here"):
        caption_tab.on_sentence(models, "a dog", view, *LOOKS)


def test_an_endless_text_costs_no_more_than_the_page_allows(models, photo):
    _, view = caption_tab.on_image(models, photo, None, *LOOKS, *search())
    _, view = caption_tab.on_sentence(models, "dog " * 10**6, view, *LOOKS)
    assert len(view.sentence.text) <= security.MAX_TEXT
    assert len(settings.split_words("dog " * 10**6)) <= security.MAX_TEXT


def test_without_a_photo_there_is_nothing_to_ask_or_take(models, tmp_path):
    with pytest.raises(gr.Error, match="photo first"):
        caption_tab.on_sentence(models, "a dog", None, *LOOKS)
    with pytest.raises(gr.Error, match="photo first"):
        caption_tab.on_save(str(tmp_path), None, "strip", "spotlight", 0.6)


def test_the_choice_decides_what_is_downloaded(models, photo, tmp_path):
    _, view = caption_tab.on_image(models, photo, None, *LOOKS, *search())
    view = caption_tab.on_choice(view, Choice({"index": 1}))
    path = caption_tab.on_save(str(tmp_path), view, "numbers", "spotlight", 0.6)
    assert view.sentences[1].text in Path(path).read_text(encoding="utf-8")
    with pytest.raises(gr.Error):
        caption_tab.on_save(str(tmp_path), view, "../evil", "spotlight", 0.6)


@pytest.mark.parametrize("data", [None, {}, {"index": "1"}, {"index": None}, {"index": 99}, [1]])
def test_a_forged_choice_changes_nothing(models, photo, data):
    _, view = caption_tab.on_image(models, photo, None, *LOOKS, *search())
    assert caption_tab.on_choice(view, Choice(data)) is view
    assert caption_tab.on_choice(None, Choice(data)) is None


def test_every_combination_of_settings_is_a_possible_search():
    modes = (settings.BEAM, settings.DIVERSE, settings.SAMPLE, settings.AGREE)
    for mode, captions, beam in itertools.product(modes, range(1, 9), range(1, 11)):
        values = search(mode=mode, captions=captions, beam=beam, temperature=0.5, top_p=0.5)
        options = settings.decoding_options(*values)
        options.pop("ban"), options.pop("require", None)
        checked = DecodingOptions(**options)
        assert checked.num_captions == captions


def test_the_defaults_are_those_of_the_page(models):
    with gr.Blocks():
        made = settings.Settings(models)
    assert settings.decoding_options(*(each.value for each in made.search)) == (
        settings.decoding_options()
    )


@pytest.mark.parametrize("text", ["dog, cat", "dog cat", " dog,,cat ,", "dog ,cat"])
def test_words_in_a_line(text):
    assert settings.split_words(text) == ["dog", "cat"]
    assert settings.split_words(None) == []


def test_models_go_by_name(model, tmp_path):
    captioner = Captioner.from_pretrained(model, device="cpu")
    models = Models.of({"a": captioner, "b": captioner})
    assert models.names == ["a", "b"]
    with pytest.raises(ConfigError, match="no model '/etc/passwd': a, b"):
        models["/etc/passwd"]
    with pytest.raises(ConfigError):
        Models.of({})


def test_models_of_the_same_file_name_are_told_apart(model, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "best.safetensors").write_bytes(model.read_bytes())
    files = [str(tmp_path / folder / "best.safetensors") for folder in ("one", "two", "two")]
    assert Models.from_files(files, device="cpu").names == ["best", "two/best", "best (2)"]


def test_the_page_builds_with_and_without_examples(models, photo):
    for examples in ([], [photo]):
        config = app.build(models, examples).get_config_file()
        ids = {component["props"].get("elem_id") for component in config["components"]}
        assert {"photo", "viewer", "own", "settings", "style"} <= ids


def test_no_handler_is_open_to_programs_by_accident(models):
    """What is public is named in the API on purpose."""
    for function in app.build(models).fns.values():
        if function.fn is not None and function.api_visibility == "public":
            assert str(function.api_name) in ("caption", "caption_batch", "complete", "score")


def test_the_templates_hold_nothing_that_gradio_would_run():
    """Gradio reads them as a JavaScript template literal, after Handlebars."""
    for name in ("viewer.html", "viewer.css", "header.html"):
        for forbidden in ("`", "${", "{{", "\\"):
            assert forbidden not in read_asset(name), name


def test_the_assets_fetch_nothing_and_set_no_html():
    for path in ASSETS.iterdir():
        text = path.read_text(encoding="utf-8")
        for forbidden in ("http:", "https:", "//cdn", "@import", "innerHTML", "insertAdjacent"):
            assert forbidden not in text, path.name


def test_the_command_serves_the_models_it_is_given(model, monkeypatch, capsys):
    given = {}

    def serve(models, **options):
        given.update(options, models=models.names)
        return "page", "http://127.0.0.1:7999/"

    monkeypatch.setattr(app, "serve", serve)
    monkeypatch.setattr(app, "wait", lambda page, models: given.update(waited_for=page))
    assert cli.main(["demo", "-m", str(model), "--port", "7999", "--queue", "5"]) == 0
    assert "http://127.0.0.1:7999/" in capsys.readouterr().out
    assert given == {
        "models": ["tiny"],
        "host": "127.0.0.1",
        "port": 7999,
        "queue": 5,
        "open_browser": False,
        "mcp": False,
        "root_path": None,
        "auth": None,
        "waited_for": "page",
    }


def test_a_taken_port_is_told(models):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
            app.serve(models, port=port, examples=[])


def test_the_command_explains_a_missing_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("captioner.demo")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["demo"]) == 2
    assert "pip install 'captioner[demo]'" in capsys.readouterr().err
