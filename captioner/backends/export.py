"""Export a model for the onnx backend: two ONNX graphs and the header in one file.

The graphs are traced with PyTorch's TorchScript-based exporter, which needs no other package.
Everything but the number of images and rows is fixed, so what the trace computes from shapes
(paddings, sizes) becomes constants. BatchNorm stays a node of its own: a runtime fuses it when it
loads the graph, and the convolutions' weights, which a checkpoint keeps in fp16, stay exact in
fp16 at half the size.

Shapes: B images, K rows per image, S side of the encoder's square, L locations, D feature size,
A attention size, H_d hidden size, V vocabulary.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from captioner.backends.onnx import (
    ENCODER_INPUTS,
    ENCODER_OUTPUTS,
    STEP_INPUTS,
    STEP_OUTPUTS,
    OnnxBackend,
)
from captioner.checkpoint import Header, header_metadata, load_checkpoint
from captioner.errors import CheckpointError, ConfigError
from captioner.image.transforms import Preprocess
from captioner.models.attention import Memory, neighbour_spread
from captioner.models.caption_model import CaptionModel
from captioner.models.decoder import State
from captioner.tokenizer import Vocabulary
from captioner.utils.files import replacing

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

logger = logging.getLogger(__name__)

ExportPrecision: TypeAlias = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[ExportPrecision, ...] = ("fp32", "fp16", "int8")

_OPSET = 17
_STEP_ROWS = ("words", "hidden", "cell")
"""Inputs of the step that have an axis of K rows."""
_SEARCHED = 32  # images at most whose searches set the ranges of an int8 step
_SEARCHED_WORDS = 16
_SMALL = 64  # numbers of a weight that is not worth storing in fp16
_TOLERANCES = {"fp32": 1e-4, "fp16": 0.1, "int8": 5.0}
"""Largest difference of a log-probability from the PyTorch model's; int8's is for gross errors,
its quality is measured with `captioner evaluate`."""


class EncoderGraph(nn.Module):
    """Images to all that a search needs of them: see `OnnxMemory`."""

    def __init__(self, model: CaptionModel, preprocess: Preprocess):
        super().__init__()
        self.model, self.preprocess = model, preprocess

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode (B, S, S, 3) uint8."""
        memory = self.model.remember(self.preprocess.normalize(pixels))
        state = self.model.decoder.start(memory)
        # A value that is also an output under another name (dot: keys are values) needs a copy.
        return memory.values, memory.keys + 0.0, state.hidden[:, 0], state.cell[:, 0]


class StepGraph(nn.Module):
    """One word further: `Decoder.step` with its state and memory as plain tensors."""

    def __init__(self, model: CaptionModel, grid: tuple[int, int]):
        super().__init__()
        self.decoder, self.grid = model.decoder, grid
        smooth = model.config.attention.smooth
        self.spread = nn.Buffer(neighbour_spread(*grid)) if smooth else None

    def forward(
        self, words: Tensor, hidden: Tensor, cell: Tensor, values: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Words (B, K), state (B, K, H_d) twice, memory: log-probabilities, attention, state."""
        memory = Memory(values, keys, self.grid, self.spread)
        step = self.decoder.step(State(hidden, cell), words, memory)
        return step.logits.log_softmax(-1), step.attention, step.state.hidden, step.state.cell


def export_file(
    path: str | Path,
    output: str | Path,
    *,
    precision: ExportPrecision = "fp32",
    calibration: Sequence[np.ndarray] | None = None,
) -> None:
    """Export a model file.

    Args:
        path: The model file.
        output: The export; written whole or not at all.
        precision: See `export_model`.
        calibration: See `export_model`.

    Raises:
        CheckpointError: The model file cannot be used, or not be exported.
        ConfigError: A package is missing, or int8 has no images to calibrate with.
    """
    model, header = load_checkpoint(path)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    export_model(model, header, output, precision=precision, calibration=calibration, source=digest)


@torch.no_grad()
def export_model(
    model: CaptionModel,
    header: Header,
    output: str | Path,
    *,
    precision: ExportPrecision = "fp32",
    calibration: Sequence[np.ndarray] | None = None,
    source: str | None = None,
) -> None:
    """Export a model and compare the export with it.

    Args:
        model: In `eval()`, fp32, on the CPU.
        header: Of the model.
        output: The export; written whole or not at all.
        precision: `fp32` is exact; `fp16` rounds the weights to half precision and computes in
            fp32; `int8` quantises convolutions and layers, see `quantize.py`.
        calibration: For int8: images (S, S, 3) uint8 whose activations set the ranges.
        source: SHA-256 of the model file that the export is made of.

    Raises:
        CheckpointError: A part of the network cannot be exported, or the export gives other
            results than the model.
        ConfigError: A package is missing, or int8 has no images to calibrate with.
    """
    _require_packages()
    from safetensors.numpy import save_file

    if precision == "int8" and not calibration:
        raise ConfigError("int8 needs images to calibrate with: --calibrate FOLDER")
    size = header.preprocess.size
    examples = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    pixels = torch.from_numpy(examples)
    encoded = EncoderGraph(model, header.preprocess)(pixels)
    grid = model.remember(header.preprocess.normalize(pixels[:1])).size
    rows = [x[:, None].repeat(1, 2, 1) for x in encoded[2:]]  # state of K = 2 rows
    words = torch.full((len(pixels), 2), Vocabulary.START)
    encoder = _trace(
        EncoderGraph(model, header.preprocess), (pixels,), ENCODER_INPUTS, ENCODER_OUTPUTS
    )
    step = _trace(StepGraph(model, grid), (words, *rows, *encoded[:2]), STEP_INPUTS, STEP_OUTPUTS)
    if precision == "int8":
        from captioner.backends.quantize import quantize_encoder, quantize_step, spread_out

        assert calibration is not None
        searched = spread_out(calibration, _SEARCHED)
        step = quantize_step(step, _search_inputs(model, header.preprocess, grid, searched))
        encoder = quantize_encoder(encoder, calibration)
    graphs = {}
    for name, graph in (("encoder", encoder), ("step", step)):
        _store_half(graph, rounded=precision == "fp16")
        graphs[name] = graph.SerializeToString()
    section = {
        "precision": precision,
        "grid": list(grid),
        "opset": _OPSET,
        "parameters": sum(x.numel() for x in model.parameters()),
        "source": source,
        "sha256": {name: hashlib.sha256(graph).hexdigest() for name, graph in graphs.items()},
    }
    tensors = {name: np.frombuffer(graph, np.uint8) for name, graph in graphs.items()}
    with replacing(output) as temporary:
        save_file(tensors, str(temporary), metadata=header_metadata(header, export=section))
        difference = compare(model, OnnxBackend(temporary), examples)
        logger.info("largest difference of a log-probability: %.1e", difference)
        if not difference <= _TOLERANCES[precision]:
            raise CheckpointError(
                f"the export's log-probabilities differ by {difference:.1e} from the model's: "
                "this network cannot be exported; please report it"
            )


@torch.no_grad()
def _search_inputs(
    model: CaptionModel, preprocess: Preprocess, grid: tuple[int, int], images: Sequence[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs of each step of a greedy search over images (S, S, 3) uint8."""
    values, keys, *state = EncoderGraph(model, preprocess)(torch.from_numpy(np.stack(images)))
    step = StepGraph(model, grid)
    state = [each[:, None] for each in state]  # K = 1 row
    words = torch.full((len(images), 1), Vocabulary.START)
    for _ in range(_SEARCHED_WORDS):
        inputs = (words, *state, values, keys)
        yield {name: x.numpy() for name, x in zip(STEP_INPUTS, inputs, strict=True)}
        log_probs, _, *state = step(*inputs)
        words = log_probs.argmax(-1)


@torch.no_grad()
def compare(model: CaptionModel, backend: OnnxBackend, pixels: np.ndarray, steps: int = 4) -> float:
    """Compare an export with its model on images and a few steps of random words.

    Rows change places and images leave between the steps, as in a search.

    Args:
        model: In `eval()`, on the CPU.
        backend: The export.
        pixels: (B, S, S, 3) uint8, at least two images.
        steps: How many words.

    Returns:
        The largest absolute difference of a log-probability, an attention weight or an encoded
        value.
    """
    rng = np.random.default_rng(1)
    ours = EncoderGraph(model, backend.header.preprocess)(torch.from_numpy(pixels))
    theirs = backend.encode(pixels)
    difference = max(_difference(a, b) for a, b in zip(ours, theirs, strict=True))
    rows = 1
    step = StepGraph(model, backend.grid)
    stepper = backend.stepper(theirs)
    values, keys, *state = ours
    state = [x[:, None] for x in state]
    for _ in range(steps):
        words = rng.integers(0, len(backend.header.vocabulary), (len(values), rows))
        log_probs, attention, *state = step(torch.from_numpy(words), *state, values, keys)
        for a, b in zip((log_probs, attention), stepper.step(words), strict=True):
            difference = max(difference, _difference(a, b))
        parents = rng.integers(0, rows, (len(values), 3))
        stepper.reorder(parents)
        images = np.arange(len(values))[:, None]
        state, rows = [x[images, parents] for x in state], 3
        kept = np.arange(len(values))[-2:]
        stepper.keep(kept)
        values, keys, *state = (x[kept] for x in (values, keys, *state))
    return difference


def _difference(ours: Tensor, theirs: np.ndarray) -> float:
    return float((ours - torch.from_numpy(theirs)).abs().max())


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"exporting needs the package {error.name}: pip install 'captioner[export]'"
        ) from None


def _trace(
    module: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], outputs: tuple[str, ...]
) -> ModelProto:
    """Trace a module into a graph whose first axis (and the rows, K) may have any length."""
    import onnx

    axes = {name: {0: "B"} for name in (*names, *outputs)}
    if names == STEP_INPUTS:
        for name in (*_STEP_ROWS, *outputs):
            axes[name][1] = "K"
    file: Any = io.BytesIO()  # the type hint of `export` is narrower than what it takes
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator, which ONNX has not
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fixed sizes, which are meant
            torch.onnx.export(
                module.eval(),
                inputs,
                file,
                input_names=names,
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=_OPSET,
                training=torch.onnx.TrainingMode.PRESERVE,  # else it fuses BatchNorm
                do_constant_folding=False,  # else it stores transposed copies of weights
                dynamo=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        part = "decoder" if names == STEP_INPUTS else "encoder"
        reason = " ".join(str(error).split("\n\n")[0].split())[:200]
        raise CheckpointError(f"the {part} cannot be exported: {reason}") from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    graph = onnx.load_from_string(file.getvalue())
    _fix_shapes(graph, inputs)
    _drop_unused(graph.graph)
    onnx.checker.check_model(graph)
    return graph


def _fix_shapes(model: ModelProto, inputs: tuple[Tensor, ...]) -> None:
    """Replace what is computed from shapes, and is equal for any number of images and rows.

    The trace keeps all arithmetic on shapes, such as `Conv2dSame`'s padding. The graph is run with
    two numbers of images and of rows; what then has the same value becomes a constant.
    """
    from onnx import numpy_helper

    graph = model.graph
    names = _shape_values(graph)
    feed = {each.name: x.numpy() for each, x in zip(graph.input, inputs, strict=True)}
    more = {name: np.concatenate((x, x)) for name, x in feed.items()}
    for name in more.keys() & set(_STEP_ROWS):
        more[name] = np.concatenate((more[name], more[name]), 1)
    first, second = _run(model, feed, names), _run(model, more, names)
    constants = {
        name: value
        for name, value, again in zip(names, first, second, strict=True)
        if value.shape == again.shape and (value == again).all()
    }
    kept = [node for node in graph.node if not constants.keys() & set(node.output)]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())


def _shape_values(graph: GraphProto) -> list[str]:
    """Names of the values that depend on nothing but shapes and constants, shapes at least."""
    constant = {"", *(each.name for each in graph.initializer)}  # "" is an input left out
    derived: dict[str, None] = {}  # in order
    for node in graph.node:  # in topological order
        if any(each.HasField("g") for each in node.attribute):  # a branch or a loop
            continue
        if constant.issuperset(node.input):
            constant.update(node.output)
        elif node.op_type == "Shape" or (constant | derived.keys()).issuperset(node.input):
            derived.update(dict.fromkeys(node.output))
    return list(derived)


def _run(model: ModelProto, feed: dict[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    """The values of these names inside a graph."""
    import onnx
    import onnxruntime

    if not names:
        return []
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values: list[np.ndarray] = session.run(names, feed)
    return values


def _drop_unused(graph: GraphProto) -> None:
    """Remove nodes and weights that no output depends on."""
    needed = {each.name for each in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    weights = [each for each in graph.initializer if each.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)


def _store_half(model: ModelProto, *, rounded: bool) -> None:
    """Store weights in fp16 with a cast to fp32: those that lose nothing, or all if `rounded`."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < _SMALL or not (rounded or (half == values).all()):
            continue
        if not np.isfinite(half).all():
            raise CheckpointError(f"{weight.name} does not fit into fp16: export it as fp32")
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
