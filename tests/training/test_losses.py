"""The losses equal their formulas, token by token, and padding never counts."""

import math

import pytest
import torch
from helpers.tiny import make_captions, make_decoder, make_grid
from torch.nn import functional

from captioner.config import LossConfig
from captioner.models.decoder import DecoderOutput
from captioner.training.losses import (
    BatchCounts,
    attention_entropy,
    caption_losses,
    coverage_penalty,
)

LENGTHS = [[5, 2], [3, 0], [1, 1]]
PLAIN = LossConfig(label_smoothing=0.0)


def make_maps(lengths=LENGTHS, locations=6, seed=0):
    """Random attention (B, C, T, L) with its mask (B, C, T)."""
    lengths = torch.tensor(lengths)
    generator = torch.Generator().manual_seed(seed)
    steps = int(lengths.max())
    maps = torch.rand(*lengths.shape, steps, locations, generator=generator).square()
    mask = torch.arange(steps) < lengths[..., None]
    return maps / maps.sum(-1, keepdim=True), mask


def forward(lengths=LENGTHS):
    decoder = make_decoder()
    captions, lengths = make_captions(lengths)
    return decoder, decoder(decoder.remember(make_grid(len(lengths))), captions, lengths)


@pytest.mark.parametrize("target", [None, 1.0, 0.3])
def test_coverage_equals_equation_14(target):
    maps, mask = make_maps()
    penalties = []
    for photo, rows in enumerate(LENGTHS):
        for row, tokens in enumerate(rows):
            if tokens == 0:
                continue  # an absent caption is no caption
            tau = tokens / 6 if target is None else target
            looked = [
                sum(maps[photo, row, t, cell].item() for t in range(tokens)) for cell in range(6)
            ]
            penalties.append(sum((tau - alpha) ** 2 for alpha in looked))
    expected = sum(penalties)
    assert coverage_penalty(maps, mask, target).item() == pytest.approx(expected, rel=1e-5)


def test_coverage_ignores_padding():
    maps, mask = make_maps()
    penalty = coverage_penalty(maps, mask)
    entropy = attention_entropy(maps, mask)
    garbage = torch.where(mask[..., None], maps, 7.0)
    assert torch.equal(coverage_penalty(garbage, mask), penalty)
    assert torch.equal(attention_entropy(garbage, mask), entropy)
    # More padding: two steps, a caption that is absent, a photo without captions.
    longer = functional.pad(garbage, (0, 0, 0, 2, 0, 1, 0, 1), value=3.0)
    wider = functional.pad(mask, (0, 2, 0, 1, 0, 1))
    torch.testing.assert_close(coverage_penalty(longer, wider), penalty)
    torch.testing.assert_close(attention_entropy(longer, wider), entropy)


def test_uniform_attention_covers_and_is_all_entropy():
    _, mask = make_maps()
    uniform = torch.full((*mask.shape, 6), 1 / 6)
    assert coverage_penalty(uniform, mask).item() == pytest.approx(0, abs=1e-10)
    assert coverage_penalty(uniform, mask, target=1.0).item() > 0.1
    assert attention_entropy(uniform, mask).item() == pytest.approx(int(mask.sum()))


def test_a_single_cell_has_no_entropy():
    _, mask = make_maps()
    single = torch.zeros(*mask.shape, 6)
    single[..., 2] = 1
    assert attention_entropy(single, mask).item() == 0
    assert coverage_penalty(single, mask).item() > 0.1


def test_entropy_equals_the_definition():
    maps, mask = make_maps()
    values = [
        -sum(p * math.log(p) for p in row.tolist()) / math.log(6) for row in maps[mask].double()
    ]
    assert attention_entropy(maps, mask).item() == pytest.approx(sum(values), rel=1e-5)


def test_entropy_gradient_is_finite_at_exact_zeros():
    scores = torch.tensor([[[[0.6, 0.4, 0.0, 0.0]]]], requires_grad=True)
    attention_entropy(scores, torch.ones(1, 1, 1, dtype=torch.bool)).backward()
    assert torch.isfinite(scores.grad).all()


def test_cross_entropy_is_the_mean_over_real_tokens():
    _, result = forward()
    log_probs = result.logits.log_softmax(-1)
    tokens = sum(map(sum, LENGTHS))
    assert len(result.targets) == tokens
    total = -sum(log_probs[i, target].item() for i, target in enumerate(result.targets))
    losses = caption_losses(result, PLAIN)
    assert losses.parts["cross_entropy"].item() == pytest.approx(total / tokens, rel=1e-5)
    smooth = caption_losses(result, LossConfig(label_smoothing=0.2)).parts["cross_entropy"].item()
    everywhere = -log_probs.mean(-1).sum().item()
    assert smooth == pytest.approx((0.8 * total + 0.2 * everywhere) / tokens, rel=1e-5)


def test_losses_of_captions_do_not_depend_on_their_padding():
    """Through the decoder: other ids and more columns in the padding change no loss."""
    decoder = make_decoder()
    captions, lengths = make_captions(LENGTHS)
    memory = decoder.remember(make_grid(3))
    places = torch.arange(captions.shape[-1])
    garbage = functional.pad(torch.where(places > lengths[..., None], 6, captions), (0, 3), value=8)
    config = LossConfig(coverage=0.5, entropy=0.5, entropy_target=0.1)
    expected = caption_losses(decoder(memory, captions, lengths), config)
    found = caption_losses(decoder(memory, garbage, lengths), config)
    torch.testing.assert_close(found.total, expected.total)
    torch.testing.assert_close(found.parts, expected.parts)


def test_total_is_the_weighted_sum():
    _, result = forward()
    losses = caption_losses(result, LossConfig(coverage=0.7, entropy=0.3, entropy_target=0.1))
    expected = (
        losses.parts["cross_entropy"]
        + 0.7 * losses.parts["coverage"]
        + 0.3 * (losses.parts["attention_entropy"] - 0.1)
    )
    torch.testing.assert_close(losses.total, expected)
    plain = caption_losses(result, LossConfig())
    assert torch.equal(plain.total, plain.parts["cross_entropy"])
    assert torch.equal(plain.parts["coverage"], losses.parts["coverage"])  # logged all the same


def test_a_batch_may_be_cut_in_any_way():
    """Shares of the whole batch make the parts' losses and gradients add up to the whole's."""
    decoder = make_decoder()
    captions, lengths = make_captions(LENGTHS)
    features = make_grid(3)
    config = LossConfig(coverage=0.5, entropy=0.5, entropy_target=0.1)
    whole = caption_losses(decoder(decoder.remember(features), captions, lengths), config)
    whole.total.backward()
    gradients = [parameter.grad.clone() for parameter in decoder.parameters()]
    decoder.zero_grad()
    counts, total = BatchCounts.of(lengths), 0.0
    for rows in ([0, 2], [1]):
        memory = decoder.remember(features._replace(features=features.features[rows]))
        part = caption_losses(decoder(memory, captions[rows], lengths[rows]), config, counts)
        part.total.backward()
        total += part.total.item()
    assert total == pytest.approx(whole.total.item(), rel=1e-5)
    for parameter, gradient in zip(decoder.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("config", "flows"),
    [
        (LossConfig(coverage=1.0), True),
        (LossConfig(entropy=1.0, entropy_target=0.1), True),
        (LossConfig(coverage=0.0, entropy=0.0), False),
    ],
    ids=["coverage", "entropy", "plain"],
)
def test_weights_of_zero_send_no_gradient(config, flows):
    maps, mask = make_maps()
    maps.requires_grad_()
    tokens = int(mask.sum())
    logits = torch.zeros(tokens, 9, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long)
    caption_losses(DecoderOutput(logits, targets, maps, mask), config).total.backward()
    assert (maps.grad is not None) == flows
    if flows:
        assert maps.grad[mask].abs().max() > 0
        assert (maps.grad[~mask] == 0).all()


def test_the_entropy_of_all_processes_is_what_meets_the_target(monkeypatch):
    """Broad maps here cost nothing if those of the other processes make up for them."""
    _, result = forward()
    config = LossConfig(entropy=2.0, entropy_target=0.3)
    assert caption_losses(result, config).total > caption_losses(result, LossConfig()).total
    sharp = torch.tensor([0.0, 9.0])  # nine times as many words elsewhere, each at one cell
    monkeypatch.setattr("captioner.training.losses.sum_over_ranks", lambda sums: sums + sharp)
    assert caption_losses(result, config).total == caption_losses(result, LossConfig()).total


def test_maps_that_are_sharp_enough_are_left_alone():
    """Below the target, entropy costs nothing; above, only the excess does."""
    _, result = forward()
    entropy = caption_losses(result, PLAIN).parts["attention_entropy"].item()
    assert 0 < entropy < 1
    for target, excess in ((entropy + 0.01, 0.0), (entropy - 0.2, 0.2)):
        losses = caption_losses(result, LossConfig(entropy=2.0, entropy_target=target))
        extra = (losses.total - losses.parts["cross_entropy"]).item()
        assert extra == pytest.approx(2 * excess, abs=1e-5)
