"""What moves the weights: groups of parameters, the schedule of the rate, averaged weights."""

import pytest
import torch

from captioner.config import Config, from_dict, to_dict
from captioner.models.caption_model import CaptionModel
from captioner.training.optim import AveragedWeights, build_optimizer, build_schedule


def test_parameter_groups(tiny_model):
    """The trunk has its own rate; vectors and word embeddings do not decay."""
    config = recipe_optim()
    model = CaptionModel(trunk_trains(tiny_model.config), 30)
    optimizer = build_optimizer(model, config)
    settings = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert optimizer.param_groups[0]["lr"] == 1e-3  # the rate that the log tells
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(settings) == len(trainable)
    for name, parameter in trainable.items():
        rate = 1e-4 if name.startswith("encoder.backbone") else 1e-3
        decays = parameter.ndim > 1 and "embed" not in name
        assert settings[id(parameter)] == (rate, 0.01 if decays else 0.0), name


def recipe_optim():
    return Config().optim


def trunk_trains(config):
    values = to_dict(config)
    values["encoder"]["trainable_stages"] = 1
    return from_dict(type(config), values)


@pytest.mark.parametrize(("warmup", "steps"), [(10, 100), (0, 50), (500, 20)])
def test_schedule_warms_up_and_falls(warmup, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    config = from_dict(type(recipe_optim()), {"warmup": warmup})
    schedule = build_schedule(optimizer, config, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    top = rates.index(max(rates))
    assert top == min(warmup, steps // 2)
    assert max(rates) == pytest.approx(2.0)
    assert rates[0] > 0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0.019 < rates[-1] < 0.1 * 2


def test_averaged_weights():
    module = torch.nn.Linear(2, 1)
    live = module.weight.detach().clone()
    average = AveragedWeights(module, 0.9)
    expected = live.clone()
    for step in range(1, 30):
        with torch.no_grad():
            module.weight.add_(1.0)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(average.average["weight"], expected)
    now = module.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight, now)
    off = AveragedWeights(module, 0.0)
    with torch.no_grad():
        module.weight.mul_(3)
    off.update()
    assert torch.equal(off.average["weight"], module.weight)
