"""Fused BatchNorm: the same features, fewer operations, and the caller's model as it was."""

import copy
import logging

import pytest
import torch
from torch import nn

from captioner.config import EncoderConfig
from captioner.models.encoder import Encoder
from captioner.models.fuse_bn import fuse_bn

SIZE = 64
ENCODERS = {  # how many BatchNorms cannot be fused: those that read no convolution
    "torchvision/resnet18": 0,
    "torchvision/mobilenet_v3_small": 0,
    "torchvision/efficientnet_b0": 0,
    "torchvision/convnext_tiny": 0,
    "torchvision/regnet_y_400mf": 0,
    "torchvision/vgg11_bn": 0,
    "torchvision/densenet121": 62,
    "timm/resnet10t": 0,
    "timm/tf_efficientnet_lite0": 0,
    "timm/tf_efficientnet_b0": 0,
    "timm/mobilenetv3_small_050": 0,
    "timm/regnety_002": 0,
    "timm/repvgg_a0": 17,
}


def trained(model):
    """As after training: statistics and scales that are not those of a fresh network."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "head"),
    [*((name, False) for name in ENCODERS), ("timm/tf_efficientnet_lite0", True)],
)
def test_fusing_keeps_the_features(name, head):
    config = EncoderConfig(name=name, image_size=SIZE, width=8, pretrained=False, head=head)
    encoder = trained(Encoder(config))
    before = copy.deepcopy(encoder.state_dict())
    fused = fuse_bn(encoder)
    assert norms(fused) == ENCODERS[name]
    encoder.eval()
    pairs = zip(encoder.forward_features(images()), fused.forward_features(images()), strict=True)
    for expected, got in pairs:
        assert (expected - got).abs().max() < 1e-4 * expected.abs().max()
    after = encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_copy_shares_memory_but_is_independent():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    model[2].weight.requires_grad_(False)
    fused = fuse_bn(model)
    assert model.training
    assert not fused.training
    assert fused[2].weight.data_ptr() == model[2].weight.data_ptr()
    assert [p.requires_grad for p in fused[2].parameters()] == [False, True]
    fused.double()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


class Net(nn.Module):
    """A convolution and a BatchNorm, in one forward pass of many."""

    def __init__(self, forward, conv=None, norm=None):
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 3, 3, padding=1)
        self.norm = norm or nn.BatchNorm2d(3)
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


def collect(net, x):
    """As perceptual losses do: all that happens within the layers is read."""
    found = []
    for layer in net.layers:
        x = layer(x)
        found.append(x)
    return found[0] + found[1]


def twice(net, x):
    return net.norm(net.conv(net.conv(x)))


class Standardized(nn.Conv2d):
    """Does more with its weights than to convolve."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize(
    ("net", "left"),
    [
        (Net(lambda net, x: net.layers(net.norm(net.conv(x)))), 0),
        (Net(lambda net, x: net.layers(net.norm(net.conv(x)) + x)), 0),
        (Net(lambda net, x: (y := net.conv(x)) + net.layers(net.norm(y))), 1),
        (Net(lambda net, x: net.layers(net.norm(nn.functional.relu(net.conv(x))))), 1),
        (Net(lambda net, x: net.norm(net.norm(net.conv(x)))), 2),
        (Net(lambda net, x: net.layers(net.norm(net.conv(x)) if x.sum() > 0 else x)), 2),
        (Net(lambda net, x: net.norm(net.conv(x)) * net.conv.weight.sum()), 2),
        (Net(collect), 2),
        (Net(twice), 2),
        (Net(lambda net, x: net.norm(net.conv(x)), conv=Standardized(3, 3, 3)), 2),
        (
            Net(
                lambda net, x: net.norm(net.conv(x)),
                norm=nn.BatchNorm2d(3, track_running_stats=False),
            ),
            2,
        ),
    ],
)
def test_only_what_is_certain_is_fused(net, left, caplog):
    caplog.set_level(logging.DEBUG, "captioner")
    fused = fuse_bn(trained_if_it_can(net))
    net.eval()
    torch.testing.assert_close(fused(images()), net(images()), rtol=1e-4, atol=1e-4)
    assert norms(fused) == left
    assert ("could not be fused" in caplog.text) == (left > 0)


def trained_if_it_can(net):
    return net if net.norm.running_mean is None else trained(net)
