"""Quantise an export to int8, with ranges measured on images.

Weights are quantised per output, activations per tensor, with ranges that are fixed: so an image is
computed alike in every batch. What little error hurts most or gains least stays in fp32: the first
convolutions, squeeze-and-excitation, all behind the trunk (neck, LayerNorm, keys, initial state),
and in the decoder's step everything but the matrix products of its layers. Weights have 7 bits, so
that sums of two products fit 16 bits, which CPUs without VNNI add them in.

Shapes: S side of the encoder's square.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captioner.backends.rounding import round_weights

if TYPE_CHECKING:
    from onnx import ModelProto

_MIN_CELLS = 4  # convolutions over fewer cells are squeeze-and-excitation's
_AFTER_STRIDE_2 = 2  # convolutions behind output stride 2 that stay in fp32, too
_MIN_OUTPUTS = 64  # of a matrix worth quantising
_ROUNDING_IMAGES = 48


def quantize_encoder(model: ModelProto, images: Sequence[np.ndarray]) -> ModelProto:
    """Quantise an encoder's convolutions.

    Args:
        model: The exported encoder in fp32.
        images: (S, S, 3) uint8, at least one; some hundred like those to caption are enough.

    Returns:
        The quantised encoder.
    """
    fused = _fuse(model)
    quantised = _quantise(
        fused,
        ({"pixels": image[None]} for image in images),
        # Clip (ReLU6) merges into the ranges. Branches are added in fp32, which costs no time.
        op_types_to_quantize=["Conv", "Clip"],
        nodes_to_exclude=_sensitive(fused),
        extra_options={"CalibMovingAverage": True},  # means of the images' extremes
    )
    round_weights(quantised, fused, spread_out(images, _ROUNDING_IMAGES))
    return quantised


def quantize_step(model: ModelProto, feeds: Iterable[Mapping[str, np.ndarray]]) -> ModelProto:
    """Quantise the matrix products of a decoder's step whose right side is a layer's weight.

    Args:
        model: The exported step in fp32.
        feeds: Its inputs in some searches.

    Returns:
        The quantised step.
    """
    fused = _fuse(model)
    shapes = {each.name: tuple(each.dims) for each in fused.graph.initializer}
    layers = [
        node.name
        for node in fused.graph.node
        if node.op_type == "MatMul"
        and node.input[1] != "spread"  # of the maps
        and len(shape := shapes.get(node.input[1], ())) == 2
        and shape[1] >= _MIN_OUTPUTS
    ]
    if not layers:  # an empty list would mean all
        return model
    quantised = _quantise(
        fused,
        map(dict, feeds),
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=layers,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    _bypass(quantised, layers)
    return quantised


def spread_out(images: Sequence[np.ndarray], count: int) -> Sequence[np.ndarray]:
    """Return at most so many of the images, evenly chosen."""
    return images[:: -(-len(images) // count)]


def _bypass(model: ModelProto, layers: Sequence[str]) -> None:
    """Let all but the layers read numbers as they were before they were rounded.

    ONNX Runtime's quantiser gives the rounded ones to everything behind, the next state included.
    """
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    results = {each.name for each in graph.output}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in maker:
            continue
        before, after = maker[node.input[0]].input[0], node.output[0]
        exact, rounded = before, after
        if after in results:  # it takes the result's name
            exact, rounded = after, f"{after}.rounded"
            node.output[0] = rounded
            maker[before].output[list(maker[before].output).index(before)] = exact
        for reader in graph.node:
            for i, name in enumerate(reader.input):
                if name == after:
                    reader.input[i] = rounded if reader.name in layers else exact
                elif name == before:
                    reader.input[i] = exact


def _quantise(model: ModelProto, feeds: Iterator[dict[str, Any]], **settings: Any) -> ModelProto:
    """Run ONNX Runtime's quantiser, with ranges from the feeds' minimum and maximum."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, output = Path(folder, "fused.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            source,
            output,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            **settings,
        )
        return onnx.load(output)


def _fuse(model: ModelProto) -> ModelProto:
    """Fuse BatchNorm and fold constants, as ONNX Runtime does when it loads a graph."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder, "fused.onnx"))
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        fused = onnx.load(options.optimized_model_filepath)
    standard = [each for each in fused.opset_import if each.domain in ("", "ai.onnx")]
    del fused.opset_import[:]
    fused.opset_import.extend(standard)
    return fused


def _sensitive(model: ModelProto) -> list[str]:
    """Names of the convolutions that stay in fp32."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    shapes = {
        each.name: [axis.dim_value for axis in each.type.tensor_type.shape.dim]
        for each in (*graph.value_info, *graph.output)
    }
    side = graph.input[0].type.tensor_type.shape.dim[1].dim_value  # S
    convolutions = [n for n in graph.node if n.op_type == "Conv" and n.output[0] in shapes]
    cells = [shapes[node.output[0]][2:] for node in convolutions]  # height and width, if both
    last = max((i for i, size in enumerate(cells) if size[0] >= side // 2), default=-1)
    return [
        node.name
        for i, (node, size) in enumerate(zip(convolutions, cells, strict=True))
        if i <= last + _AFTER_STRIDE_2 or len(size) < 2 or size[0] * size[1] < _MIN_CELLS
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser, which logs to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
