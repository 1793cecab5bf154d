"""The onnx backend: what it refuses to load, and that it captions without PyTorch."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_files import environment
from safetensors.numpy import load_file, save_file

import captioner
from captioner.api import Captioner
from captioner.backends.onnx import OnnxBackend, find_export
from captioner.backends.onnx_check import check_graph
from captioner.checkpoint import describe, load_weights, read_document, read_header, save_checkpoint
from captioner.errors import CheckpointError, ConfigError
from captioner.utils.device import available_cores

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def export(model, tmp_path_factory):
    """Path of a tiny export."""
    from captioner.backends.export import export_file

    path = tmp_path_factory.mktemp("export") / "tiny.onnx.safetensors"
    export_file(model, path)
    return path


def rewrite(export, path, *, sign=True, **changed):
    """Write an export with other graphs; `sign` puts their hashes into the header."""
    import hashlib

    document, graphs = read_document(export), load_file(export)
    for name, graph in changed.items():
        graphs[name] = np.frombuffer(graph, np.uint8)
        if sign:
            document["export"]["sha256"][name] = hashlib.sha256(graph).hexdigest()
    save_file(graphs, path, metadata={"captioner": json.dumps(document)})
    return path


def graph_of(export, name):
    return onnx.load_from_string(load_file(export)[name].tobytes())


def test_rows_and_images_are_independent(export):
    """Each row's words and each image's pixels decide its own results alone."""
    backend = OnnxBackend(export)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    words = np.array([[1, 5, 6], [1, 7, 8], [1, 9, 4]])
    stepper = backend.stepper(backend.encode(pixels))
    assert (stepper.images, stepper.grid) == (3, backend.grid)
    stepper.step(words[:, :1])
    stepper.reorder(np.zeros((3, 2), int))
    together = stepper.step(words[:, 1:])
    for image in range(3):
        for row in range(2):
            alone = backend.stepper(backend.encode(pixels[image : image + 1]))
            alone.step(words[image : image + 1, :1])
            results = alone.step(words[image : image + 1, 1 + row : 2 + row])
            for result, whole in zip(results, together, strict=True):
                np.testing.assert_allclose(result[0, 0], whole[image, row], atol=1e-4)
    log_probs, attention = together
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=1e-4)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-4)


def test_results_belong_to_the_caller(export):
    backend = OnnxBackend(export)
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    results = []
    for spoil in (False, True):
        stepper = backend.stepper(backend.encode(pixels))
        for _ in range(2):
            log_probs, attention = stepper.step(np.array([[4]]))
            results.append((log_probs.copy(), attention.copy()))
            if spoil:
                log_probs[:], attention[:] = 0, 0
    for kept, spoilt in zip(results[:2], results[2:], strict=True):
        np.testing.assert_array_equal(kept[0], spoilt[0])
        np.testing.assert_array_equal(kept[1], spoilt[1])


def test_a_model_file_is_no_export(model):
    with pytest.raises(CheckpointError, match=r"no graphs for ONNX Runtime.*captioner export"):
        OnnxBackend(model)


def test_a_graph_that_was_changed_is_refused(export, tmp_path):
    graph = graph_of(export, "step").SerializeToString()
    changed = rewrite(export, tmp_path / "changed", sign=False, step=graph[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match="step graph is not the one that was exported"):
        OnnxBackend(changed)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_export_is_refused(export, tmp_path, share):
    data = export.read_bytes()
    (tmp_path / "short").write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="damaged"):
        OnnxBackend(tmp_path / "short")


def test_missing_or_foreign_parts_are_refused(export, tmp_path):
    graphs, document = load_file(export), read_document(export)
    save_file(
        {"encoder": graphs["encoder"]}, tmp_path / "half", {"captioner": json.dumps(document)}
    )
    with pytest.raises(CheckpointError, match="damaged export"):
        OnnxBackend(tmp_path / "half")
    for section in ({}, None, [], {**document["export"], "grid": [2]}):
        document["export"] = section
        save_file(graphs, tmp_path / "odd", {"captioner": json.dumps(document)})
        with pytest.raises(CheckpointError):
            OnnxBackend(tmp_path / "odd")
    with pytest.raises(CheckpointError, match="no model file"):
        OnnxBackend(tmp_path / "absent")


def with_external_data(graph):
    weight = graph.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")


def with_external_data_in_a_node(graph):
    node = next(each for each in graph.graph.node if each.op_type == "Constant")
    node.attribute[0].t.external_data.add(key="location", value="weights.bin")


def with_a_custom_operator(graph):
    graph.graph.node[0].domain = "com.example"
    graph.opset_import.add(domain="com.example", version=1)


def with_an_operator_of_the_runtime(graph):
    graph.graph.node[0].domain = "com.microsoft"


def with_a_function(graph):
    graph.functions.add(name="Cast", domain="")


def with_a_branch_that_hides_one(graph):
    branch = onnx.GraphProto()
    branch.node.add(op_type="Odd", domain="com.example")
    graph.graph.node.add(op_type="If").attribute.add(name="then_branch").g.CopyFrom(branch)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (with_external_data, "weights in another file"),
        (with_external_data_in_a_node, "weights in another file"),
        (with_a_custom_operator, "operators outside"),
        (with_an_operator_of_the_runtime, "operators outside"),
        (with_a_function, "functions of its own"),
        (with_a_branch_that_hides_one, "operators outside"),
    ],
)
def test_graphs_that_reach_beyond_themselves_are_refused(export, tmp_path, spoil, named):
    graph = graph_of(export, "step")
    check_graph(graph.SerializeToString(), "it")
    spoil(graph)
    path = rewrite(export, tmp_path / "spoilt", step=graph.SerializeToString())
    with pytest.raises(CheckpointError, match=f"the step graph has {named}"):
        OnnxBackend(path)


def test_fields_hidden_behind_long_keys_are_refused():
    """A runtime cuts the key of a field to 32 bits: 13 + 2^29 is external data, too."""

    def varint(value):
        rest = value >> 7
        return bytes([value & 127 | 128 * bool(rest)]) + (varint(rest) if rest else b"")

    def message(number, content, beyond=0):
        return varint((number << 3 | 2) + (beyond << 32)) + varint(len(content)) + content

    for beyond, named in ((0, "weights in another file"), (1, "damaged")):
        tensor = message(13, b"", beyond)
        with pytest.raises(CheckpointError, match=named):
            check_graph(message(7, message(5, tensor)), "graph")


def test_damaged_graphs_are_refused(export, tmp_path):
    """Whatever bytes stand in for a graph, it is an error of captioner's own."""
    data = bytearray(load_file(export)["step"].tobytes())
    rng = np.random.default_rng(0)
    for number in range(20):
        spoilt = bytearray(data[: rng.integers(1, 400)]) if number % 2 else bytearray(data)
        for place in rng.integers(0, min(len(spoilt), 2000), 8):
            spoilt[place] = rng.integers(0, 256)
        try:
            OnnxBackend(rewrite(export, tmp_path / "odd", step=bytes(spoilt)))
        except CheckpointError:
            continue


def test_a_graph_with_other_inputs_is_refused(export, tmp_path):
    path = rewrite(export, tmp_path / "odd", step=load_file(export)["encoder"].tobytes())
    with pytest.raises(CheckpointError, match="other inputs or outputs"):
        OnnxBackend(path)


def test_the_export_beside_a_model_is_found(model, export, tmp_path, caplog):
    network, beside = tmp_path / "dog.safetensors", tmp_path / "dog.onnx.safetensors"
    shutil.copy(model, network)
    assert find_export(network) is None
    shutil.copy(export, beside)
    assert find_export(network) == beside
    assert find_export(beside) == beside
    header, weights = read_header(model), load_weights(model)
    weights["decoder.project.bias"] += 1
    save_checkpoint(network, header, weights)  # trained on
    assert find_export(network) is None
    beside.write_bytes(b"{}")
    assert find_export(network) is None
    assert "it is left out" in caplog.text
    network.unlink()
    shutil.copy(export, beside)
    assert find_export(network) == beside


def test_the_shipped_export_belongs_to_the_shipped_model():
    weights = Path(captioner.__file__).parent / "weights"
    shipped = weights / "default.safetensors"
    if not shipped.exists():
        pytest.skip("the model is not installed")
    assert find_export(shipped) == weights / "default.onnx.safetensors"


@pytest.mark.slow
def test_the_command_line_exports_and_describes(model, tmp_path):
    shutil.copy(model, tmp_path / "dog.safetensors")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "captioner", *map(str, arguments)],
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    result = run("export", "dog.safetensors")
    assert (result.returncode, result.stdout) == (0, "dog.onnx.safetensors\n"), result.stderr
    text = run("info", "dog.onnx.safetensors").stdout
    assert "ONNX opset 17" in text
    ours = json.loads(run("info", "--json", "dog.onnx.safetensors").stdout)
    theirs = json.loads(run("info", "--json", "dog.safetensors").stdout)
    assert ours["export"]["precision"] == "fp32"
    assert 0 < ours["parameters"] <= theirs["parameters"]  # the file also counts statistics
    same = ("grid", "config", "preprocess", "record", "vocabulary")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    result = run("export", "dog.safetensors", "-o", "dog.safetensors")
    assert result.returncode == 2
    assert "is the model itself" in result.stderr
    assert run("export", "dog.safetensors", "--precision", "int8").returncode == 2


def test_captions_equal_those_of_pytorch(model, export, photos):
    files = sorted(photos.iterdir())
    ours = Captioner.from_pretrained(export)
    assert ours.backend.name == "onnx"
    theirs = Captioner.from_pretrained(model, precision="fp32")
    assert theirs.backend.name == "torch"
    for options in (
        {},
        {"beam": 5, "num_captions": 3, "groups": 1},
        {"sample": True, "seed": 1},
        {"prefix": "two cat", "num_captions": 2},
    ):
        results = zip(ours.stream(files, **options), theirs.stream(files, **options), strict=True)
        for one, other in results:
            assert one.text == other.text
            assert [each.text for each in one.candidates] == [c.text for c in other.candidates]
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)
            np.testing.assert_allclose(one.attention, other.attention, atol=1e-4)
    one, other = (each.score(files[0], "a red dog runs") for each in (ours, theirs))
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)


def test_auto_takes_onnx_where_it_serves(model, export, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "captioner")
    shutil.copy(model, tmp_path / "dog.safetensors")
    path = tmp_path / "dog.safetensors"

    def chosen(path, **options):
        caplog.clear()
        name = Captioner.from_pretrained(path, **options).backend.name
        return name, caplog.text

    assert chosen(path) == ("torch", caplog.text)
    assert "has no export" in caplog.text
    shutil.copy(export, tmp_path / "dog.onnx.safetensors")
    assert chosen(path, device="cpu") == ("onnx", caplog.text)
    assert "backend: onnx" in caplog.text
    assert chosen(path, backend="torch")[0] == "torch"
    assert chosen(path, precision="bf16") == ("torch", caplog.text)
    assert "bf16" in caplog.text
    assert chosen(path, backend="onnx")[0] == "onnx"
    with pytest.raises(ConfigError, match="on the CPU"):
        chosen(path, backend="onnx", device="cuda")
    with pytest.raises(ConfigError, match="unknown backend"):
        chosen(path, backend="tflite")
    path.unlink()  # only the export is installed
    monkeypatch.setattr("captioner.backends.load._has_gpu", lambda: True)
    assert chosen(path)[0] == "onnx"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device": "cuda"}, "device cuda needs PyTorch"),
        ({"precision": "bf16"}, "precision bf16 needs PyTorch"),
        ({"precision": "fp32"}, "precision fp32 needs PyTorch"),
    ],
)
def test_an_int8_export_does_not_pass_for_another_device_or_precision(
    model, export, tmp_path, options, named
):
    shutil.copy(model, tmp_path / "dog.safetensors")
    path, beside = tmp_path / "dog.safetensors", tmp_path / "dog.onnx.safetensors"
    document = read_document(export)
    document["export"]["precision"] = "int8"
    save_file(load_file(export), beside, {"captioner": json.dumps(document)})
    for file, backend in ((beside, "auto"), (beside, "onnx"), (path, "onnx")):
        with pytest.raises(ConfigError, match=named):
            Captioner.from_pretrained(file, backend=backend, **options)
    if "device" not in options:
        assert Captioner.from_pretrained(path, **options).backend.name == "torch"


def test_a_damaged_export_is_left_out_or_named(model, export, tmp_path, caplog):
    shutil.copy(model, tmp_path / "dog.safetensors")
    document, graphs = read_document(export), load_file(export)
    beside = tmp_path / "dog.onnx.safetensors"
    for section in ("text", None, [1]):
        caplog.clear()
        save_file(graphs, beside, {"captioner": json.dumps({**document, "export": section})})
        assert Captioner.from_pretrained(tmp_path / "dog.safetensors").backend.name == "torch"
        assert "damaged header" in caplog.text
    save_file(graphs, beside, {"captioner": json.dumps({**document, "export": {}})})
    with pytest.raises(CheckpointError, match="damaged export"):
        describe(beside)


def test_threads_follow_the_environment(export, monkeypatch):
    for asked, threads in (("3", 3), ("2,1", 2), ("", available_cores()), ("x", available_cores())):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert OnnxBackend(export).threads == threads
    assert OnnxBackend(export, threads=5).threads == 5


@pytest.mark.parametrize("kept", [True, False])
def test_lanes_divide_the_threads(export, tmp_path, kept):
    """Unless the file was replaced meanwhile: then they share what was loaded."""
    path = shutil.copy(export, tmp_path / "export")
    backend = OnnxBackend(path, threads=4)
    if not kept:
        path.unlink()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    whole = backend.encode(pixels)
    threads, found = [], []

    def compute():
        backend.enter_lane(2)
        found.append(backend.encode(pixels))
        options = backend._session("step").get_session_options()
        threads.append(options.intra_op_num_threads)

    lanes = [threading.Thread(target=compute) for _ in range(2)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert threads == [2 if kept else 4] * 2
    for part in found:
        for ours, expected in zip(part, whole, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_captioning_needs_no_pytorch(export, photos):
    """Not in the Python interface, and not in the command line."""
    code = """if True:
        import sys
        from captioner import Captioner
        from captioner.cli.main import main

        captioner = Captioner.from_pretrained(sys.argv[1])
        caption = captioner("photos/00.png", beam=2, num_captions=2)
        caption.overlay(0)
        captioner.score("photos/01.png", "a dog")
        assert main(["caption", "-m", sys.argv[1], "photos", "--attention-json"]) == 0
        heavy = {"torch", "timm", "torchvision", "onnx", "matplotlib"} & set(sys.modules)
        assert not heavy, heavy
    """
    result = subprocess.run(
        [sys.executable, "-c", code, str(export)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 5
