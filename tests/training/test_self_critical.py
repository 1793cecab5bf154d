"""Self-critical training: rewards and gradients equal their formulas, and the reward goes up."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers.searches import sample
from helpers.tiny import make_captions, make_decoder, make_grid
from helpers.trainings import recipe
from pictures import write_pictures

from captioner.config import LossConfig
from captioner.data.caption_batch import CaptionBatch
from captioner.decoding.options import DecodingOptions
from captioner.decoding.sampling import image_key
from captioner.errors import ConfigError
from captioner.metrics.cider import DocumentFrequency, cider_d
from captioner.tokenizer import Vocabulary
from captioner.training.losses import BatchCounts, caption_losses
from captioner.training.self_critical import (
    SelfCritical,
    advantages,
    pack_sentences,
    reference_ids,
    sentence_ids,
)
from captioner.training.trainer import Trainer

END = Vocabulary.END
REFERENCES = [[[4, 5, 6, END], [4, 5, 7, END]], [[8, 6, 4, END]], [[5, 5, 8, 4, END]]]


@pytest.fixture
def frequency():
    return DocumentFrequency(REFERENCES)


def test_the_baseline_is_what_the_others_got(frequency):
    drawn = [[[4, 5, 6, END], [8, 8, END], [4, 5, END]], [[8, 6, END], [8, 6, 4, END], [4, END]]]
    rewards, better = advantages(drawn, None, REFERENCES[:2], frequency)
    flat = [sentence for photo in drawn for sentence in photo]
    known = [REFERENCES[0]] * 3 + [REFERENCES[1]] * 3
    expected = cider_d(flat, known, frequency).per_image.reshape(2, 3)
    np.testing.assert_allclose(rewards, expected)
    for photo in range(2):
        for n in range(3):
            others = [expected[photo, k] for k in range(3) if k != n]
            assert better[photo, n] == pytest.approx(expected[photo, n] - sum(others) / 2)


def test_the_baseline_is_the_greedy_sentence(frequency):
    drawn, greedy = [[[4, 5, 6, END], [8, END]]], [[[4, 5, END]]]
    rewards, better = advantages(drawn, greedy, REFERENCES[:1], frequency)
    (baseline,) = cider_d([[4, 5, END]], REFERENCES[:1], frequency).per_image
    np.testing.assert_allclose(better, rewards - baseline)


def test_a_photo_without_references_teaches_nothing(frequency):
    rewards, better = advantages([[[4, END], [5, END]]] * 2, None, [[], REFERENCES[1]], frequency)
    assert not rewards[0].any()
    assert not better[0].any()


def test_breaking_off_costs(frequency):
    """The same words score less where END is missing: no reward for "a man in a"."""
    drawn = [[[4, 5, 6, END], [4, 5, 6]]]
    rewards, _ = advantages(drawn, None, REFERENCES[:1], frequency)
    assert rewards[0, 0] > rewards[0, 1]


def test_packing_keeps_every_sentence():
    drawn = [[[4, END], [5, 6, 7, END]], [[8, END], [8, 7, 6, 5, 4]]]
    captions, lengths, order, places = pack_sentences(drawn)
    assert order.tolist() == [1, 0]
    assert lengths.tolist() == [[5, 2], [4, 2]]
    for row, photo in enumerate(order.tolist()):
        for column, place in enumerate(places[row].tolist()):
            length = int(lengths[row, column])
            words = captions[row, column].tolist()
            assert words[0] == Vocabulary.START
            assert words[1 : length + 1] == drawn[photo][place]
            assert set(words[length + 1 :]) <= {Vocabulary.PAD}


class Stub(torch.nn.Module):
    """A model whose encoder hands its features on."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder
        self.encoder = torch.nn.Module()
        self.encoder.forward_neck = lambda stages: make_grid(3)._replace(features=stages[0])


def make_batch(count=3):
    captions, lengths = make_captions([[5, 3], [4, 0], [2, 2]][:count])
    features = [make_grid(3).features[:count]]
    return CaptionBatch(None, features, captions, lengths, torch.arange(count))


def test_the_loss_is_reinforce(frequency):
    """-Σ advantage · log P(sentence) / sentences, with P what the sampler drew from."""
    decoder = make_decoder(9).train()
    config = LossConfig(objective="self_critical", draws=4)
    objective = SelfCritical(Stub(decoder), None, config, 10, frequency, max_length=6)
    batch = make_batch()
    counts = BatchCounts(torch.tensor(0.0), torch.tensor(12.0))
    losses = objective(batch, counts, step=3)
    assert decoder.training

    decoder.eval()
    memory = decoder.remember(make_grid(3))
    options = DecodingOptions(sample=True, num_captions=4, max_length=6, seed=3)
    found = sample(decoder, memory, options, [image_key(str(i).encode()) for i in range(3)])
    drawn = [[sentence_ids(one) for one in photo] for photo in found]
    rewards, better = advantages(drawn, None, reference_ids(batch), frequency)
    # The first word is never END, and PAD, START and UNK never come: the loss renormalises for
    # the latter, so the sampler's own log-probabilities are compared less their lost mass.
    total = 0.0
    for photo in range(3):
        for n, one in enumerate(found[photo]):
            state = decoder.start(memory.select(torch.tensor([photo])), 1)
            word, log_prob = torch.tensor([[Vocabulary.START]]), 0.0
            for target in drawn[photo][n]:
                step = decoder.step(state, word, memory.select(torch.tensor([photo])))
                logits = step.logits[0, 0].clone()
                logits[[Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK]] = -torch.inf
                log_prob += logits.log_softmax(-1)[target].item()
                state, word = step.state, torch.tensor([[target]])
            assert one.words == [w for w in drawn[photo][n] if w != END]
            total -= better[photo, n] * log_prob
    assert losses.total.item() == pytest.approx(total / 12, rel=1e-4, abs=1e-6)
    assert losses.parts["reward"].item() == pytest.approx(rewards.mean(), rel=1e-5)


def test_sentences_are_drawn_without_dropout(frequency):
    """Dropout is for what learns from them; what is drawn is what the model would say."""
    rewards = []
    for dropout in (0.0, 0.9):
        decoder = make_decoder(9, dropout=dropout).train()
        config = LossConfig(objective="self_critical", draws=4)
        objective = SelfCritical(Stub(decoder), None, config, 10, frequency, max_length=6)
        losses = objective(make_batch(), BatchCounts(torch.tensor(0.0), torch.tensor(12.0)), step=3)
        rewards.append(losses.parts["reward"].item())
    assert rewards[0] == rewards[1] > 0


def test_cross_entropy_is_added_with_its_weight(frequency):
    """The references are imitated as in training by cross-entropy alone."""
    decoder, batch = make_decoder(9), make_batch()
    plain = LossConfig(objective="self_critical", draws=4)
    mixed = dataclasses.replace(plain, cross_entropy=0.2)

    def losses(config):
        objective = SelfCritical(Stub(decoder), None, config, 10, frequency, max_length=6)
        tokens, sentences = objective.count(batch)
        counts = BatchCounts(torch.tensor(float(tokens)), torch.tensor(float(sentences)))
        return objective(batch, counts, step=3)

    result = decoder(decoder.remember(make_grid(3)), batch.captions, batch.lengths)
    expected = caption_losses(result, plain).parts["cross_entropy"]
    added = losses(mixed).total - losses(plain).total
    torch.testing.assert_close(added, 0.2 * expected)
    torch.testing.assert_close(losses(mixed).parts["cross_entropy"], expected)


def test_words_are_counted_over_all_processes(frequency, monkeypatch):
    """The maps' entropy is a mean over words; how many were drawn elsewhere, each has to hear."""
    config = LossConfig(objective="self_critical", draws=4)
    objective = SelfCritical(Stub(make_decoder(9)), None, config, 10, frequency, max_length=6)
    counts = BatchCounts(torch.tensor(0.0), torch.tensor(12.0))
    alone = objective(make_batch(), counts, step=3).parts["attention_entropy"]
    more = torch.tensor([2.0, 1.0])  # as many sentences, twice as long
    monkeypatch.setattr("captioner.training.self_critical.sum_over_ranks", lambda sums: more * sums)
    torch.testing.assert_close(
        objective(make_batch(), counts, step=3).parts["attention_entropy"], alone / 2
    )


def test_a_step_makes_better_sentences_likelier(frequency):
    decoder = make_decoder(9)
    config = LossConfig(objective="self_critical", draws=8)
    objective = SelfCritical(Stub(decoder), None, config, 10, frequency, max_length=6).train()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.03)
    counts = BatchCounts(torch.tensor(0.0), torch.tensor(24.0))
    rewards = []
    for step in range(40):
        losses = objective(make_batch(), counts, step)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        rewards.append(losses.parts["reward"].item())
    assert np.mean(rewards[-5:]) > 2 * np.mean(rewards[:5])


@pytest.mark.parametrize("static", [False, True])
def test_in_bf16_every_weight_learns_beside_the_draws(frequency, static):
    """Autocast must not hand the copies of weights that the draws made to the pass that learns."""
    decoder = make_decoder(9)
    config = LossConfig(objective="self_critical", draws=8)
    objective = SelfCritical(Stub(decoder), None, config, 10, frequency, max_length=6).train()
    objective.static = static
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(make_batch(), BatchCounts(torch.tensor(0.0), torch.tensor(24.0)), 0)
    losses.total.backward()
    for name, weight in decoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_other_photos_of_the_batch_change_nothing(frequency):
    """What is drawn for a photo, and what it teaches, depends on the photo and the step alone."""
    decoder = make_decoder(9)
    config = LossConfig(objective="self_critical", draws=3)
    objective = SelfCritical(Stub(decoder), None, config, 10, frequency, max_length=6)
    counts = BatchCounts(torch.tensor(0.0), torch.tensor(9.0))
    whole = objective(make_batch(3), counts, step=5)
    parts = [objective(piece, counts, step=5) for piece in make_batch(3).split(2)]
    total = sum(part.total for part in parts)
    torch.testing.assert_close(total, whole.total)
    again = objective(make_batch(3), counts, step=6)
    assert not torch.equal(again.parts["reward"], whole.parts["reward"])


@pytest.mark.slow
def test_a_run_resumes_to_the_bit(tmp_path):
    """Stopped by an error in the middle of an epoch, and gone on from the state before it."""
    results = []
    for name in ("whole", "parts"):
        write_pictures(tmp_path / name, 6, captions=3)
        config = recipe(
            tmp_path / name,
            save_every=1,
            loss={"objective": "self_critical", "draws": 2},
            optim={"epochs": 2, "accumulate": 2},
        )
        trainer = Trainer(config)
        if name == "parts":
            step = trainer._train_step

            def crash(batch, trainer=trainer, step=step):
                if trainer.step == 1:
                    raise RuntimeError("power cut")
                return step(batch)

            trainer._train_step = crash
            with pytest.raises(RuntimeError, match="power cut"):
                trainer.run()
            trainer = Trainer(config, resume=True)
            assert trainer.step == 1
        trainer.run()
        results.append(trainer.model.state_dict())
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name
    lines = (tmp_path / "parts" / "run" / "log.jsonl").read_text().splitlines()
    assert "cider" in json.loads(lines[-1])["validation"]


def test_one_photo_has_no_document_frequencies(tmp_path):
    write_pictures(tmp_path, 1)
    config = recipe(tmp_path, data={"batch_size": 1}, loss={"objective": "self_critical"})
    with pytest.raises(ConfigError, match="two captioned images"):
        Trainer(config)


def test_hard_attention_and_self_critical_do_not_mix(tmp_path):
    write_pictures(tmp_path, 4)
    config = recipe(
        tmp_path,
        model={"attention": {"mode": "hard"}},
        loss={"objective": "self_critical"},
    )
    with pytest.raises(ConfigError, match="soft"):
        Trainer(config)
