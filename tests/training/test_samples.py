"""Samples of a run: the same photos after each validation, drawn from their files."""

import json
import logging

import numpy as np
import pytest
import torch
from helpers.searches import beam_search
from helpers.tiny import MODEL
from helpers.tiny_files import WORDS, make_photos
from PIL import Image

from captioner.checkpoint import load_checkpoint
from captioner.config import Config, LogConfig, OptimConfig, ValidationConfig
from captioner.data.annotations import Example
from captioner.decoding.options import decoding_options
from captioner.tokenizer import detokenize
from captioner.training.validation import spread, write_samples

CONFIG = Config(
    model=MODEL,
    log=LogConfig(samples=3),
    validation=ValidationConfig(beam=2, max_length=6),
    optim=OptimConfig(precision="fp32"),
)


@pytest.fixture
def parts(model):
    network, header = load_checkpoint(model)
    return network.eval(), header.vocabulary, header.preprocess


@pytest.fixture
def examples(tmp_path):
    make_photos(tmp_path / "photos", 7)
    paths = sorted((tmp_path / "photos").iterdir())
    return [
        Example(str(path), (f"Photo {number}.",), "val", number)
        for number, path in enumerate(paths)
    ]


def write(folder, parts, examples, epoch=3, config=CONFIG):
    write_samples(
        folder, *parts, examples, config, torch.device("cpu"), epoch=epoch, step=100 * epoch
    )
    path = folder / "samples" / f"epoch-{epoch:03}" / "samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_strips_and_captions_of_fixed_photos(tmp_path, parts, examples, monkeypatch):
    monkeypatch.setattr("captioner.decoding.options._ENGLISH", 1)
    lines = write(tmp_path, parts, examples)
    assert [line["image"] for line in lines] == ["00.png", "02.png", "04.png"]  # of 7, spread
    assert [line["references"] for line in lines] == [["Photo 0."], ["Photo 2."], ["Photo 4."]]
    assert all(line["epoch"] == 3 and line["step"] == 300 for line in lines)
    network, vocabulary, preprocess = parts
    options = decoding_options(vocabulary, beam=2, max_length=6)  # as captioning: no word twice
    for line in lines:
        photo = Image.open(tmp_path / "photos" / line["image"])
        with torch.no_grad():
            memory = network.remember(preprocess(photo)[None])
        ((best, *_),) = beam_search(network.decoder, memory, options)
        words = vocabulary.decode(best.words)
        assert line["caption"] == detokenize(words)
        assert set(words) <= set(WORDS)
        assert line["log_prob"] == pytest.approx(sum(best.log_probs), abs=1e-3)
        with Image.open(tmp_path / "samples" / "epoch-003" / line["strip"]) as strip:
            assert strip.format == "PNG"
            assert strip.width > 200
            assert np.ptp(np.asarray(strip)) > 100
    again = write(tmp_path, parts, examples, epoch=4)
    assert [{**line, "epoch": 3, "step": 300} for line in again] == lines


def test_the_model_and_the_random_numbers_stay_as_they_are(tmp_path, parts, examples):
    before = {name: value.clone() for name, value in parts[0].state_dict().items()}
    state = torch.get_rng_state()
    write(tmp_path, parts, examples)
    assert torch.equal(torch.get_rng_state(), state)
    after = parts[0].state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_photo_that_is_gone_is_a_warning(tmp_path, parts, examples, caplog):
    (tmp_path / "photos" / "02.png").unlink()
    with caplog.at_level(logging.WARNING):
        lines = write(tmp_path, parts, examples)
    assert [line["image"] for line in lines] == ["00.png", "04.png"]
    assert [line["strip"] for line in lines] == ["photo-1.png", "photo-3.png"]
    assert "02.png" in caplog.text


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, parts, examples, caplog):
    (tmp_path / "samples").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert write(tmp_path / "x" / "..", parts, examples) == []
    assert "no sample 1 of epoch 3" in caplog.text


def test_none_are_drawn_if_none_are_asked_for(tmp_path, parts, examples):
    assert write(tmp_path, parts, examples, config=Config(log=LogConfig(samples=0))) == []
    assert write(tmp_path, parts, []) == []
    assert not (tmp_path / "samples").exists()


def test_spread(examples):
    assert spread(examples, 100) == examples
    assert spread(examples, 1) == examples[:1]
    assert len({example.image for example in spread(examples, 5)}) == 5
