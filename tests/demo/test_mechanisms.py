"""Decoders of several kinds on one CNN: their file, and the tab that shows them side by side."""

import numpy as np
import pytest
import torch
from helpers.tiny_files import make_photos

pytest.importorskip("gradio", reason="the extra demo is not installed")

import gradio as gr
from helpers.tiny_mechanisms import KINDS, save_decoders

from captioner.api import Captioner
from captioner.checkpoint import load_checkpoint, save_checkpoint
from captioner.demo import app, mechanisms
from captioner.demo.mechanisms import load_mechanisms, save_mechanisms
from captioner.demo.models import Models
from captioner.demo.tabs.mechanisms import on_image, on_sentence
from captioner.errors import CheckpointError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, decoders of all kinds on its CNN, and their file."""
    folder = tmp_path_factory.mktemp("mechanisms")
    save_decoders(folder)
    make_photos(folder / "photos", 2)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_mechanisms(folder / "all.safetensors", folder / "model.safetensors")


def test_each_reads_as_the_model_that_it_was_made_of(folder, loaded, monkeypatch):
    photo = folder / "photos" / "00.png"
    assert [mechanism.kind for mechanism in loaded] == list(KINDS)
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors") if path.stem in KINDS]
    assert (folder / "all.safetensors").stat().st_size < sum(sizes) / 4
    for mechanism in loaded:
        alone = Captioner.from_pretrained(
            folder / f"{mechanism.kind}.safetensors",
            backend="torch",
            device="cpu",
            precision="fp32",  # on some CPUs "auto" is bf16, which is coarser than this compares
        )
        monkeypatch.setattr(mechanism.captioner.backend, "precision", "fp32")
        one, other = (c.score(photo, "a red dog") for c in (alone, mechanism.captioner))
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=0.02)  # fp16 weights
        np.testing.assert_allclose(one.attention, other.attention, atol=0.02)


def test_the_cnn_computes_an_image_once(folder, loaded):
    trunk = loaded[0].captioner.model.encoder.backbone
    assert all(each.captioner.model.encoder.backbone is trunk for each in loaded)
    calls = []
    hook = trunk.trunk.register_forward_hook(lambda *_: calls.append(1))
    for name in ("01.png", "00.png"):
        for mechanism in loaded:
            mechanism.captioner.score(folder / "photos" / name, "a dog")
    hook.remove()
    assert len(calls) == 2


def test_another_cnn_is_refused(folder, tmp_path):
    model, header = load_checkpoint(folder / "model.safetensors")
    with torch.no_grad():
        next(model.encoder.backbone.parameters()).add_(0.1)
    save_checkpoint(tmp_path / "other.safetensors", header, model.state_dict())
    with pytest.raises(CheckpointError, match="another CNN"):
        load_mechanisms(folder / "all.safetensors", tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no decoders"):
        load_mechanisms(folder / "model.safetensors", folder / "model.safetensors")
    files = {"additive": folder / "additive.safetensors", "dot": tmp_path / "other.safetensors"}
    with pytest.raises(CheckpointError, match="differ"):
        save_mechanisms(tmp_path / "all.safetensors", files, {})


def test_all_read_the_same_sentence(folder, loaded):
    models = Models.of({"tiny": Captioner.from_pretrained(folder / "model.safetensors")})
    payload, view = on_image(models, lambda: loaded, str(folder / "photos" / "00.png"), None)
    assert len(payload["kinds"]) == len(KINDS)
    for place, kind in enumerate(payload["kinds"]):
        assert [word["text"] for word in kind["words"]] == view.sentence.words
        assert kind["correctness"] == 1.5 + place
        assert kind["formula"]
        assert all(word["known"] for word in kind["words"])
    payload = on_sentence(lambda: loaded, "a zorbly dog", view)
    for kind in payload["kinds"]:
        assert [word["known"] for word in kind["words"]] == [True, False, True]
    with pytest.raises(gr.Error, match="at least one word"):
        on_sentence(lambda: loaded, "...", view)
    with pytest.raises(gr.Error, match="photo first"):
        on_sentence(lambda: loaded, "a dog", None)
    assert on_image(models, lambda: loaded, None, view) == (None, None)


def test_what_cannot_be_read_is_said(folder, loaded, tmp_path):
    models = Models.of({"tiny": Captioner.from_pretrained(folder / "model.safetensors")})
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nonsense")
    payload, view = on_image(models, lambda: loaded, str(broken), None)
    assert "cannot be used" in payload["error"]
    assert view is None
    good, view = on_image(models, lambda: loaded, str(folder / "photos" / "00.png"), None)
    payload, after = on_image(models, lambda: loaded, str(broken), view)
    assert after is view  # the image before stays
    assert payload["photo"] == good["photo"]
    assert payload["kinds"] == good["kinds"]
    assert "cannot be used" in payload["problem"]


def test_decoders_of_another_cnn_are_told_without_a_path(folder, monkeypatch, caplog):
    monkeypatch.setattr(mechanisms, "DEFAULT_WEIGHTS", folder / "model.safetensors")
    monkeypatch.setattr(mechanisms, "MECHANISMS", folder / "model.safetensors")
    models = Models.of({"tiny": Captioner.from_pretrained(folder / "model.safetensors")})
    photo = str(folder / "photos" / "00.png")
    payload, _ = on_image(models, mechanisms.load_or_log, photo, None)
    assert "cannot be used on this server" in payload["error"]
    assert str(folder) not in payload["error"]
    assert str(folder) in caplog.text


@pytest.mark.parametrize("there", [True, False])
def test_the_tab_is_there_if_the_decoders_are(folder, monkeypatch, there):
    monkeypatch.setattr(mechanisms, "DEFAULT_WEIGHTS", folder / "model.safetensors")
    name = "all.safetensors" if there else "none.safetensors"
    monkeypatch.setattr(mechanisms, "MECHANISMS", folder / name)
    models = Models.of({"tiny": Captioner.from_pretrained(folder / "model.safetensors")})
    ids = {getattr(block, "elem_id", None) for block in app.build(models).blocks.values()}
    assert ("mechanisms" in ids) is there
