"""BatchNorm folded into the convolution before it: the same function, computed in one pass less.

With frozen statistics a BatchNorm is a scale and a shift per channel, which the weights and bias of
the convolution can take over. For captioning only: a folded network is neither trained nor saved.

Shapes: S image side.
"""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from captioner.models.backbones import Backbone

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3  # of the features' size


@torch.no_grad()
def fuse_bn(backbone: Backbone, image_size: int) -> Backbone:
    """Fold every BatchNorm whose input is a convolution's output.

    Which follows which is seen in a dry run. The folded trunk must reproduce the features of the
    original; one whose convolutions feed something else as well does not, and is left as it was.

    Args:
        backbone: In ``eval()``, fp32, on any device.
        image_size: S.

    Returns:
        A folded copy, or ``backbone`` itself where folding changes the result.
    """
    device = next(backbone.parameters()).device
    example = torch.rand(1, 3, image_size, image_size, device=device) * 2 - 1
    folded = copy.deepcopy(backbone)
    expected = backbone(example)
    for name, convolution, norm in _pairs(folded, example):
        if norm.running_mean is None or norm.running_var is None:  # it measures every batch anew
            continue
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        convolution.weight, convolution.bias = weight, bias
        parent, _, child = name.rpartition(".")
        # timm's BatchNorm carries the activation that follows it.
        after = getattr(norm, "act", nn.Identity())
        setattr(folded.get_submodule(parent), child, after)
    for before, now in zip(expected, folded(example), strict=True):
        if (before - now).abs().max() > _TOLERANCE * before.abs().max():
            logger.debug("BatchNorm folding changes this trunk: left as it is")
            return backbone
    return folded


def _pairs(
    backbone: Backbone, example: Tensor
) -> list[tuple[str, nn.Conv2d, nn.modules.batchnorm._BatchNorm]]:
    """BatchNorms by name, each with the convolution whose output it reads."""
    outputs: list[tuple[Tensor, nn.Conv2d]] = []  # kept, so that no two share an identity
    pairs = []

    def note_output(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        outputs.append((output, module))

    def watch(name: str, norm: nn.modules.batchnorm._BatchNorm) -> None:
        def note_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for output, convolution in outputs:
                if output is inputs[0]:
                    pairs.append((name, convolution, norm))

        hooks.append(norm.register_forward_pre_hook(note_input))

    hooks = []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(note_output))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            watch(name, module)
    backbone(example)
    for hook in hooks:
        hook.remove()
    return pairs
