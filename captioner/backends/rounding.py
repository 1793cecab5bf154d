"""Round the weights of quantised convolutions so that their outputs change least.

Rounding each weight to the nearest step does not give the nearest output. Here the weights of an
output are rounded one after another, and those still to come make up for the error of each, as far
as their inputs are correlated on calibration images (GPTQ, Frantar et al. 2023). What is left of
the mean error goes into the bias.

Shapes: G groups of a convolution, O outputs of a group, D weights of an output (inputs of a group
times the kernel's area), P places of the output, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_PLACES = 200  # of an image at which a convolution's inputs are looked at
_DAMPING = 0.01  # added to the variances, as a share of their mean
_BLOCK = 128  # weights after whose rounding the later ones are corrected, all at once


class _Inputs(NamedTuple):
    """What a convolution reads: mean (G, D) and covariance (G, D, D)."""

    mean: np.ndarray
    covariance: np.ndarray


def round_weights(quantised: ModelProto, exact: ModelProto, images: Sequence[np.ndarray]) -> None:
    """Round the weights of a graph's quantised convolutions anew.

    Args:
        quantised: By ONNX Runtime, with the format QDQ; changed in place.
        exact: The graph in fp32; convolutions have the same names.
        images: (S, S, 3) uint8, some dozens like those to caption.
    """
    from onnx import numpy_helper

    stored = {each.name: each for each in quantised.graph.initializer}
    exact_weights = {each.name: each for each in exact.graph.initializer}
    maker = {name: node for node in quantised.graph.node for name in node.output}
    twins = {
        node.name: node
        for node in quantised.graph.node
        if node.op_type == "Conv" and _is_dequantised(node.input[1], maker)
    }
    convolutions = [node for node in exact.graph.node if node.name in twins]
    inputs = _look_at_inputs(exact, convolutions, images)
    for node in convolutions:
        twin = twins[node.name]
        numbers, scales = (stored[name] for name in maker[twin.input[1]].input[:2])
        weight = numpy_helper.to_array(exact_weights[node.input[1]])
        mean, covariance = inputs.pop(node.name)
        groups = len(mean)
        has_bias = len(twin.input) == 3
        if not has_bias:  # which takes the mean error: errors must be small themselves
            covariance += mean[:, :, None] * mean[:, None]
        wanted = weight.reshape(groups, -1, mean.shape[1]).astype(np.float64)  # (G, O, D)
        scale = numpy_helper.to_array(scales).astype(np.float64).reshape(groups, -1, 1)  # (G, O, 1)
        limit = int(np.abs(numpy_helper.to_array(numbers).astype(int)).max())
        rounded = _round(wanted / scale, covariance, limit)
        values = rounded.reshape(weight.shape).astype(np.int8)
        numbers.CopyFrom(numpy_helper.from_array(values, numbers.name))
        if has_bias:
            error = np.einsum("god,gd->go", wanted - rounded * scale, mean).reshape(-1)
            bias = numpy_helper.to_array(exact_weights[node.input[2]])
            numbers, scales = (stored[name] for name in maker[twin.input[2]].input[:2])
            values = np.round((bias + error) / numpy_helper.to_array(scales)).astype(np.int32)
            numbers.CopyFrom(numpy_helper.from_array(values, numbers.name))


def _is_dequantised(name: str, maker: dict[str, NodeProto]) -> bool:
    return name in maker and maker[name].op_type == "DequantizeLinear"


def _look_at_inputs(
    model: ModelProto, convolutions: Sequence[NodeProto], images: Sequence[np.ndarray]
) -> dict[str, _Inputs]:
    """Run a graph over images and measure what each convolution reads."""
    import onnx
    import onnxruntime

    if not convolutions:
        return {}
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
    # Of the inputs less their mean over the first image, which keeps fp32 exact enough.
    origins: dict[str, np.ndarray] = {}  # (G, 1, D)
    sums: dict[str, np.ndarray] = {}  # (G, D)
    products: dict[str, np.ndarray] = {}  # (G, D, D)
    counts = dict.fromkeys((node.name for node in convolutions), 0)
    for image in images:
        read = dict(zip(names, session.run(names, {"pixels": image[None]}), strict=True))
        for node in convolutions:
            windows = _windows(node, read[node.input[0]][0], shapes[node.input[1]], rng)
            if node.name not in origins:
                origins[node.name] = windows.mean(1, keepdims=True)
                sums[node.name] = np.zeros_like(windows[:, 0])
                products[node.name] = np.zeros((*windows.shape[::2], windows.shape[2]), np.float32)
            windows = windows - origins[node.name]
            counts[node.name] += windows.shape[1]
            sums[node.name] += windows.sum(1)
            products[node.name] += windows.transpose(0, 2, 1) @ windows
    found = {}
    for name, count in counts.items():
        shift, covariance = sums[name] / count, products.pop(name)
        covariance /= count
        covariance -= shift[:, :, None] * shift[:, None]
        found[name] = _Inputs(origins[name][:, 0] + shift, covariance)
    return found


def _windows(
    node: NodeProto, values: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Cut out of values (C, H, W) what random places of a convolution's output read: (G, P, D).

    Args:
        node: The convolution.
        values: Its input.
        shape: Of its weights.
        rng: Chooses the places.
    """
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


def _round(weights: np.ndarray, covariance: np.ndarray, limit: int) -> np.ndarray:
    """Round weights to whole numbers.

    Args:
        weights: (G, O, D), divided by their scale.
        covariance: Of the inputs, (G, D, D).
        limit: The largest number.
    """
    size = covariance.shape[-1]
    variances = np.diagonal(covariance, axis1=1, axis2=2)  # (G, D)
    order = np.argsort(-variances.mean(0))  # what matters most first
    damped = covariance[:, order][:, :, order].astype(np.float64)
    damped += (_DAMPING * variances.mean(1) + 1e-12)[:, None, None] * np.eye(size)
    # U, upper triangular, with UᵀU = damped⁻¹: row i says how the later ones make up for weight i.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    left = weights[:, :, order]
    rounded, errors = np.empty_like(left), np.empty_like(left)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        for i in range(start, stop):
            rounded[:, :, i] = np.clip(np.round(left[:, :, i]), -limit, limit)
            errors[:, :, i] = (left[:, :, i] - rounded[:, :, i]) / upper[:, i, i, None]
            left[:, :, i:stop] -= errors[:, :, i, None] * upper[:, None, i, i:stop]
        left[:, :, stop:] -= errors[:, :, start:stop] @ upper[:, start:stop, stop:]
    result = np.empty_like(rounded)
    result[:, :, order] = rounded
    return result
