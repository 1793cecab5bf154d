"""Rounding of quantised weights: the outputs change less than with the nearest steps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from captioner.backends.rounding import _round, _windows, round_weights  # noqa: E402

RNG = np.random.default_rng(0)


def correlated(groups, places, size):
    """Inputs (G, P, D) of which a few factors explain most."""
    factors = RNG.normal(size=(groups, places, 3)) @ RNG.normal(size=(groups, 3, size))
    return factors + 0.1 * RNG.normal(size=(groups, places, size))


def test_weights_of_independent_inputs_go_to_the_nearest_step():
    weights = RNG.normal(size=(2, 4, 6)) * 5
    moments = np.stack([np.diag(RNG.uniform(1, 2, 6)) for _ in range(2)])
    np.testing.assert_array_equal(_round(weights, moments, 127), np.round(weights))


def test_the_output_changes_less_than_with_the_nearest_steps():
    inputs = correlated(3, 500, 24)
    moments = inputs.transpose(0, 2, 1) @ inputs / 500
    weights = RNG.normal(size=(3, 8, 24)) * 4

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
def test_windows_are_what_a_convolution_reads(channels, outputs, settings):
    settings = dict(settings)
    kernel = settings.pop("kernel")
    groups = settings.get("group", 1)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **settings)
    values = RNG.normal(size=(channels, 9, 11)).astype(np.float32)
    weights = RNG.normal(size=(outputs, channels // groups, *kernel)).astype(np.float32)
    top, left, bottom, right = settings.get("pads", (0, 0, 0, 0))
    expected = F.conv2d(
        F.pad(torch.from_numpy(values)[None], (left, right, top, bottom)),
        torch.from_numpy(weights),
        stride=settings.get("strides", (1, 1)),
        dilation=settings.get("dilations", (1, 1)),
        groups=groups,
    )[0].flatten(1)
    seed = np.random.default_rng(3)
    windows = _windows(node, values, weights.shape, seed)
    places = np.random.default_rng(3).permutation(expected.shape[1])[:200]
    ours = np.einsum("gpd,god->gop", windows, weights.reshape(groups, outputs // groups, -1))
    np.testing.assert_allclose(
        ours.reshape(outputs, -1), expected.numpy()[:, places], rtol=1e-4, atol=1e-5
    )


def test_a_quantised_graph_gets_closer_to_the_exact_one():
    from onnx import TensorProto, helper, numpy_helper

    size, mixing = 12, RNG.normal(size=(3, 16)).astype(np.float32)
    weights = {
        "mix": mixing.T.reshape(16, 3, 1, 1),
        "w": RNG.normal(size=(5, 16, 1, 1)).astype(np.float32),
        "b": RNG.normal(size=5).astype(np.float32),
        "axes": np.array([0, 3, 1, 2]),
    }
    step = np.abs(weights["w"]).max((1, 2, 3)) / 7  # coarse: four bits
    steps = np.round(weights["w"] / step[:, None, None, None]).astype(np.int8)

    def graph(*nodes, **more):
        before = [
            helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["numbers"], ["colours"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["colours", "mix"], ["x"], name="before"),
        ]
        stored = {**weights, **more}
        return helper.make_model(
            helper.make_graph(
                [*before, *nodes],
                "graph",
                [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, size, size, 3])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, size, size])],
                [numpy_helper.from_array(value, name) for name, value in stored.items()],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=9,
        )

    exact = graph(helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv"))
    quantised = graph(
        helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["found"], axis=0),
        helper.make_node("Conv", ["x", "found", "bias"], ["y"], name="conv"),
        steps=steps,
        scale=step,
        zero=np.zeros(5, np.int8),
        bias=weights["b"],
    )
    images = RNG.integers(0, 256, (12, size, size, 3), dtype=np.uint8)

    def run(model):
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString())
        return np.concatenate([session.run(None, {"pixels": image[None]})[0] for image in images])

    before = run(quantised) - run(exact)
    round_weights(quantised, exact, images)
    after = run(quantised) - run(exact)
    assert np.square(after).mean() < 0.3 * np.square(before).mean()
    assert np.abs(after.mean((0, 2, 3))).max() < 0.1 * np.abs(before).mean()
