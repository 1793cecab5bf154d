"""Language before pictures: the decoder learns the texts; nothing else of the model changes."""

import gzip

import pytest
import torch
from helpers.trainings import Interrupt, recipe, same
from pictures import write_pictures

from captioner.errors import DataError
from captioner.models.encoder import Grid
from captioner.tokenizer import Vocabulary
from captioner.training.language import pretrain, read_texts
from captioner.training.trainer import Trainer

TEXTS = "A zebra drinks from the river\na zebra sleeps\n\nthe river sleeps\n" * 4


def text_recipe(folder, **sections):
    """A tiny run that reads four copies of three sentences first."""
    write_pictures(folder, 6, captions=2)
    (folder / "texts.txt").write_text(TEXTS)
    return recipe(folder, **({"data": {"texts": ["texts.txt"]}} | sections))


def test_words_of_the_texts_are_in_the_vocabulary(tmp_path):
    trainer = Trainer(text_recipe(tmp_path))
    assert {"zebra", "river", "red"} <= set(trainer.vocabulary.words)


def test_the_decoder_learns_the_texts_without_an_image(tmp_path):
    config = text_recipe(tmp_path, data={"texts": []}, optim={"learning_rate": 0.02})
    trainer = Trainer(config)
    texts = [line.lower().split() for line in TEXTS.splitlines() if line]
    words = sorted({word for text in texts for word in text})
    vocabulary = Vocabulary((*Vocabulary.SPECIALS, *words))
    model = type(trainer.model)(config.model, len(vocabulary))
    encoder = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    key = model.decoder.attention.key.weight.detach().clone()
    first = pretrain(model, vocabulary, texts, config, torch.device("cpu"))
    last = [pretrain(model, vocabulary, texts, config, torch.device("cpu")) for _ in range(8)][-1]
    assert last < 0.5 < first
    same(encoder, dict(model.encoder.state_dict()))
    # Where nothing is seen, there is nothing to learn about looking but the decay of the weights.
    rest = model.decoder.attention.key.weight / key
    torch.testing.assert_close(rest, rest[:1, :1].expand_as(rest))

    model.decoder.eval()
    memory = model.decoder.remember(Grid(torch.zeros(1, 1, 32), (1, 1)))
    state, said = model.decoder.start(memory), [Vocabulary.START]
    for word in vocabulary.encode(["a", "zebra", "drinks", "from"]):
        state = model.decoder.step(state, torch.tensor([[said[-1]]]), memory).state
        said.append(word)
    logits = model.decoder.step(state, torch.tensor([[said[-1]]]), memory).logits
    assert vocabulary.words[logits.argmax()] == "the"


def test_a_resumed_run_does_not_read_them_again(tmp_path):
    states = []
    for name in ("whole", "parts"):
        config = text_recipe(tmp_path / name)
        trainer = Trainer(config)
        if name == "parts":
            trainer._train_step = Interrupt(trainer, 2)
            trainer.run()
            trainer = Trainer(config, resume=True)
        trainer.run()
        states.append(trainer.model.state_dict())
    same(*states)


def test_gzipped_texts(tmp_path):
    (tmp_path / "more.txt.gz").write_bytes(gzip.compress(b"two dogs.\n\nA cat\n"))
    config = recipe(tmp_path, data={"texts": ["more.txt.gz"]})
    assert read_texts(config) == [["two", "dogs"], ["a", "cat"]]


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n \n", "one sentence a line"), (None, "cannot read the texts")]
)
def test_texts_that_cannot_be_used_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "texts.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_texts(recipe(tmp_path, data={"texts": ["texts.txt"]}))
    assert "texts.txt" in str(caught.value)
