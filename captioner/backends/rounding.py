"""Round the weights of quantised convolutions so that their outputs change least.

To round each weight to its nearest step is not best for the sum that they enter. Here the weights
of an output are rounded one after another, and those still to come make up for the error of each,
as far as their inputs go together on calibration images (GPTQ, Frantar et al. 2023). What is left
of the mean error goes into the bias.

Shapes: G groups of a convolution, O outputs of a group, D weights of an output (inputs of a group
times the kernel's area), P places of the output, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_PLACES = 200  # of an image at which a convolution's inputs are looked at
_DAMPING = 0.01  # added to the second moments, as a share of their mean


class _Inputs(NamedTuple):
    """What a convolution reads: mean (G, D), second moments about it (G, D, D)."""

    mean: np.ndarray
    moments: np.ndarray


def round_weights(quantised: ModelProto, exact: ModelProto, images: Sequence[np.ndarray]) -> None:
    """Round the weights of a quantised graph anew.

    Args:
        quantised: With convolutions that read weights by DequantizeLinear; changed in place.
        exact: The graph in fp32; convolutions have the same names.
        images: (S, S, 3) uint8, some dozens like those to caption.
    """
    from onnx import numpy_helper

    stored = {each.name: each for each in quantised.graph.initializer}
    maker = {name: node for node in quantised.graph.node for name in node.output}
    weights = {each.name: each for each in exact.graph.initializer}
    twins = {node.name: node for node in quantised.graph.node if node.op_type == "Conv"}
    convolutions = [
        node
        for node in exact.graph.node
        if node.op_type == "Conv"
        and (twin := twins[node.name]).input[1] in maker  # it is dequantised, not stored
        and len(twin.input) == 3
    ]
    inputs = _look_at_inputs(exact, convolutions, images)
    for node in convolutions:
        twin = twins[node.name]
        steps, scale = (stored[name] for name in maker[twin.input[1]].input[:2])
        weight, bias = (numpy_helper.to_array(weights[name]) for name in node.input[1:3])
        mean, moments = inputs[node.name]
        groups = len(mean)
        wanted = weight.reshape(groups, -1, mean.shape[1]).astype(np.float64)  # (G, O, D)
        step = numpy_helper.to_array(scale).astype(np.float64).reshape(groups, -1, 1)  # (G, O, 1)
        limit = int(np.abs(numpy_helper.to_array(steps).astype(int)).max())
        rounded = _round(wanted / step, moments, limit)
        error = np.einsum("god,gd->go", wanted - rounded * step, mean).reshape(-1)
        steps.CopyFrom(
            numpy_helper.from_array(rounded.reshape(weight.shape).astype(np.int8), steps.name)
        )
        if twin.input[2] in maker:
            target, fine = (stored[name] for name in maker[twin.input[2]].input[:2])
            values = np.round((bias + error) / numpy_helper.to_array(fine)).astype(np.int32)
        else:
            target, values = stored[twin.input[2]], (bias + error).astype(np.float32)
        target.CopyFrom(numpy_helper.from_array(values, target.name))


def _look_at_inputs(
    model: ModelProto, convolutions: Sequence[NodeProto], images: Sequence[np.ndarray]
) -> dict[str, _Inputs]:
    """Run a graph over images and sum up what each convolution reads."""
    import onnx
    import onnxruntime

    shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    names = list(dict.fromkeys(node.input[0] for node in convolutions))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    sums: dict[str, tuple[int, Any, Any]] = {node.name: (0, 0.0, 0.0) for node in convolutions}
    for image in images:
        read = dict(zip(names, session.run(names, {"pixels": image[None]}), strict=True))
        for node in convolutions:
            windows = _windows(node, read[node.input[0]][0], shapes[node.input[1]], rng)
            count, total, products = sums[node.name]
            sums[node.name] = (
                count + windows.shape[1],
                total + windows.sum(1),
                products + windows.transpose(0, 2, 1) @ windows,
            )
    found = {}
    for name, (count, total, products) in sums.items():
        mean = total / count
        found[name] = _Inputs(mean, products / count - mean[:, :, None] * mean[:, None])
    return found


def _windows(
    node: NodeProto, values: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Return what some places of a convolution's output read of values (C, H, W): (G, P, D)."""
    from onnx.helper import get_attribute_value

    set_ = {each.name: get_attribute_value(each) for each in node.attribute}
    kernel = shape[2:]
    strides, dilations = set_.get("strides", (1, 1)), set_.get("dilations", (1, 1))
    top, left, bottom, right = set_.get("pads", (0, 0, 0, 0))
    padded = np.pad(values, ((0, 0), (top, bottom), (left, right)))
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    sides = [
        (length - far - 1) // stride + 1
        for length, far, stride in zip(padded.shape[1:], reach, strides, strict=True)
    ]
    places = rng.permutation(sides[0] * sides[1])[:_PLACES]
    rows, columns = (
        first[:, None] * stride + np.arange(size) * dilation  # (P, kernel)
        for first, stride, size, dilation in zip(
            np.divmod(places, sides[1]), strides, kernel, dilations, strict=True
        )
    )
    windows = padded[:, rows[:, :, None], columns[:, None]]  # (C, P, kernel, kernel)
    groups = set_.get("group", 1)
    windows = windows.reshape(groups, -1, len(places), kernel[0] * kernel[1])
    return windows.transpose(0, 2, 1, 3).reshape(groups, len(places), -1)


def _round(weights: np.ndarray, moments: np.ndarray, limit: int) -> np.ndarray:
    """Round weights (G, O, D), in steps, whose inputs have these second moments (G, D, D)."""
    size = moments.shape[-1]
    spread = np.trace(moments, axis1=1, axis2=2) / size  # (G,)
    damped = moments + (_DAMPING * spread + 1e-12)[:, None, None] * np.eye(size)
    order = np.argsort(-np.diagonal(damped, axis1=1, axis2=2).mean(0))  # what matters most first
    damped = damped[:, order][:, :, order].astype(np.float64)
    # U, upper triangular, with UᵀU = damped⁻¹: row i says how the later ones make up for weight i.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    left = weights[:, :, order]
    rounded = np.empty_like(left)
    for i in range(size):
        rounded[:, :, i] = np.clip(np.round(left[:, :, i]), -limit, limit)
        error = (left[:, :, i] - rounded[:, :, i]) / upper[:, i, i, None]  # (G, O)
        left[:, :, i:] -= error[:, :, None] * upper[:, None, i, i:]
    result = np.empty_like(rounded)
    result[:, :, order] = rounded
    return result
