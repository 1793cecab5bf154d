"""The model file: what comes out is what went in, and any other file is refused by name."""

import dataclasses
import json
import os
import pickle
import stat
import zipfile
from pathlib import Path
from typing import get_args

import pytest
import safetensors.torch
import torch
from helpers.tiny import MODEL

from captioner.checkpoint import (
    FORMAT_VERSION,
    Header,
    load_checkpoint,
    load_weights,
    read_header,
    save_checkpoint,
)
from captioner.config import AttentionConfig, AttentionKind, DecoderConfig
from captioner.errors import CheckpointError
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import Vocabulary
from captioner.utils.files import replacing

WORDS = [f"word{n}" for n in range(23)] + ["été", "犬", "naïve"]
VOCABULARY = Vocabulary.from_list(["<pad>", "<start>", "<end>", "<unk>", *WORDS])
PREPROCESS = Preprocess(64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
RECORD = {"data": "drawn", "metrics": {"cider": 0.61}, "note": "naïve 犬"}


def header_of(model, **changes):
    values = {"vocabulary": VOCABULARY, "preprocess": PREPROCESS, "record": RECORD} | changes
    return Header(config=model.config, **values)


def outputs(model):
    """Logits and maps of two fixed pictures with two captions each."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    captions = torch.randint(4, 30, (2, 2, 7), generator=generator)
    with torch.no_grad():
        result = model(images, captions, torch.tensor([[6, 4], [6, 1]]))
    return result.logits, result.attention


@pytest.fixture
def saved(tiny_model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, header_of(tiny_model), tiny_model.state_dict())
    return path


def test_round_trip_is_exact(tiny_model, saved):
    torch.manual_seed(99)
    model, header = load_checkpoint(saved)
    assert header == header_of(tiny_model)
    assert not model.training
    for one, other in zip(outputs(model), outputs(tiny_model), strict=True):
        assert torch.equal(one, other)
    mine, theirs = tiny_model.state_dict(), model.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.dtype == theirs[name].dtype, name


def test_what_half_precision_cannot_hold_is_not_written(tiny_model, tmp_path):
    weights = dict(tiny_model.state_dict())
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name] = torch.full_like(weights[name], 1e5)
    path = tmp_path / "half.safetensors"
    with pytest.raises(CheckpointError, match=rf"{name} does not fit into fp16"):
        save_checkpoint(path, header_of(tiny_model), weights, half=True)
    assert not path.exists()


def test_half_precision_is_close_and_half_the_size(tiny_model, saved, tmp_path):
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, header_of(tiny_model), tiny_model.state_dict(), half=True)
    assert path.stat().st_size < 0.6 * saved.stat().st_size
    model, _ = load_checkpoint(path)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    for one, other in zip(outputs(model), outputs(tiny_model), strict=True):
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)


def test_the_header_reads_without_the_weights(tiny_model, saved):
    header = read_header(saved)
    assert header == header_of(tiny_model)
    assert header.vocabulary.words[-2] == "犬"
    assert header.record == RECORD


@pytest.mark.parametrize("deep_output", [False, True])
def test_tied_weights_are_stored_once_and_stay_tied(tmp_path, deep_output):
    torch.manual_seed(1)
    decoder = DecoderConfig(
        embedding=12, hidden=12, tied=True, deep_output=deep_output, dropout=0.0
    )
    model = CaptionModel(dataclasses.replace(MODEL, decoder=decoder), 30).eval()
    path = tmp_path / "tied.safetensors"
    save_checkpoint(path, header_of(model), model.state_dict())
    stored = load_weights(path)
    assert ("decoder.embed.weight" in stored) != ("decoder.project.weight" in stored)
    again, _ = load_checkpoint(path)
    assert again.decoder.project.weight is again.decoder.embed.weight
    for one, other in zip(outputs(again), outputs(model), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", get_args(AttentionKind))
def test_every_kind_of_attention_is_saved(tmp_path, kind):
    torch.manual_seed(2)
    attention = AttentionConfig(kind=kind, size=8, heads=2, normalizer="sparsemax", see_word=True)
    model = CaptionModel(dataclasses.replace(MODEL, attention=attention), 30).eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, header_of(model), model.state_dict())
    for one, other in zip(outputs(load_checkpoint(path)[0]), outputs(model), strict=True):
        assert torch.equal(one, other)


def refuse(path, message, action=load_checkpoint):
    """Loading must fail with our error, in a line or two that name the file."""
    with pytest.raises(CheckpointError, match=message) as raised:
        action(path)
    text = str(raised.value)
    assert path.name in text
    assert len(text.splitlines()) <= 2
    assert raised.value.__suppress_context__ or raised.value.__cause__ is None


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "legacy", *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_pickles_are_refused_unread(tmp_path, kind):
    path, sign = tmp_path / "model.safetensors", tmp_path / "sign"
    bomb = {"weights": torch.zeros(3) if isinstance(kind, str) else 3, "bomb": Bomb(sign)}
    if isinstance(kind, str):
        torch.save(bomb, path, _use_new_zipfile_serialization=kind == "torch")
    else:
        path.write_bytes(pickle.dumps(bomb, protocol=kind))
    for action in (load_checkpoint, read_header, load_weights):
        # The text protocols 0 and 1 look like any other damaged file.
        refuse(path, "damaged" if kind in (0, 1) else "pickled file", action)
    assert not sign.exists()
    with open(path, "rb") as file:  # the bomb is live
        (torch.load(file, weights_only=False) if isinstance(kind, str) else pickle.load(file))
    assert sign.exists()


def test_files_cut_short_are_refused(saved):
    whole = saved.read_bytes()
    body = len(whole) - int.from_bytes(whole[:8], "little") - 8
    assert body > 0
    header_end = len(whole) - body
    offsets = {0, 1, 7, 8, 9, 100, header_end // 2, header_end - 1, header_end, header_end + 1}
    offsets |= {header_end + body // 2, len(whole) - 1}
    path = saved.with_name("cut.safetensors")
    for offset in sorted(offsets):
        path.write_bytes(whole[:offset])
        for action in (load_checkpoint, read_header, load_weights):
            refuse(path, "damaged, cut short or no safetensors file", action)
    path.write_bytes(whole + b"more")
    refuse(path, "damaged")
    path.write_bytes(whole[:8] + b"x" + whole[9:])
    refuse(path, "damaged")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"words", "damaged, cut short or no safetensors file"),
        (b"\xff" * 64, "damaged, cut short or no safetensors file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "no model but an image$"),
        (b"<!DOCTYPE html>\n<html lang='en'>", "no model but a web page"),
        (b"PK\3\4" + bytes(60), "a zip archive: unpack it and name the .safetensors file"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refuse(path, reason)


def test_a_zip_archive_with_a_model_is_no_pickle(tmp_path):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best.safetensors", b"x")
    refuse(path, "zip archive: unpack it")


def test_headers_are_bounded(tmp_path):
    path = tmp_path / "model.safetensors"
    size = (1 << 25) + 8
    with open(path, "wb") as file:
        file.write(size.to_bytes(8, "little"))
        file.truncate(8 + size)
    refuse(path, "a header of 33,554,440 bytes")


def test_a_deeply_nested_header_is_damaged(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, metadata={"captioner": "[" * 100_000})
    refuse(path, "damaged header")


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "bert.safetensors"
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata)
        refuse(path, "not of captioner")
        refuse(path, "not of captioner", read_header)


def rewrite(path, change):
    """Change the document in a model file's header."""
    with safetensors.safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["captioner"])
    tensors = safetensors.torch.load_file(path)
    text = change(document)
    text = text if isinstance(text, str) else json.dumps(document)
    safetensors.torch.save_file(tensors, path, {"captioner": text})


def test_a_newer_format_says_to_upgrade(saved):
    rewrite(saved, lambda document: document.update(format=FORMAT_VERSION + 1))
    refuse(saved, rf"format {FORMAT_VERSION + 1}.*upgrade")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: "{not json",
        lambda document: "[]",
        lambda document: "null",
        lambda document: document.pop("format") and None,
        lambda document: document.update(format="one"),
        lambda document: document.pop("config") and None,
        lambda document: document["config"].update(surprise=1),
        lambda document: document["config"]["decoder"].update(hidden="wide"),
        lambda document: document.update(config=3),
        lambda document: document.update(vocabulary=["a", "b"]),
        lambda document: document.update(vocabulary=3),
        lambda document: document.update(vocabulary=[*document["vocabulary"][:-1], 7]),
        lambda document: document["preprocess"].update(size=0),
        lambda document: document.pop("record") and None,
    ],
)
def test_damaged_headers_are_refused(saved, change):
    rewrite(saved, change)
    refuse(saved, "damaged header", read_header)
    refuse(saved, "damaged header")


def test_a_network_that_cannot_be_built(saved):
    rewrite(saved, lambda d: d["config"]["encoder"].update(name="timm/never_seen_net"))
    refuse(saved, "never_seen_net")


def test_weights_that_do_not_fit(tiny_model, saved):
    rewrite(saved, lambda document: document["config"]["decoder"].update(hidden=17))
    refuse(saved, "weights do not fit")
    for missing in ("decoder.embed.weight", "encoder.laterals.0.norm.bias"):
        weights = {k: v for k, v in tiny_model.state_dict().items() if k != missing}
        save_checkpoint(saved, header_of(tiny_model), weights)
        refuse(saved, "weights do not fit")
    rewrite(saved, lambda document: document["vocabulary"].append("more"))
    refuse(saved, "weights do not fit")
    rewrite(saved, lambda document: document["config"]["decoder"].update(hidden=10**9))
    refuse(saved, "weights do not fit")  # nor does the network into memory


def test_tied_weights_that_are_not_there(tmp_path):
    decoder = DecoderConfig(embedding=12, hidden=12, tied=True)
    model = CaptionModel(dataclasses.replace(MODEL, decoder=decoder), 30)
    weights = {k: v for k, v in model.state_dict().items() if v is not model.decoder.embed.weight}
    weights = {k: v for k, v in weights.items() if not k.endswith(("embed.weight", "ject.weight"))}
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, header_of(model), weights)
    refuse(path, "weights do not fit")


@pytest.mark.parametrize("action", [load_checkpoint, read_header, load_weights])
def test_no_such_file_and_folders(tmp_path, action):
    refuse(tmp_path / "nowhere.safetensors", "no model file", action)
    refuse(
        Path("https://a.org/b.safetensors"), "https://a.org/b.safetensors is a web address", action
    )
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refuse(pointer, "a Git LFS pointer.*git lfs pull", action)
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    refuse(folder, "is a folder", action)


def test_saving_makes_the_folder_and_a_file_for_all(tiny_model, tmp_path):
    path = tmp_path / "new" / "deep" / "model.safetensors"
    save_checkpoint(path, header_of(tiny_model), tiny_model.state_dict())
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_failing_save_leaves_the_old_file(tiny_model, saved, monkeypatch):
    before = saved.read_bytes()

    def fail_half_way(_tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail_half_way)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(saved, header_of(tiny_model), tiny_model.state_dict())
    with pytest.raises(TypeError):  # a record that JSON cannot hold
        save_checkpoint(saved, header_of(tiny_model, record={"x": object()}), {})
    assert saved.read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_replacing_shows_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename across file systems is not atomic
    assert path.read_text() == "new"

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("newer")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_weights_that_hold_gradients_and_odd_strides_are_saved(tiny_model, tmp_path):
    """As the training has them: channels_last memory, parameters instead of tensors."""
    path = tmp_path / "model.safetensors"
    tiny_model.to(memory_format=torch.channels_last)
    save_checkpoint(path, header_of(tiny_model), dict(tiny_model.named_parameters()))
    for name, tensor in load_weights(path).items():
        assert torch.equal(tensor, tiny_model.get_parameter(name)), name
