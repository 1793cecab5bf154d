"""The encoder: an image becomes a grid of features that the decoder can look at.

A CNN trunk gives one or more stages; a small neck projects each to D channels, brings them to one
grid and adds them. The fine stage keeps the places apart, the coarse stage brings the meaning.

Shapes: B batch, S image side, C channels of a stage, (H, W) grid, L = H·W locations,
D feature size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.config import EncoderConfig
from captioner.errors import ConfigError
from captioner.models.backbones import Backbone, Normalization, build_backbone

# Images that a CPU core takes through the trunk at a time: their activations fit into its cache. 32
# at a time take 1.8 times as long, and several hundred megabytes (`benchmarks/trunk.py`).
_TOGETHER = 2


class Grid(NamedTuple):
    """Features of a batch of images, with the geometry that an overlay needs.

    Attributes:
        features: (B, L, D), row by row from the top left.
        size: (H, W) with L = H·W.
    """

    features: Tensor
    size: tuple[int, int]


class Encoder(nn.Module):
    """CNN trunk, neck and optional refinement: (B, 3, S, S) images -> `Grid`.

    A stage that does not train stays in `eval()` whatever `train()` is called, so that the
    statistics of its BatchNorm cannot drift; with `batch_norm="frozen"` that holds for every
    BatchNorm of the trunk.

    Args:
        config: What to build.
        pretrained: Overrides `config.pretrained` (a checkpoint brings its own weights).

    Raises:
        ConfigError: The configuration cannot be built.
    """

    def __init__(self, config: EncoderConfig, pretrained: bool | None = None):
        super().__init__()
        self.config = config
        self.backbone: Backbone = build_backbone(
            config.name,
            config.strides,
            config.image_size,
            config.pretrained if pretrained is None else pretrained,
            config.head,
        )
        self._freeze()
        channels = self.backbone.channels
        if config.width is None:
            if len(channels) != 1:
                raise ConfigError("encoder.width is needed to join several strides")
            self.feature_size = channels[0]
            self.laterals = nn.ModuleList()
        else:
            self.feature_size = config.width
            self.laterals = nn.ModuleList(Lateral(c, config.width) for c in channels)
        self.refine: nn.Module | None = None
        if config.refine_layers:
            if self.feature_size % config.refine_heads:
                raise ConfigError(
                    f"encoder.refine_heads={config.refine_heads} must divide the feature size "
                    f"{self.feature_size}"
                )
            layer = nn.TransformerEncoderLayer(
                self.feature_size,
                config.refine_heads,
                dim_feedforward=2 * self.feature_size,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            self.refine = nn.TransformerEncoder(
                layer, config.refine_layers, enable_nested_tensor=False
            )
        self.dropout = nn.Dropout1d(config.dropout)
        self.train()  # modules start out in training mode: what is frozen must not

    @property
    def normalization(self) -> Normalization:
        """Pixel statistics that the trunk expects."""
        return self.backbone.normalization

    @property
    def grid_size(self) -> tuple[int, int]:
        """(H, W) of the grid."""
        native = math.ceil(self.config.image_size / self.config.strides[0])
        side = self.config.grid or native
        return side, side

    def forward(self, images: Tensor) -> Grid:
        """Encode images: (B, 3, S, S) normalised pixels -> features (B, L, D)."""
        return self.forward_neck(self.forward_features(images))

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Run the CNN trunk alone; what a feature cache stores: [(B, C, H, W), ...]."""
        frozen = not any(p.requires_grad for p in self.backbone.parameters())
        if not frozen and (self.training or torch.is_grad_enabled()):
            return self.backbone(images)
        parts = [images]
        # Under autocast every part would convert the weights anew.
        plain = not (torch.is_autocast_enabled("cpu") or torch.onnx.is_in_onnx_export())
        if images.device.type == "cpu" and plain:
            parts = images.split(_TOGETHER * torch.get_num_threads())
        with torch.no_grad():
            outputs = [self.backbone(part) for part in parts]
        if len(outputs) == 1:
            return outputs[0]
        return [torch.cat(stage) for stage in zip(*outputs, strict=True)]

    def forward_neck(self, stages: list[Tensor]) -> Grid:
        """Bring the stages of the trunk to one grid: [(B, C, H, W), ...] -> (B, L, D)."""
        side, _ = self.grid_size  # a trunk without padding may give a cell or two fewer
        if self.laterals:
            stages = [lateral(x) for lateral, x in zip(self.laterals, stages, strict=True)]
        x = sum((_resize(stage, side) for stage in stages[1:]), _resize(stages[0], side))
        height, width = x.shape[-2:]
        features = x.flatten(2).transpose(1, 2)  # (B, D, H, W) -> (B, L, D)
        if self.laterals:
            features = F.relu(features)
        if self.refine is not None:
            positions = _positions(height, width, self.feature_size, features.device)
            positions = positions.to(features.dtype)
            features = self.refine(features + positions)
        if self.training and self.config.dropout:  # whole channels, the same in all cells
            features = self.dropout(features.transpose(1, 2)).transpose(1, 2).contiguous()
        return Grid(features, (height, width))

    def train(self, mode: bool = True) -> Encoder:
        """Switch training mode, except for what is frozen."""
        super().train(mode)
        for module in self.backbone.modules():
            norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            parameters = list(module.parameters())
            # With what is in it: a frozen block has no stochastic depth either.
            frozen = parameters and not any(p.requires_grad for p in parameters)
            if frozen or (norm and self.config.batch_norm == "frozen"):
                module.eval()
        return self

    def _freeze(self) -> None:
        """Let only the last `trainable_stages` stages of the trunk train."""
        self.backbone.requires_grad_(False)
        count = self.config.trainable_stages
        if count == 0:
            return
        strides = self.backbone.stage_strides(self.config.image_size)
        read = {stride for stride in strides.values() if stride <= max(self.config.strides)}
        trained = sorted(read, reverse=True)[:count]
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(strides.get(name) in trained)
        if not self.config.train_depthwise:
            for module in self.backbone.modules():
                if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                    module.requires_grad_(False)


class Lateral(nn.Module):
    """Projection of one stage to the common width: 1×1 convolution, then channel LayerNorm."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.project = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Project: (B, C, H, W) -> (B, D, H, W)."""
        x = self.norm(self.project(x.permute(0, 2, 3, 1)))  # channels last: (B, H, W, D)
        return x.permute(0, 3, 1, 2)


def _resize(x: Tensor, side: int) -> Tensor:
    """Bring (B, D, H, W) to (B, D, side, side): averaged down or interpolated up."""
    if x.shape[-1] > side:
        if torch.onnx.is_in_onnx_export() and x.shape[-1] % side:  # ONNX has no such pooling
            shares = _pooling_shares(int(x.shape[-1]), side)
            return shares @ x @ shares.T
        return F.adaptive_avg_pool2d(x, side)
    if x.shape[-1] < side:
        return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return x


def _pooling_shares(length: int, side: int) -> Tensor:
    """Adaptive average pooling along one axis as a matrix: (side, length)."""
    return F.adaptive_avg_pool1d(torch.eye(length), side).T


def _positions(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """Sinusoidal codes of row and column, half of the channels each: (1, L, D)."""

    def axis(length: int, channels: int) -> Tensor:
        rates = torch.exp(
            torch.arange(0, channels, 2, device=device) * (-9.21 / channels)
        )  # 9.21 = ln 10,000
        angles = torch.arange(length, device=device)[:, None] * rates
        return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :channels]

    half = size // 2
    rows = axis(height, half)[:, None].expand(height, width, half)
    columns = axis(width, size - half)[None].expand(height, width, size - half)
    return torch.cat((rows, columns), -1).reshape(1, height * width, size)
