"""Exports: equal to the model for every variant of the network, written whole or not at all."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.tiny import MODEL, shake
from torch import nn

from captioner.backends.export import EncoderGraph, compare, export_file, export_model
from captioner.backends.onnx import OnnxBackend
from captioner.checkpoint import Header, load_checkpoint, read_document, read_header
from captioner.config import AttentionKind
from captioner.errors import CheckpointError, ConfigError
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import Vocabulary

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

VOCABULARY = Vocabulary.build([[f"word{number}" for number in range(20)]], min_count=1)
SIZE = 64
KINDS = get_args(AttentionKind)
DECODERS = {
    **{kind: {"attention": {"kind": kind, "heads": 2}} for kind in KINDS},
    "hard": {"attention": {"mode": "hard"}},
    "see_word": {"attention": {"see_word": True}},
    "sparsemax": {"attention": {"normalizer": "sparsemax"}},
    "entmax15": {"attention": {"normalizer": "entmax15", "kind": "multi_head", "heads": 2}},
    "smooth": {"attention": {"smooth": True}},
    "smooth_heads": {"attention": {"smooth": True, "kind": "multi_head", "heads": 2}},
    "no_gate": {"decoder": {"gate": "off"}},
    "channel_gate": {"decoder": {"gate": "channel"}},
    "deep_output": {"decoder": {"deep_output": True}},
    "tied": {"decoder": {"tied": True, "hidden": 12}},
    "tied_deep": {"decoder": {"tied": True, "deep_output": True}},
    "zero_state": {"decoder": {"initial_state": "zero"}},
    "all": {
        "attention": {"kind": "multi_head", "heads": 2, "see_word": True, "smooth": True},
        "decoder": {
            "gate": "channel",
            "deep_output": True,
            "tied": True,
            "initial_state": "zero",
        },
    },
}
ENCODERS = {
    "padded_same": {"name": "timm/tf_efficientnet_lite0"},
    "head": {"name": "timm/tf_efficientnet_lite0", "head": True, "grid": 3},
    "resnet": {"name": "timm/resnet10t"},
    "torchvision": {"name": "torchvision/resnet18", "grid": 3},
    "excitation": {"name": "torchvision/efficientnet_b0"},
    "layer_norm": {"name": "torchvision/convnext_tiny"},
    "groups": {"name": "torchvision/regnet_y_400mf"},
    "hard_swish": {"name": "torchvision/mobilenet_v3_small", "grid": 7},
    "no_batch_norm": {"name": "torchvision/vgg11"},
    "raw_features": {"strides": (32,), "width": None},
    "refined": {"refine_layers": 2, "refine_heads": 2},
    "odd_grid": {"image_size": 96, "grid": 4},  # 6 cells to 4, which ONNX cannot pool
    "odd_size": {"image_size": 75},
}


def make_model(encoder=(), attention=(), decoder=()):
    """A random network and its header."""
    torch.manual_seed(0)
    config = replace(
        MODEL,
        encoder=replace(MODEL.encoder, **dict(encoder)),
        attention=replace(MODEL.attention, **dict(attention)),
        decoder=replace(MODEL.decoder, **dict(decoder)),
    )
    model = CaptionModel(config, len(VOCABULARY)).eval()
    shake(model.decoder, 0.3)
    for module in model.encoder.modules():  # statistics unlike those of a fresh BatchNorm
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    preprocess = Preprocess(config.encoder.image_size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    header = Header(config=config, vocabulary=VOCABULARY, preprocess=preprocess)
    return model, header


def make_pixels(count, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def check_equal(model, header, path):
    """Export a model and compare more images, rows and words than the export itself does."""
    export_model(model, header, path)
    backend = OnnxBackend(path)
    for count in (2, 5):
        pixels = make_pixels(count, header.preprocess.size, seed=count)
        assert compare(model, backend, pixels, steps=6) < 1e-4
    return backend


@pytest.mark.parametrize("options", DECODERS.values(), ids=DECODERS)
def test_every_decoder_equals_its_export(options, tmp_path):
    check_equal(*make_model(**options), tmp_path / "model")


@pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS)
def test_every_encoder_equals_its_export(options, tmp_path):
    model, header = make_model(encoder=options)
    backend = check_equal(model, header, tmp_path / "model")
    assert backend.grid == model.encoder.grid_size


def test_the_header_travels_with_the_graphs(model, tmp_path):
    export_file(model, tmp_path / "model.onnx.safetensors")
    assert read_header(tmp_path / "model.onnx.safetensors") == read_header(model)
    assert OnnxBackend(tmp_path / "model.onnx.safetensors").header == read_header(model)


def test_weights_of_a_half_precision_file_take_half_the_space(model, tmp_path):
    from captioner.checkpoint import save_checkpoint

    network, header = load_checkpoint(model)
    save_checkpoint(tmp_path / "half.safetensors", header, network.state_dict(), half=True)
    sizes = []
    for source in (model, tmp_path / "half.safetensors"):
        export_file(source, tmp_path / "export")
        sizes.append((tmp_path / "export").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]  # the graphs' own description is not halved
    network, _ = load_checkpoint(tmp_path / "half.safetensors")
    assert compare(network, OnnxBackend(tmp_path / "export"), make_pixels(2)) < 1e-4


def test_fp16_rounds_the_weights(tmp_path):
    model, header = make_model()
    export_model(model, header, tmp_path / "model", precision="fp16")
    assert 1e-6 < compare(model, OnnxBackend(tmp_path / "model"), make_pixels(2)) < 0.1
    with torch.no_grad():
        model.decoder.project.weight[3, 3] = 1e6
    with pytest.raises(CheckpointError, match="does not fit into fp16"):
        export_model(model, header, tmp_path / "model", precision="fp16")


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("captioner.backends.export.compare", lambda *_: float("nan"))
    model, header = make_model()
    with pytest.raises(CheckpointError, match="cannot be exported"):
        export_model(model, header, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_onnx_is_named(tmp_path):
    model, header = make_model()

    class Odd(nn.Module):
        def forward(self, x):
            return [torch.special.i0e(each) for each in backbone(x)]

    backbone, model.encoder.backbone = model.encoder.backbone, Odd()
    with pytest.raises(CheckpointError, match=r"the encoder cannot be exported.*i0e"):
        export_model(model, header, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_graphs_are_plain_and_static(tmp_path):
    """Standard operators of a modest opset, and nothing computed from shapes but B and K."""
    model, header = make_model(encoder={"name": "timm/tf_efficientnet_lite0"})
    export_model(model, header, tmp_path / "model")
    from safetensors.numpy import load_file

    for name, tensor in load_file(tmp_path / "model").items():
        graph = onnx.load_from_string(tensor.tobytes())
        onnx.checker.check_model(graph, full_check=True)
        assert {each.domain: each.version for each in graph.opset_import} == {"": 17}
        made = {output for node in graph.graph.node for output in node.output}
        pads = [node.input[1] for node in graph.graph.node if node.op_type == "Pad"]
        assert not made & set(pads)
        assert bool(pads) == (name == "encoder")
    assert read_document(tmp_path / "model")["export"]["grid"] == [4, 4]


def test_int8_needs_images(model, tmp_path):
    with pytest.raises(ConfigError, match="--calibrate"):
        export_file(model, tmp_path / "export", precision="int8")


def test_int8_quantises_the_trunk_and_the_layers_of_the_step(tmp_path):
    from safetensors.numpy import load_file

    model, header = make_model(
        encoder={"name": "timm/tf_efficientnet_lite0"},
        attention={"smooth": True, "size": 64},
        decoder={"hidden": 64},
    )
    images = list(make_pixels(8))
    export_model(model, header, tmp_path / "int8", precision="int8", calibration=images)
    graphs = {
        name: onnx.load_from_string(tensor.tobytes()).graph
        for name, tensor in load_file(tmp_path / "int8").items()
    }
    types = {name: [node.op_type for node in graph.node] for name, graph in graphs.items()}
    assert "QuantizeLinear" in types["encoder"]
    # The query, and what word, context and last state add to the LSTM's gates: nothing else, nor
    # the state, is rounded.
    makers = {output: node.op_type for node in graphs["step"].node for output in node.output}
    readers = [
        (node.op_type, {makers.get(name) for name in node.input})
        for node in graphs["step"].node
        if "DequantizeLinear" in {makers.get(name) for name in node.input}
    ]
    assert readers == [("MatMul", {"DequantizeLinear"})] * 4
    assert "DequantizeLinear" not in {makers[each.name] for each in graphs["step"].output}
    made = {output: node for node in graphs["encoder"].node for output in node.output}
    convolutions = [node for node in graphs["encoder"].node if node.op_type == "Conv"]
    quantised = [
        (made.get(node.input[1]) or node).op_type == "DequantizeLinear" for node in convolutions
    ]
    first = quantised.index(True)  # the early ones stay in fp32
    assert 0 < first < len(quantised) // 3
    assert all(quantised[first:])
    exact, rounded = EncoderGraph(model, header.preprocess), OnnxBackend(tmp_path / "int8")
    ours = exact(torch.from_numpy(make_pixels(2, seed=5)))[0].detach().numpy()
    theirs = rounded.encode(make_pixels(2, seed=5)).values
    assert 0 < np.linalg.norm(ours - theirs) < 0.2 * np.linalg.norm(ours)
    assert 1e-4 < compare(model, rounded, make_pixels(4, seed=6)) < 1


def test_int8_gives_an_image_in_a_batch_what_it_gives_it_alone(tmp_path):
    model, header = make_model(decoder={"hidden": 64})
    images = list(make_pixels(8))
    export_model(model, header, tmp_path / "int8", precision="int8", calibration=images)
    backend = OnnxBackend(tmp_path / "int8")
    pixels = make_pixels(3, seed=7)
    pixels[1:] //= 8  # dark neighbours, whose numbers are smaller
    words = np.array([[4], [5], [6]])
    together, alone = (backend.stepper(backend.encode(pixels[:count])) for count in (3, 1))
    for ours, expected in zip(together.step(words), alone.step(words[:1]), strict=True):
        np.testing.assert_allclose(ours[:1], expected, atol=1e-6)


def test_a_step_without_large_layers_is_not_quantised():
    from captioner.backends.quantize import quantize_step

    node = onnx.helper.make_node("MatMul", ["hidden", "weight"], ["next_hidden"])
    info = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 8])
        for name in ("hidden", "next_hidden")
    ]
    weight = onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "weight")
    graph = onnx.helper.make_graph([node], "step", info[:1], info[1:], [weight])
    opset = [onnx.helper.make_opsetid("", 17)]
    step = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    assert quantize_step(step, iter([{"hidden": np.ones((1, 8), np.float32)}])) is step


def test_an_export_is_no_model_for_pytorch(model, tmp_path):
    export_file(model, tmp_path / "export")
    with pytest.raises(CheckpointError, match="is an export for the onnx backend"):
        load_checkpoint(tmp_path / "export")
    with pytest.raises(CheckpointError, match="is an export for the onnx backend"):
        export_file(tmp_path / "export", tmp_path / "again")
