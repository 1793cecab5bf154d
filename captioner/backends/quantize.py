"""Quantise an exported encoder's convolutions to int8, with ranges measured on images.

Weights are quantised per channel, activations per tensor. What little error hurts most or gains
least stays in fp32: the convolutions at output strides 2 and 4, squeeze-and-excitation, and all
behind the trunk (neck, LayerNorm, keys, initial state). The decoder's step is not quantised.

Shapes: S side of the encoder's square.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

_MIN_CELLS = 4  # convolutions over fewer cells are squeeze-and-excitation's


def quantize_encoder(model: ModelProto, images: Sequence[np.ndarray]) -> ModelProto:
    """Quantise an encoder.

    Args:
        model: The exported encoder in fp32.
        images: (S, S, 3) uint8, at least one; some hundred like those to caption are enough.

    Returns:
        The quantised encoder.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[np.ndarray] = (image[None] for image in images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"pixels": batch}

    fused = _fuse(model)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, output = Path(folder, "fused.onnx"), Path(folder, "int8.onnx")
        onnx.save(fused, source)
        quantize_static(
            source,
            output,
            Reader(),
            quant_format=QuantFormat.QDQ,
            # Clip (ReLU6) merges into the ranges; sums of quantised branches stay quantised.
            op_types_to_quantize=["Conv", "Clip", "Add"],
            per_channel=True,
            reduce_range=True,  # products of two pairs must not overflow int16 on older CPUs
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_sensitive(fused),
            calibrate_method=CalibrationMethod.MinMax,
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

    def sensitive(output: str) -> bool:
        _, _, height, width = shapes[output]
        return height * width < _MIN_CELLS or height >= side // 4

    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv" and node.output[0] in shapes and sensitive(node.output[0])
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
