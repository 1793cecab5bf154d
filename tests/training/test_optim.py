"""What moves the weights: groups of parameters, the schedule of the rate, averaged weights."""

import copy

import pytest
import torch
from helpers.trainings import same

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
    module.bias.requires_grad_(False)
    average = AveragedWeights(module, 0.9)
    expected = module.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            module.weight.add_(1.0)
        average.advance()
        average.update(module)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = torch.lerp(expected, module.weight.detach(), 1 - decay)
    assert torch.equal(average.module.weight, expected)
    assert torch.equal(average.module.bias, module.bias)
    assert not average.module.training
    off = AveragedWeights(module, 0.0)
    with torch.no_grad():
        module.weight.mul_(3)
    off.advance()
    off.update(module)
    assert torch.equal(off.module.weight, module.weight)


def test_averaged_weights_resume_to_the_bit():
    """The state has the form that it had before there was a copy of the whole model."""
    module = torch.nn.BatchNorm1d(3)
    average = AveragedWeights(module, 0.999)

    def train(average, steps):
        for step in range(steps):
            module(torch.full((2, 3), float(step)).normal_(generator=generator))
            with torch.no_grad():
                module.weight.add_(0.1)
            average.advance()
            average.update(module)

    generator = torch.Generator().manual_seed(0)
    train(average, 5)
    state, model = average.resume_state(), copy.deepcopy(module.state_dict())
    assert state.keys() == {"steps", "average"}
    assert state["steps"] == 5
    assert state["average"].keys() == {"weight", "bias"}
    resumed = AveragedWeights(torch.nn.BatchNorm1d(3), 0.999)
    resumed.load_resume_state(copy.deepcopy(state), model)
    assert resumed.steps == average.steps
    same(dict(resumed.module.state_dict()), dict(average.module.state_dict()))
    for each in (average, resumed):
        module.load_state_dict(model)
        generator.manual_seed(1)
        train(each, 3)
    same(dict(resumed.module.state_dict()), dict(average.module.state_dict()))
