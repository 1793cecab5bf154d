"""Hard attention reads one place; what it learns from is REINFORCE, and nothing else changes."""

import pytest
import torch
from helpers.tiny import FEATURES, make_captions, make_decoder, make_grid
from helpers.trainings import log_lines, recipe, same
from pictures import write_pictures

from captioner.config import AttentionConfig, LossConfig
from captioner.data.caption_batch import CaptionBatch
from captioner.errors import ConfigError
from captioner.models.attention import Attention
from captioner.training.losses import BatchCounts, caption_losses
from captioner.training.objective import HardAttention
from captioner.training.trainer import Trainer

HARD = {"mode": "hard"}
EMPTY = torch.zeros(1, 2, 1, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)


def make_attention(**options):
    torch.manual_seed(0)
    return Attention(AttentionConfig(size=8, mode="hard", **options), FEATURES, 5)


def test_afterwards_it_reads_the_likeliest_place():
    attention = make_attention().eval()
    grid = make_grid(2)
    look = attention(torch.randn(2, 3, 5), attention.remember(*grid))
    best = look.weights.argmax(-1)  # (B, C)
    expected = torch.stack([grid.features[photo, best[photo]] for photo in range(2)])
    torch.testing.assert_close(look.context, expected)
    assert look.chosen is None
    assert (look.weights > 0).all()  # the map shown is still a distribution


def test_in_training_it_draws_by_the_weights():
    attention = make_attention().train()
    grid = make_grid(1)
    rows = 20_000
    query = torch.randn(1, 1, 5).expand(1, rows, 5)
    look = attention(query, attention.remember(*grid))
    chosen = look.chosen[0]
    assert (chosen < 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    mean = look.weights[0, 0] @ grid.features[0]
    torch.testing.assert_close(look.context[0, chosen < 0], mean.expand((chosen < 0).sum(), -1))
    drawn = chosen[chosen >= 0]
    torch.testing.assert_close(look.context[0, chosen >= 0], grid.features[0, drawn])
    frequency = torch.bincount(drawn, minlength=9) / len(drawn)
    torch.testing.assert_close(frequency, look.weights[0, 0], atol=0.02, rtol=0)


def test_many_heads_cannot_look_at_one_place():
    with pytest.raises(ConfigError, match="one place"):
        make_attention(kind="multi_head", heads=2)


class Stub(torch.nn.Module):
    """A model that gives the same pass over the captions each time."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, *_, **__):
        return self.result


def test_the_loss_equals_equation_12():
    decoder = make_decoder(attention=HARD).train()
    captions, lengths = make_captions([[5, 2], [3, 0]])
    result = decoder(decoder.remember(make_grid(2)), captions, lengths)
    assert (result.chosen >= 0).any()
    assert (result.chosen < 0).any()
    batch = CaptionBatch(None, [torch.zeros(1)], captions, lengths, torch.arange(2))
    config = LossConfig(label_smoothing=0.0, exploration=0.01)
    objective = HardAttention(Stub(result), None, config, 10)
    first = objective(batch, BatchCounts.of(lengths), 0)
    baseline = objective.baseline.item()
    second = objective(batch, BatchCounts.of(lengths), 1)

    log_probs = result.logits.log_softmax(-1).gather(-1, result.targets[:, None]).squeeze(-1)
    photos, rows, _ = result.mask.nonzero(as_tuple=True)
    sentence = photos * 2 + rows
    rewards = [log_probs[sentence == s].mean() for s in (0, 1, 2)]  # the fourth is absent
    mean = sum(rewards).item() / 3
    assert baseline == pytest.approx(mean, rel=1e-5)  # the first batch sets it
    maps = result.attention[result.mask]
    plain = caption_losses(result, config)
    reinforce = 0.0
    for token, place in enumerate(result.chosen.tolist()):
        if place >= 0:
            better = rewards[sentence[token]].item() - baseline
            reinforce -= better * maps[token, place].log().item()
    entropy = plain.parts["attention_entropy"].item()
    expected = plain.total.item() + reinforce / 10 - 0.01 * entropy
    assert second.total.item() == pytest.approx(expected, rel=1e-4)
    assert first.total.item() == pytest.approx(expected, rel=1e-4)


def test_the_baseline_moves_by_a_tenth_and_not_at_all_without_captions():
    decoder = make_decoder(attention=HARD).train()
    baselines, means = [], []
    objective = HardAttention(Stub(None), None, LossConfig(), 10)
    for seed, sizes in ((0, [[5, 2]]), (1, [[3, 3]]), (2, [[0, 0]])):
        captions, lengths = make_captions(sizes, seed=seed) if seed < 2 else EMPTY
        result = decoder(decoder.remember(make_grid(1, seed)), captions, lengths)
        objective.model.result = result
        batch = CaptionBatch(None, [torch.zeros(1)], captions, lengths, torch.arange(1))
        losses = objective(batch, BatchCounts(torch.tensor(7.0), torch.tensor(2.0)), 0)
        assert losses.total.isfinite()
        baselines.append(objective.baseline.item())
        means.append(losses.parts["word_log_prob"].item())  # of two captions
    assert means[0] != pytest.approx(means[1], abs=1e-2)
    assert baselines[0] == pytest.approx(means[0])
    assert baselines[1] == pytest.approx(0.9 * means[0] + 0.1 * means[1])
    assert baselines[2] == baselines[1]


def test_the_choice_learns():
    """Gradients reach the score through REINFORCE alone where no mean was read."""
    decoder = make_decoder(attention=HARD).train()
    captions, lengths = make_captions([[2, 1]])
    while True:
        result = decoder(decoder.remember(make_grid(1)), captions, lengths)
        if (result.chosen >= 0).all():
            break
    caption_losses(result, LossConfig(), BatchCounts.of(lengths)).total.backward(retain_graph=True)
    assert not decoder.attention.score.grad.any()
    objective = HardAttention(Stub(result), None, LossConfig(), 10)
    batch = CaptionBatch(None, [torch.zeros(1)], captions, lengths, torch.arange(1))
    objective(batch, BatchCounts.of(lengths), 0).total.backward()
    assert decoder.attention.score.grad.any()


def test_a_run_resumes_with_its_baseline(tmp_path):
    results = []
    for name in ("whole", "parts"):
        write_pictures(tmp_path / name, 6, captions=2)
        config = recipe(tmp_path / name, save_every=1, model={"attention": HARD})
        trainer = Trainer(config)
        if name == "parts":
            step = trainer._train_step
            trainer._train_step = lambda batch, t=trainer, s=step: stop_at(t, s, batch, 3)
            with pytest.raises(RuntimeError, match="power cut"):
                trainer.run()
            trainer = Trainer(config, resume=True)
        trainer.run()
        results.append((trainer.model.state_dict(), trainer.objective.extra_state()))
    same(*results)
    assert not results[0][1]["baseline"].isnan()
    assert log_lines(tmp_path / "whole")


def stop_at(trainer, step, batch, number):
    if trainer.step == number:
        raise RuntimeError("power cut")
    return step(batch)
