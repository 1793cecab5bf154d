"""Rounding of quantised weights: the outputs change less than with the nearest steps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from captioner.backends.rounding import _round, _windows, round_weights  # noqa: E402


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def correlated(rng, groups, places, size):
    """Inputs (G, P, D) of which a few factors explain most."""
    factors = rng.normal(size=(groups, places, 3)) @ rng.normal(size=(groups, 3, size))
    return factors + 0.1 * rng.normal(size=(groups, places, size))


def test_weights_of_independent_inputs_go_to_the_nearest_step(rng):
    weights = rng.normal(size=(2, 4, 6)) * 5
    covariance = np.stack([np.diag(rng.uniform(1, 2, 6)) for _ in range(2)])
    np.testing.assert_array_equal(_round(weights, covariance, 127), np.round(weights))


@pytest.mark.parametrize("block", [1, 7, 24])
def test_the_output_changes_less_than_with_the_nearest_steps(rng, monkeypatch, block):
    monkeypatch.setattr("captioner.backends.rounding._BLOCK", block)
    inputs = correlated(rng, 3, 500, 24)
    moments = inputs.transpose(0, 2, 1) @ inputs / 500
    weights = rng.normal(size=(3, 8, 24)) * 4

    def error(rounded):
        return np.square((weights - rounded) @ inputs.transpose(0, 2, 1)).mean()

    rounded = _round(weights, moments, 127)
    assert (rounded == np.round(rounded)).all()
    assert error(rounded) < 0.3 * error(np.round(weights))
    assert np.abs(_round(weights, moments, 5)).max() == 5


@pytest.mark.parametrize(
    ("channels", "outputs", "settings"),
    [
        (6, 4, {"kernel": (1, 1)}),
        (6, 4, {"kernel": (3, 3), "pads": (1, 0, 2, 1), "strides": (2, 2)}),
        (6, 6, {"kernel": (3, 2), "group": 6, "pads": (1, 1, 1, 1)}),
        (6, 4, {"kernel": (3, 3), "group": 2, "dilations": (2, 1)}),
    ],
)
def test_windows_are_what_a_convolution_reads(rng, channels, outputs, settings):
    settings = dict(settings)
    kernel = settings.pop("kernel")
    groups = settings.get("group", 1)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **settings)
    values = rng.normal(size=(channels, 9, 11)).astype(np.float32)
    weights = rng.normal(size=(outputs, channels // groups, *kernel)).astype(np.float32)
    top, left, bottom, right = settings.get("pads", (0, 0, 0, 0))
    expected = F.conv2d(
        F.pad(torch.from_numpy(values)[None], (left, right, top, bottom)),
        torch.from_numpy(weights),
        stride=settings.get("strides", (1, 1)),
        dilation=settings.get("dilations", (1, 1)),
        groups=groups,
    )[0].flatten(1)
    windows = _windows(node, values, weights.shape, np.random.default_rng(3))
    places = np.random.default_rng(3).permutation(expected.shape[1])
    ours = np.einsum("gpd,god->gop", windows, weights.reshape(groups, outputs // groups, -1))
    np.testing.assert_allclose(
        ours.reshape(outputs, -1), expected.numpy()[:, places], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("contents", ["noise", "one colour"])
def test_a_quantised_graph_gets_closer_to_the_exact_one(rng, has_bias, contents):
    from onnx import TensorProto, helper, numpy_helper

    size = 12
    weights = {
        "mix": rng.normal(size=(16, 3, 1, 1)).astype(np.float32),
        "w": rng.normal(size=(5, 16, 1, 1)).astype(np.float32),
    }
    if has_bias:
        weights["b"] = rng.normal(size=5).astype(np.float32)
    scale = np.abs(weights["w"]).max((1, 2, 3)) / 7  # coarse: four bits

    def graph(convolution, *nodes, **more):
        before = [
            helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["numbers"], ["colours"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["colours", "mix"], ["x"], name="before"),
        ]
        last = helper.make_node(
            "Conv", ["x", *convolution[: 1 + has_bias]], ["y"], name="convolution"
        )
        return helper.make_model(
            helper.make_graph(
                [*before, *nodes, last],
                "graph",
                [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, size, size, 3])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, size, size])],
                [numpy_helper.from_array(value, name) for name, value in more.items()],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=9,
        )

    exact = graph(["w", "b"], **weights)
    nodes = [helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["dw"], axis=0)]
    stored = {
        "mix": weights["mix"],
        "w8": np.round(weights["w"] / scale[:, None, None, None]).astype(np.int8),
        "scale": scale,
        "zero": np.zeros(5, np.int8),
    }
    if has_bias:
        nodes.append(
            helper.make_node("DequantizeLinear", ["b32", "fine", "zero32"], ["db"], axis=0)
        )
        stored["fine"] = scale / 100
        stored["b32"] = np.round(weights["b"] / stored["fine"]).astype(np.int32)
        stored["zero32"] = np.zeros(5, np.int32)
    quantised = graph(["dw", "db"], *nodes, **stored)
    images = rng.integers(0, 256, (12, size, size, 3), dtype=np.uint8)
    if contents == "one colour":
        images[:] = (255, 254, 253)

    def run(model):
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString())
        return np.concatenate([session.run(None, {"pixels": image[None]})[0] for image in images])

    before = run(quantised) - run(exact)
    round_weights(quantised, exact, images)
    after = run(quantised) - run(exact)
    assert np.square(after).mean() < 0.3 * np.square(before).mean()
    if has_bias:
        assert np.abs(after.mean((0, 2, 3))).max() < 0.1 * np.abs(before).mean()


def test_a_graph_without_quantised_convolutions_stays_as_it_is():
    node = onnx.helper.make_node("Identity", ["pixels"], ["y"])
    info = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [1, 4, 4, 3])
        for name in ("pixels", "y")
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", info[:1], info[1:]))
    before = model.SerializeToString()
    round_weights(model, model, np.zeros((1, 4, 4, 3), np.uint8))
    assert model.SerializeToString() == before
