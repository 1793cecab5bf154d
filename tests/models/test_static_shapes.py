"""The static form of the teacher-forced pass: what the other form gives, without reading back."""

import pytest
import torch
from helpers.reading_back import ReadsNothingBack
from helpers.tiny import DECODERS, make_captions, make_decoder, make_grid
from torch.nn import functional

from captioner.config import LossConfig
from captioner.training.losses import BatchCounts, caption_losses

LENGTHS = [[5, 3, 1], [0, 0, 0], [6, 6, 0], [2, 1, 1]]  # in any order; a photo without captions
LOSSES = {
    "plain": LossConfig(label_smoothing=0.0),
    "all": LossConfig(
        label_smoothing=0.1, coverage=0.5, coverage_target=1.0, entropy=0.7, entropy_target=0.1
    ),
    "sharp": LossConfig(coverage=0.3, entropy=0.7, entropy_target=0.99),
}

variants = pytest.mark.parametrize("options", DECODERS.values(), ids=DECODERS)


def losses_and_gradients(decoder, config, lengths=LENGTHS, *, static, padding=0):
    captions, lengths = make_captions(lengths)
    captions = functional.pad(captions, (0, padding))
    features = make_grid(len(lengths))
    features.features.requires_grad_()
    decoder.zero_grad()
    result = decoder(decoder.remember(features), captions, lengths, static=static)
    losses = caption_losses(result, config, BatchCounts.of(lengths))
    losses.total.backward()
    gradients = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    return losses, {"features": features.features.grad, **gradients}


CASES = [
    *(pytest.param(options, LOSSES["all"], id=name) for name, options in DECODERS.items()),
    *(pytest.param({}, config, id=name) for name, config in LOSSES.items()),
]


@pytest.mark.parametrize(("options", "config"), CASES)
def test_losses_and_gradients_are_those_of_the_dynamic_form(options, config):
    decoder = make_decoder(**options)
    expected, gradients = losses_and_gradients(decoder, config, static=False)
    for padding in (0, 3):
        found, others = losses_and_gradients(decoder, config, static=True, padding=padding)
        torch.testing.assert_close(found.total, expected.total, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.parts, expected.parts, rtol=1e-6, atol=1e-6)
        assert others.keys() == gradients.keys()
        torch.testing.assert_close(others, gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("static", [False, True])
def test_a_batch_without_captions_has_gradients_of_zero(static):
    decoder = make_decoder(deep_output=True)
    captions, lengths = make_captions([[1, 1], [1, 1]])
    lengths.zero_()
    counts = BatchCounts(torch.tensor(1.0), torch.tensor(1.0))
    result = decoder(decoder.remember(make_grid(2)), captions, lengths, static=static)
    losses = caption_losses(result, LOSSES["all"], counts)
    losses.total.backward()
    assert losses.total.item() == 0
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


@variants
def test_logits_and_maps_are_those_of_the_dynamic_form(options):
    decoder = make_decoder(**options)
    captions, lengths = make_captions(LENGTHS)
    memory = decoder.remember(make_grid(4))
    expected = decoder(memory, captions, lengths)
    found = decoder(memory, captions, lengths, static=True)
    real = found.mask.flatten()
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.logits[real], expected.logits)
    torch.testing.assert_close(found.attention, expected.attention)
    assert torch.equal(found.targets[real], expected.targets)
    assert (found.targets[~real] == -100).all()
    values = torch.rand(found.mask.shape)
    assert torch.equal(found.pack(values)[real], expected.pack(values))


@variants
def test_nothing_is_read_back(options):
    """Forward and backward, with scheduled sampling: what a CUDA graph can hold."""
    decoder = make_decoder(**options).train()
    captions, lengths = make_captions(LENGTHS)
    sampling_prob = torch.tensor(0.5)
    features = make_grid(4)
    with ReadsNothingBack():
        memory = decoder.remember(features)
        result = decoder(memory, captions, lengths, sampling_prob, static=True)
        caption_losses(result, LOSSES["all"], BatchCounts.of(lengths)).total.backward()
    with pytest.raises(AssertionError, match=r"nonzero|local_scalar|index"), ReadsNothingBack():
        decoder(decoder.remember(features), captions, lengths)


@pytest.mark.parametrize("static", [False, True])
def test_a_rate_in_a_tensor_samples_as_a_number_does(static):
    decoder = make_decoder().train()
    captions, lengths = make_captions([[6, 6], [6, 6]])
    memory = decoder.remember(make_grid(2))
    results = []
    for rate in (0.6, torch.tensor(0.6)):
        torch.manual_seed(3)
        results.append(decoder(memory, captions, lengths, rate, static=static).logits)
    torch.testing.assert_close(*results)
    assert not torch.equal(results[0], decoder(memory, captions, lengths, static=static).logits)
