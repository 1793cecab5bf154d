"""BatchNorm fused into the convolution before it: the same function with one operation less.

With frozen statistics a BatchNorm is a scale and a shift per channel, which the weights and the
bias of the convolution can absorb. For inference only: a fused network is neither trained nor
saved.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.fx.proxy import GraphAppendingTracer
from torch.nn.utils.fusion import fuse_conv_bn_weights

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

# By name and library, so that timm need not be imported. No subclasses: they may do more.
_CONVOLUTIONS = {("torch", "Conv2d"), ("timm", "Conv2dSame"), ("captioner", "Conv2dSame")}
_NORMS = {("torch", "BatchNorm2d"), ("timm", "BatchNormAct2d")}


@torch.no_grad()
def fuse_bn(model: Model) -> Model:
    """Return a copy for inference, in `eval()`, with every BatchNorm fused that can be.

    A BatchNorm is fused if the code of the module that calls it shows that nothing else reads the
    output of the convolution before it; what cannot be followed stays as it is. The copy shares
    the memory of all tensors that fusing does not change. `model` itself does not change, not even
    when the copy is moved to another device.
    """
    fused = _share(model, {}).eval()
    calls = Counter(id(each) for _, each in fused.named_modules(remove_duplicate=False))
    for parent in list(fused.modules()):
        if _is_container(parent) and parent is not fused:  # seen with the module that it is in
            continue
        for conv_name, norm_name in _pairs(parent):
            conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
            if calls[id(conv)] > 1 or calls[id(norm)] > 1 or norm.running_mean is None:
                continue
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            owner, _, child = norm_name.rpartition(".")
            # timm's BatchNorm contains the activation that follows it.
            setattr(parent.get_submodule(owner), child, getattr(norm, "act", nn.Identity()))
    left = [name for name, each in fused.named_modules() if isinstance(each, nn.BatchNorm2d)]
    if left:
        logger.debug("BatchNorm that could not be fused: %s", ", ".join(left))
    return fused


def _share(module: Any, copies: dict[int, Any]) -> Any:
    """Copy a module and all modules in it, but not the memory of their tensors.

    Args:
        module: What to copy.
        copies: The copies of modules and parameters so far, by the identity of the original.
    """
    if module is None or id(module) in copies:
        return copies.get(id(module))
    twin = copies[id(module)] = copy.copy(module)
    twin._modules = {name: _share(child, copies) for name, child in module._modules.items()}
    twin._buffers = dict(module._buffers)
    twin._parameters = {}
    for name, parameter in module._parameters.items():
        if parameter is not None and id(parameter) not in copies:
            copies[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
        twin._parameters[name] = copies.get(id(parameter))
    return twin


def _pairs(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the convolutions of a module whose output is read by one BatchNorm alone.

    Only children that the module's own `forward` calls are considered.
    """
    children = dict(_called_children(parent))
    convs = {name for name, child in children.items() if _is_one_of(child, _CONVOLUTIONS)}
    norms = {name for name, child in children.items() if _is_one_of(child, _NORMS)}
    if not convs or not norms:
        return
    try:
        graph = _trace(parent)
    except Exception as error:  # the code of others, on values that are no tensors
        logger.debug("%s cannot be followed: %s", type(parent).__name__, error)
        return
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in convs or len(node.users) != 1:
            continue
        (user,) = node.users
        read = user.op == "call_module" and user.target in norms and user.args == (node,)
        if read and calls[node.target] == calls[user.target] == 1:
            yield node.target, user.target


def _called_children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The children of a module by name; what is in its containers counts as its own."""
    for name, child in module.named_children():
        if _is_container(child):
            yield from _called_children(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _is_container(module: nn.Module) -> bool:
    """Whether a module does nothing but to hold others or to call them one after the other."""
    return type(module) is nn.Sequential or type(module).forward is nn.Module.forward


def _is_one_of(module: nn.Module, classes: set[tuple[str, str]]) -> bool:
    library, name = type(module).__module__.partition(".")[0], type(module).__name__
    plain = not module._forward_hooks and not module._forward_pre_hooks
    dropout = getattr(module, "drop", None)  # of timm's BatchNorm
    return (library, name) in classes and plain and isinstance(dropout, nn.Identity | None)


class _Recorder(GraphAppendingTracer):
    """Records what a module does with its children; tensors of its own are no matter."""

    def create_arg(self, a: Any) -> Any:
        return None if isinstance(a, Tensor) else super().create_arg(a)


def _trace(module: nn.Module) -> Graph:
    """Record the calls of a module's children, without computing anything.

    Unlike `torch.fx.symbolic_trace` this leaves the class `nn.Module` alone, which other threads
    may be using.
    """
    recorder = _Recorder(Graph())

    def stand_in(original: nn.Module, name: str) -> Any:
        twin: Any = copy.copy(original)
        twin._modules = {
            key: child and stand_in(child, f"{name}.{key}".lstrip("."))
            for key, child in original._modules.items()
        }
        if name and not _is_container(original):

            def call(_self: nn.Module, *args: Any, **kwargs: Any) -> Any:
                return recorder.create_proxy("call_module", name, args, kwargs)

            twin._parameters = twin._buffers = {}  # whoever reads them is not followed
            twin.__class__ = type("Recorded", (type(original),), {"__call__": call})
        return twin

    twin = stand_in(module, "")
    inputs = [
        recorder.create_proxy("placeholder", name, (), {})
        for name, parameter in inspect.signature(twin.forward).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    recorder.create_node("output", "output", (recorder.create_arg(twin.forward(*inputs)),), {})
    return recorder.graph
