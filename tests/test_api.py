"""The Python API: kinds of input, options, results, and that it leaves the process as it was."""

import io
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from helpers.tiny_files import environment
from PIL import Image

import captioner
from captioner import Caption, Captioner, ConfigError, Ensemble, Failure, ImageError
from captioner.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def tiny(model):
    return Captioner.from_pretrained(model, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer


def test_public_names_are_listed_and_load():
    assert set(captioner.__all__) <= set(dir(captioner))
    for name in captioner.__all__:
        assert getattr(captioner, name)
    with pytest.raises(AttributeError, match="Captionner"):
        captioner.Captionner  # noqa: B018


def test_every_kind_of_image_gives_the_same_caption(tiny, pixels, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(pixels).getvalue())
    expected = tiny(path, max_length=5)
    with path.open("rb") as file:
        sources = [
            *(str(path), path.read_bytes(), png(pixels), file, Image.open(path), pixels),
            *(torch.from_numpy(pixels), torch.from_numpy(pixels).permute(2, 0, 1)),
            *({"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}),
        ]
        for source in sources:
            assert tiny(source, max_length=5) == expected, source
        for several in (sources[:2], tuple(sources[:2]), iter(sources[:2])):
            assert [each.text for each in tiny(several, max_length=5)] == [expected.text] * 2
    assert tiny([], max_length=5) == []
    for wrong in ({"image": 1}, 3, None, np.zeros((2, 5, 6, 3), np.uint8)):
        with pytest.raises(ImageError, match="not a picture"):
            tiny(wrong)


def test_more_captions_widen_the_beam(tiny, pixels):
    found = tiny(pixels, num_captions=5, max_length=5)
    assert len(found.candidates) == 5
    assert found == tiny(pixels, num_captions=5, beam=5, max_length=5)


def test_another_word_leads_to_another_sentence(tiny, pixels):
    options = {"beam": 1, "max_length": 5}
    found = tiny(pixels, alternatives=5, **options)
    assert [row[0][0] for row in found.alternatives[: len(found.words)]] == found.words
    for place in range(len(found.words)):
        before = found.words[:place]
        for word, probability in found.alternatives[place]:
            assert 0 < probability < 1
            if word == "<end>":
                continue
            other = tiny(pixels, prefix=" ".join([*before, word]), **options)
            assert other.words[: place + 1] == [*before, word]
            assert math.exp(other.log_probs[place]) == pytest.approx(probability, rel=1e-3)
            assert len(other.attention) == len(other.words)
    plain = tiny(pixels, **options)
    assert plain == found
    assert plain.alternatives == []
    assert "alternatives" not in plain.to_dict()
    listed = found.to_dict()["alternatives"]
    assert listed[0][0]["word"] == found.words[0]
    scored = tiny.score(pixels, found.text, alternatives=5).alternatives
    assert len(scored) == len(found.words) + 1
    for one, row in zip(scored, found.alternatives, strict=False):
        assert [word for word, _ in one] == [word for word, _ in row]
    assert tiny.score(pixels, found.text).alternatives == []


@pytest.mark.parametrize(
    ("option", "hint"),
    [("num_caption", "num_captions"), ("diverse", "groups"), ("requires", "require")],
)
def test_an_unknown_option_names_the_nearest(tiny, pixels, option, hint):
    with pytest.raises(ConfigError, match=f"{option!r}.*{hint!r}"):
        tiny.stream([pixels], **{option: 3})


def test_results_compare_hash_and_print(tiny, pixels):
    one, two = (tiny(pixels, max_length=5) for _ in range(2))
    other = tiny(pixels, max_length=2)
    assert one == two != other
    assert len({one, two, other}) == 2
    assert repr(one).startswith("Caption('")
    assert len(repr(one)) < 100
    scores = [tiny.score(pixels, "a dog") for _ in range(2)]
    assert scores[0] == scores[1]
    assert len(set(scores)) == 1
    assert len(repr(scores[0])) < 100
    assert Failure(pixels, "no file") == Failure(pixels, "no file")
    assert "tiny" not in repr(tiny)
    assert len(repr(tiny)) < 120


def test_a_notebook_shows_the_sheet(tiny, pixels):
    caption = tiny(pixels, max_length=3)
    assert Image.open(io.BytesIO(caption._repr_png_())).width > 100
    assert caption.text in caption._repr_html_()
    gone = Caption(**{**vars(caption), "source": "gone.png"})
    assert gone._repr_png_() is None
    assert "<img" not in gone._repr_html_()


def test_the_callers_model_does_not_change(model):
    network, header = load_checkpoint(model)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Captioner(network, header, device="cpu")
    assert network.training
    assert network.state_dict().keys() == before.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_ensemble_of_two_is_asked_as_one(tiny, pixels):
    both = Ensemble([tiny, tiny])
    assert len(both.backends) == 2
    alone, together = tiny(pixels, max_length=5), both(pixels, max_length=5)
    assert together.words == alone.words
    assert together.score == pytest.approx(alone.score, abs=1e-5)
    np.testing.assert_allclose(together.attention, alone.attention, atol=1e-6)


def test_an_ensemble_divides_the_cores_once(tiny, pixels, monkeypatch):
    """Per thread: the second time would divide the share that is left."""
    entered = []
    backend = type(tiny.backend)
    monkeypatch.setattr(backend, "lanes", 2)
    monkeypatch.setattr(
        backend, "enter_lane", lambda *_: entered.append(threading.current_thread().name)
    )
    captions = list(Ensemble([tiny, tiny]).stream([pixels] * 4, batch_size=1))
    assert len(captions) == 4
    assert entered
    assert len(entered) == len(set(entered))


def test_score_is_the_sum_of_the_searched_caption(tiny, pixels):
    found = tiny(pixels, max_length=8, length_penalty=0)
    scored = tiny.score(pixels, found.text)
    if found.finished and scored.words == found.words:
        assert scored.log_probs == pytest.approx(found.log_probs, abs=1e-4)
        np.testing.assert_allclose(scored.attention, found.attention, atol=1e-5)


def test_searches_need_no_pytorch():
    code = """
import sys, captioner.api, captioner.decoding.mbr
sys.exit("torch" in sys.modules or "timm" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, cwd=os.sep
    )
    assert run.returncode == 0, run.stderr


def test_an_unknown_backend_is_refused(model):
    with pytest.raises(ConfigError, match="onyx"):
        Captioner.from_pretrained(model, backend="onyx")
