"""Word embeddings start from a file of vectors: known words are set, nothing else moves."""

import gzip
import logging
import struct

import pytest
import torch
from helpers.tiny import MODEL

from captioner.config import Config, DataConfig
from captioner.errors import ConfigError, DataError
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import Vocabulary
from captioner.training.data import load_embeddings, read_vectors

WORDS = ["a", "dog", "on", "grass"]
SIZE = MODEL.decoder.embedding


@pytest.fixture
def vocabulary():
    return Vocabulary.build([WORDS], min_count=1)


def vector(word, size=SIZE):
    return [round(0.125 * (len(word) + place), 3) for place in range(size)]


def line(word, size=SIZE):
    return " ".join([word, *map(str, vector(word, size))]) + "\n"


def config(path, **options):
    return Config(model=MODEL, data=DataConfig(embeddings=str(path)), **options)


@pytest.mark.parametrize("name", ["glove.txt", "word2vec.txt", "glove.txt.gz"])
def test_known_words_are_set_and_the_others_stay(tmp_path, vocabulary, caplog, name):
    text = line("the") + line("dog") + line("<unk>") + line("grass") + "at home " + line("")[1:]
    if name == "word2vec.txt":
        text = f"5 {SIZE}\n{text}"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    model = CaptionModel(MODEL, len(vocabulary))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        load_embeddings(model, vocabulary, config(path))
    assert "2 of 4 words" in caplog.text
    for key, value in model.state_dict().items():
        if key != "decoder.embed.weight":
            assert torch.equal(value, before[key]), key
            continue
        for number, word in enumerate(vocabulary.to_list()):
            expected = torch.tensor(vector(word)) if word in ("dog", "grass") else None
            expected = before[key][number] if expected is None else expected
            assert torch.equal(value[number], expected), word
    assert model.decoder.embed.weight.requires_grad


def test_without_the_key_nothing_happens(vocabulary):
    model = CaptionModel(MODEL, len(vocabulary))
    before = model.decoder.embed.weight.clone()
    load_embeddings(model, vocabulary, Config(model=MODEL))
    assert torch.equal(model.decoder.embed.weight, before)


def test_the_first_vector_of_a_word_counts_and_words_may_have_spaces(tmp_path, vocabulary):
    path = tmp_path / "vectors.txt"
    lines = [line("the"), "dog food" + line(""), line("dog"), "dog" + " 9" * SIZE + "\n\n"]
    path.write_text("".join(lines))
    found = read_vectors(path, vocabulary, SIZE)
    (dog,) = vocabulary.encode(["dog"])
    assert {key: value.tolist() for key, value in found.items()} == {dog: vector("dog")}


@pytest.mark.parametrize("header", ["", "2 7\n"])
def test_another_size_is_named_on_both_sides(tmp_path, vocabulary, header):
    path = tmp_path / "vectors.txt"
    path.write_text(header + line("dog", 7))
    model = CaptionModel(MODEL, len(vocabulary))
    with pytest.raises(ConfigError, match=rf"of 7 numbers .*embedding is {SIZE}") as raised:
        load_embeddings(model, vocabulary, config(path))
    assert len(str(raised.value).splitlines()) == 1


def test_not_together_with_a_trained_model(tmp_path, vocabulary):
    path = tmp_path / "vectors.txt"
    path.write_text(line("dog"))
    model = CaptionModel(MODEL, len(vocabulary))
    with pytest.raises(ConfigError, match=r"init=best\.safetensors"):
        load_embeddings(model, vocabulary, config(path, init="best.safetensors"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "none of the 4 words"),
        (b"dog\n", "no word vectors in text form"),
        (line("hund").encode(), "none of the 4 words"),
        (line("the").encode() + b"dog 1 2 x\n", "line 2: 'dog' should have"),
        (line("the").encode() + b"dog 1 2\n", "line 2: 'dog' should have"),
        (line("the").encode() + b"dog" + b" nan" * SIZE, "line 2: 'dog' should have"),
        (f"9 {SIZE}\n".encode() + struct.pack("<300f", *range(300)), "text file"),
    ],
    ids=["absent", "empty", "no-numbers", "language", "letters", "short", "nan", "binary"],
)
def test_a_file_that_is_no_use(tmp_path, vocabulary, content, message):
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_vectors(path, vocabulary, SIZE)
    assert len(str(raised.value).splitlines()) == 1


TRUNCATED = gzip.compress(line("dog").encode(), mtime=0)[:-12]


@pytest.mark.parametrize("content", [b"plain text", TRUNCATED])
def test_a_damaged_archive(tmp_path, vocabulary, content):
    path = tmp_path / "vectors.txt.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read the word vectors"):
        read_vectors(path, vocabulary, SIZE)
