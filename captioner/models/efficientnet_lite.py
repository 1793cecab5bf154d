"""The trunk of EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excitation), as in timm.

The default encoder is one of these. Built here, a model file is loaded without timm, whose import
takes longer than all the rest of captioning an image. Names of weights and results are timm's.

Shapes: B batch, S image side, C channels of a stage, H and W its height and width.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

SCALES = {  # name: factors of width and depth
    "tf_efficientnet_lite0": (1.0, 1.0),
    "tf_efficientnet_lite1": (1.0, 1.1),
    "tf_efficientnet_lite2": (1.1, 1.2),
    "tf_efficientnet_lite3": (1.2, 1.4),
    "tf_efficientnet_lite4": (1.4, 1.8),
}
STRIDES = (2, 4, 8, 16, 32)
_STAGES = (  # kernel, stride, expansion, channels, repeats
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_LAST = {2: 0, 4: 1, 8: 2, 16: 4, 32: 6}  # the last stage of each output stride
_STEM, _HEAD = 32, 1280


class Conv2dSame(nn.Conv2d):
    """Convolution with TensorFlow's padding, which is uneven where the stride is 2."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (B, C, H, W) -> (B, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        (kernel, stride), (height, width) = (self.kernel_size[0], self.stride[0]), x.shape[-2:]
        rows, columns = (
            max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            for side in (height, width)
        )
        sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return super().forward(F.pad(x, sides))


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return Conv2dSame(inputs, outputs, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class SeparableBlock(nn.Module):
    """Depthwise convolution, then a linear projection."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        self.conv_dw, self.bn1 = _conv(inputs, inputs, kernel, stride, inputs), _norm(inputs)
        self.conv_pw, self.bn2 = _conv(inputs, outputs), _norm(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: (B, C, H, W) -> (B, C', H / stride, W / stride)."""
        y = F.relu6(self.bn1(self.conv_dw(x)))
        y = self.bn2(self.conv_pw(y))
        return x + y if self.residual else y


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear projection (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.conv_pw, self.bn1 = _conv(inputs, inner), _norm(inner)
        self.conv_dw, self.bn2 = _conv(inner, inner, kernel, stride, inner), _norm(inner)
        self.conv_pwl, self.bn3 = _conv(inner, outputs), _norm(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: (B, C, H, W) -> (B, C', H / stride, W / stride)."""
        y = F.relu6(self.bn1(self.conv_pw(x)))
        y = F.relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """Stem and seven stages.

    Args:
        name: A key of `SCALES`.
        strides: Output strides of the features to hand out, finest first.

    Attributes:
        channels: Of each of these features.
    """

    def __init__(self, name: str, strides: tuple[int, ...]):
        super().__init__()
        width, depth = SCALES[name]
        self.conv_stem, self.bn1 = _conv(3, _STEM, 3, 2), _norm(_STEM)
        stages, widths, inputs = [], [], _STEM
        for number, (kernel, stride, expansion, channels, repeats) in enumerate(_STAGES):
            outputs = _round_channels(channels * width)
            if 0 < number < len(_STAGES) - 1:  # the first and the last stage are not deepened
                repeats = math.ceil(repeats * depth)
            blocks: list[nn.Module] = []
            for index in range(repeats):
                step = stride if index == 0 else 1
                blocks.append(
                    SeparableBlock(inputs, outputs, kernel, step)
                    if expansion == 1
                    else InvertedResidual(inputs, outputs, kernel, step, expansion)
                )
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
            widths.append(outputs)
        self.blocks = nn.Sequential(*stages)
        self._chosen = [_LAST[stride] for stride in strides]
        self.channels = [widths[index] for index in self._chosen]
        initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the chosen stages: (B, 3, S, S) -> [(B, C, H, W), ...]."""
        x = F.relu6(self.bn1(self.conv_stem(images)))
        features = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in self._chosen:
                features.append(x)
        return features


def build_head(channels: int) -> nn.Sequential:
    """Build the convolution between the last stage and the classifier."""
    head = nn.Sequential(_conv(channels, _HEAD), _norm(_HEAD), nn.ReLU6())
    initialize(head)
    return head


def initialize(module: nn.Module) -> None:
    """Draw the weights of all convolutions, as the authors do."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            fan_out = each.kernel_size[0] * each.kernel_size[1] * each.out_channels // each.groups
            nn.init.normal_(each.weight, 0, math.sqrt(2 / fan_out))


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is not smaller by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
