"""Folding BatchNorm: the same features, fewer operations."""

import pytest
import torch
from torch import nn

from captioner.models.backbones import Backbone, build_backbone
from captioner.models.fuse_bn import fuse_bn

SIZE = 64


def trained(backbone):
    """As after training: statistics and scales that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return backbone.eval()


def norms(backbone):
    return sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("timm/tf_efficientnet_lite0", False),
        ("timm/tf_efficientnet_lite0", True),
        ("timm/resnet10t", False),
        ("torchvision/mobilenet_v3_small", False),
    ],
)
def test_folding_keeps_the_features(name, head):
    backbone = trained(build_backbone(name, (16, 32), SIZE, pretrained=False, head=head))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    folded = fuse_bn(backbone, SIZE)
    assert norms(backbone) > 0
    assert norms(folded) == 0
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for expected, got in zip(backbone(images), folded(images), strict=True):
            assert (expected - got).abs().max() < 1e-3 * expected.abs().max()
    for key, value in backbone.state_dict().items():  # the original is untouched
        assert torch.equal(value, before[key])


class Forked(Backbone):
    """A convolution that feeds a BatchNorm and something else."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        x = self.conv(images)
        return [x + self.norm(x)]


def test_what_cannot_be_folded_is_left():
    backbone = trained(Forked())
    assert fuse_bn(backbone, SIZE) is backbone
