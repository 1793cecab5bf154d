"""Scheduled sampling: words are exchanged at the rate asked for, and what follows reads them."""

import pytest
import torch
from helpers.tiny import SPECIALS, make_captions, make_decoder, make_grid

from captioner.config import LossConfig
from captioner.data.caption_batch import CaptionBatch
from captioner.training.objective import Objective

WORD = 5


def batch_of(decoder, photos, rows, length):
    captions, lengths = make_captions([[length] * rows] * photos)
    return decoder.remember(make_grid(photos)), captions, lengths


@pytest.mark.parametrize("deep", [False, True])
def test_the_words_drawn_are_read_in_place_of_the_true_ones(monkeypatch, deep):
    """At a rate of 1 the pass equals one step after the other over START and the drawn words."""
    decoder = make_decoder(deep_output=deep)
    memory, captions, lengths = batch_of(decoder, photos=2, rows=3, length=5)
    drawn, draw = [captions[..., 0]], decoder._draw

    def record(*said):
        drawn.append(draw(*said))
        return drawn[-1]

    monkeypatch.setattr(decoder, "_draw", record)
    result = decoder(memory, captions, lengths, sampling_prob=1.0)
    assert len(drawn) == 5
    assert not torch.equal(torch.stack(drawn, -1), captions[..., :5])
    state, logits = decoder.start(memory, 3), []
    for words in drawn:
        step = decoder.step(state, words, memory)
        state = step.state
        logits.append(step.logits)
    torch.testing.assert_close(result.logits, torch.stack(logits, 2).flatten(0, 2))
    assert torch.equal(result.targets, captions[..., 1:6].flatten())  # the true words are asked for


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_as_many_words_are_exchanged_as_asked_for(monkeypatch, rate):
    decoder = make_decoder()
    rows = 3000
    memory, captions, lengths = batch_of(decoder, photos=1, rows=1, length=2)
    captions, lengths = captions.repeat(1, rows, 1), lengths.repeat(1, rows)
    captions[..., 1] = WORD + 1
    monkeypatch.setattr(decoder, "_draw", lambda hidden, *_: torch.full(hidden.shape[:-1], WORD))
    second = decoder(memory, captions, lengths, sampling_prob=rate).logits.view(rows, 2, -1)[:, 1]
    captions[..., 1] = WORD
    own = decoder(memory, captions, lengths).logits.view(rows, 2, -1)[:, 1]
    same = torch.isclose(second, own, atol=1e-5).all(-1)
    assert same.float().mean().item() == pytest.approx(rate, abs=0.03)


@pytest.mark.parametrize("static", [False, True])
def test_in_bf16_every_weight_learns_beside_the_draws(monkeypatch, static):
    """Autocast keeps the copies of weights that the draws make: they must have gradients."""
    decoder = make_decoder(deep_output=True).train()
    output, tracked = decoder._output, []

    def record(*said):
        tracked.append(output(*said))
        return tracked[-1]

    monkeypatch.setattr(decoder, "_output", record)
    with torch.autocast("cpu", torch.bfloat16):
        memory, captions, lengths = batch_of(decoder, photos=2, rows=3, length=5)
        result = decoder(memory, captions, lengths, sampling_prob=0.5, static=static)
    assert len(tracked) == 5
    assert all(logits.requires_grad for logits in tracked)
    result.logits.float().log_softmax(-1)[:, WORD].sum().backward()
    for name, weight in decoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_words_are_drawn_by_their_probability():
    decoder = make_decoder()
    memory, *_ = batch_of(decoder, photos=1, rows=1, length=1)
    step = decoder.step(decoder.start(memory, 1), torch.tensor([[1]]), memory)
    rows = 20_000
    hidden = step.state.hidden.expand(1, rows, -1)
    drawn = decoder._draw(hidden, hidden, hidden)  # the last two are for deep output
    logits = step.logits[0, 0].clone()
    logits[list(SPECIALS)] = -torch.inf
    frequency = torch.bincount(drawn.flatten(), minlength=len(logits)) / rows
    torch.testing.assert_close(frequency, logits.softmax(-1), atol=0.02, rtol=0)


class Stub(torch.nn.Module):
    """Remembers the rates that it is called with."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def forward(self, pictures, captions, lengths, sampling_prob, *, static):
        self.rates.append(sampling_prob)


def test_the_rate_rises_linearly_to_the_last_step():
    captions, lengths = make_captions([[3]])
    batch = CaptionBatch(None, [torch.zeros(1)], captions, lengths, torch.arange(1))
    model = Stub()
    objective = Objective(model, None, LossConfig(scheduled_sampling=0.2), total_steps=10)
    for step in (0, 5, 10):
        objective.teacher_forced(batch, step)
    assert model.rates == [0.0, 0.1, 0.2]
