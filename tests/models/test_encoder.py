"""Encoders by name: grids, gradients, and frozen parts that stay as they are."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from captioner.config import EncoderConfig
from captioner.errors import ConfigError
from captioner.models.encoder import Encoder

SIZE = 64
MODELS = [
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "torchvision/efficientnet_b0",
    "torchvision/convnext_tiny",
    "torchvision/regnet_y_400mf",
    "torchvision/vgg11",
    "timm/resnet10t",
    "timm/tf_efficientnet_lite0",
    "timm/mobilenetv3_small_050",
]
SLOW = [
    pytest.param(f"torchvision/{name}", marks=pytest.mark.slow)
    for name in ("resnet50", "resnet101")
]
CHEAP = ["torchvision/mobilenet_v3_small", "timm/mobilenetv3_small_050"]
DEEP = ["torchvision/efficientnet_b0", "timm/resnet10t"]


def make(name=CHEAP[0], **options):
    torch.manual_seed(0)
    options = {"image_size": SIZE, "width": 8, "pretrained": False} | options
    return Encoder(EncoderConfig(name=name, **options))


def photos(count=2, size=SIZE, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def trunk_gradients(encoder):
    return {name for name, p in encoder.backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS + SLOW)
def test_grids_forward_and_backward(name):
    """Grid 7×7 and 14×14, joined from strides 16 and 32, with gradients where it trains."""
    encoder = make(name, trainable_stages=2, grid=7).train()
    for side in (7, 14):
        encoder.config = replace(encoder.config, grid=side)  # one network for both
        encoder.zero_grad()
        features, size = encoder(photos())
        assert size == (side, side)
        assert features.shape == (2, side * side, 8)
        assert torch.isfinite(features).all()
        features.square().mean().backward()
        for parameter_name, parameter in encoder.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
            if parameter.requires_grad:
                assert torch.isfinite(parameter.grad).all(), parameter_name
    assert 0 < len(trunk_gradients(encoder)) < len(list(encoder.backbone.parameters()))


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize(("strides", "side"), [((16,), 4), ((32,), 2), ((8, 16, 32), 8)])
def test_the_finest_stride_gives_the_grid(name, strides, side):
    encoder = make(name, strides=strides).eval()
    features, size = encoder(photos())
    assert size == (side, side)
    assert features.shape == (2, side * side, 8)
    assert [stage.shape[-1] for stage in encoder.forward_features(photos())] == [
        SIZE // s for s in strides
    ]


def test_the_grid_is_the_one_that_was_promised_without_padding():
    """The convolutions of SqueezeNet do not pad: 13 cells of 224 pixels, not 14."""
    config = EncoderConfig(
        name="torchvision/squeezenet1_1", pretrained=False, strides=(16,), width=8
    )
    encoder = Encoder(config).eval()
    images = torch.zeros(1, 3, 224, 224)
    assert encoder.forward_features(images)[0].shape[-1] == 13
    assert encoder(images).size == encoder.grid_size == (14, 14)


def test_raw_features_of_one_stage():
    encoder = make(strides=(32,), width=None).eval()
    assert encoder.feature_size == 576
    stage = encoder.forward_features(photos())[0]
    features = encoder(photos()).features
    assert torch.equal(features, stage.flatten(2).transpose(1, 2))
    with pytest.raises(ConfigError, match=r"encoder\.width"):
        make(strides=(16, 32), width=None)


def test_cells_run_row_by_row():
    """Cell 4·r + c of a 4×4 grid looks at its own part of the photo."""
    encoder = make(strides=(16,)).eval()
    stage = torch.zeros(1, encoder.backbone.channels[0], 4, 4)
    stage[0, :, 2, 1] = torch.arange(encoder.backbone.channels[0])
    features, _ = encoder.forward_neck([stage])
    others = [cell for cell in range(16) if cell != 4 * 2 + 1]
    assert torch.equal(features[0, others], features[0, :1].expand(15, -1))
    assert not torch.allclose(features[0, 4 * 2 + 1], features[0, 0])


@pytest.mark.parametrize("layers", [1, 2])
def test_refinement_mixes_the_cells(layers):
    encoder = make(strides=(16,), refine_layers=layers, refine_heads=2).eval()
    stage = torch.randn(1, encoder.backbone.channels[0], 4, 4)
    before = encoder.forward_neck([stage]).features
    stage[0, :, 0, 0] += 5
    after = encoder.forward_neck([stage]).features
    assert before.shape == (1, 16, 8)
    assert ((before - after).abs().amax(-1) > 0).all()
    plain = make(strides=(16,)).eval()
    moved = plain.forward_neck([stage]).features
    stage[0, :, 0, 0] -= 5
    assert ((moved - plain.forward_neck([stage]).features).abs().amax(-1) > 0).sum() == 1
    with pytest.raises(ConfigError, match="refine_heads"):
        make(strides=(16,), refine_layers=1, refine_heads=3)


def working_strides(encoder, size):
    """Output stride at which each convolution's weight works, by running the network."""
    strides, current = {}, [1]
    hooks = []

    def hook(name, module):
        def note(_module, _inputs, output):
            side = output.shape[-1]
            if side > 1:  # squeeze-and-excitation works within the stage that called it
                current[0] = max(current[0], 2 ** round(torch.tensor(size / side).log2().item()))
            strides[name] = current[0]

        hooks.append(module.register_forward_hook(note))

    for name, module in encoder.backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            hook(name, module)
    with torch.no_grad():
        encoder.eval().forward_features(photos(1, size))
    for handle in hooks:
        handle.remove()
    return strides


@pytest.mark.parametrize("name", MODELS + SLOW)
def test_trainable_stages_are_the_last_ones(name):
    frozen = make(name)
    assert not any(p.requires_grad for p in frozen.backbone.parameters())
    assert all(p.requires_grad for p in frozen.laterals.parameters())
    strides = working_strides(frozen, SIZE)
    known = sorted(set(strides.values()), reverse=True)
    for count in (1, 2):
        encoder = make(name, trainable_stages=count, strides=(8, 16, 32)).train()
        trainable = {n for n, p in encoder.backbone.named_parameters() if p.requires_grad}
        for module, stride in strides.items():
            assert (f"{module}.weight" in trainable) == (stride in known[:count]), module
        # Nothing that trains lies before a finer stage, whatever its module is called.
        for stride, stage in zip((8, 16, 32), encoder.forward_features(photos()), strict=True):
            assert stage.requires_grad == (stride >= known[count - 1]), stride


@pytest.mark.parametrize("name", CHEAP + DEEP)
def test_all_stages_can_train(name):
    encoder = make(name, trainable_stages=9).train()
    encoder(photos()).features.sum().backward()
    assert trunk_gradients(encoder) == {n for n, _ in encoder.backbone.named_parameters()}


def test_depthwise_kernels_can_stay_frozen():
    encoder = make(trainable_stages=2, train_depthwise=False)
    whole = make(trainable_stages=2)
    kernels = {
        f"{name}.weight"
        for name, module in encoder.backbone.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    }
    trainable, all_trainable = (
        {n for n, p in e.backbone.named_parameters() if p.requires_grad} for e in (encoder, whole)
    )
    assert trainable == all_trainable - kernels
    assert kernels & all_trainable


def statistics(encoder):
    return {
        name: buffer.clone()
        for name, buffer in encoder.backbone.named_buffers()
        if "running" in name or "num_batches" in name
    }


@pytest.mark.parametrize("name", CHEAP + DEEP)
@pytest.mark.parametrize("stages", [0, 1])
def test_frozen_statistics_do_not_drift(name, stages):
    encoder = make(name, trainable_stages=stages)
    start = statistics(encoder)
    assert start
    for key, buffer in start.items():  # building it has not moved them either
        assert torch.equal(buffer, torch.full_like(buffer, float("var" in key))), key
    for mode in (lambda: None, encoder.train, lambda: encoder.train(True), lambda: encoder.eval()):
        mode()
        encoder(photos())
    for key, buffer in statistics(encoder).items():
        assert torch.equal(buffer, start[key]), key


@pytest.mark.parametrize("name", CHEAP + DEEP)
def test_statistics_of_a_stage_that_trains_move_if_asked(name):
    encoder = make(name, trainable_stages=1, batch_norm="train").train()
    start = statistics(encoder)
    encoder(photos())
    moved = {
        key.rpartition(".")[0] for key, x in statistics(encoder).items() if (x != start[key]).any()
    }
    trainable = {
        n.rpartition(".")[0] for n, p in encoder.backbone.named_parameters() if p.requires_grad
    }
    norms = {
        n
        for n, m in encoder.backbone.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    }
    assert moved == norms & trainable


def test_frozen_stages_have_no_stochastic_depth():
    """Blocks that are skipped at random (torchvision builds them in) would blur a frozen trunk."""
    name = "torchvision/efficientnet_b0"
    encoder = make(name, trainable_stages=1).train()
    fine = [encoder.forward_features(photos(8))[0] for _ in range(3)]
    assert torch.equal(fine[0], fine[1])
    assert torch.equal(fine[0], fine[2])
    encoder = make(name, trainable_stages=9).train()
    assert not torch.equal(
        encoder.forward_features(photos(8))[0], encoder.forward_features(photos(8))[0]
    )


def test_a_frozen_trunk_builds_no_graph():
    encoder = make().train()
    assert not any(stage.requires_grad for stage in encoder.forward_features(photos()))
    assert encoder(photos()).features.requires_grad


@pytest.mark.parametrize("stages", [0, 2])
def test_a_batch_in_parts_is_the_batch(stages):
    """Five photos on one thread: two parts of two and one of one. With gradients there are none."""
    encoder = make(trainable_stages=stages).eval()
    sizes = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = encoder.backbone(photos(5))
        encoder.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
        with torch.no_grad():
            found = encoder.forward_features(photos(5))
        encoder.forward_features(photos(5))
    finally:
        torch.set_num_threads(threads)
    assert sizes == [2, 2, 1, *([5] if stages else [2, 2, 1])]
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/mobilenetv3_small_050"])
def test_photos_do_not_see_each_other(name):
    encoder = make(name, trainable_stages=1).train()  # frozen statistics: no batch effects
    together = encoder(photos(3)).features
    for index in range(3):
        alone = encoder(photos(3)[index : index + 1]).features
        torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet19", "resnet18"),
        ("timm/tf_efficientnet_light2", "tf_efficientnet_lite2"),
        ("resnet18", "torchvision/NAME or timm/NAME"),
        ("keras/resnet18", "torchvision/NAME or timm/NAME"),
        ("torchvision/", "torchvision/NAME or timm/NAME"),
        ("torchvision/vit_b_16", "no spatial features"),
        ("timm/vit_tiny_patch16_224", "timm/vit_tiny_patch16_224"),
    ],
)
def test_unknown_and_unfit_names(name, message):
    with pytest.raises(ConfigError, match=message):
        make(name)


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("strides", [(), (3,), (16, 64), (32, 16), (16, 16)])
def test_wrong_strides(name, strides):
    with pytest.raises(ConfigError, match="strides"):
        make(name, strides=strides)


def test_the_weights_bring_their_normalization():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = ((0.5,) * 3,) * 2
    for name, expected in (
        ("torchvision/mobilenet_v3_small", imagenet),
        ("timm/resnet10t", imagenet),
        ("timm/tf_efficientnet_lite0", half),
    ):
        normalization = make(name).normalization
        assert (normalization.mean, normalization.std) == expected


def test_stages_that_nothing_reads_do_not_count_as_trainable():
    """The last stage of a trunk that is read up to stride 16 is that of stride 16."""
    encoder = make("timm/mobilenetv3_small_050", strides=(8, 16), trainable_stages=1)
    strides = encoder.backbone.stage_strides(SIZE)
    trained = {
        strides.get(name)
        for name, parameter in encoder.backbone.named_parameters()
        if parameter.requires_grad
    }
    assert trained == {16}


def test_dropout_hides_whole_channels_of_a_photo_and_only_in_training():
    """The channels that are left are scaled up; another photo loses others."""
    encoder = make(width=64, dropout=0.5)
    images = photos()
    plain = encoder.eval()(images).features  # (B, L, D)
    assert torch.equal(plain, encoder(images).features)
    dropped = encoder.train()(images).features
    hidden = (dropped == 0).all(1)  # (B, D)
    assert 0.2 < hidden.float().mean() < 0.8
    assert not torch.equal(hidden[0], hidden[1])
    kept = (plain * 2).masked_fill(hidden[:, None], 0)
    torch.testing.assert_close(dropped, kept)


def test_the_head_is_the_convolution_that_the_classifier_reads():
    """What timm's own model hands to its pooling; it trains with the last stage."""
    encoder = make("timm/tf_efficientnet_lite0", strides=(16, 32), head=True, trainable_stages=1)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    own = {f"trunk.{key}": value for key, value in whole.state_dict().items()}
    for number, name in enumerate(("conv_head", "bn2")):
        part = getattr(whole, name).state_dict()
        own |= {f"head.{number}.{key}": value for key, value in part.items()}
    encoder.backbone.load_state_dict({key: own[key] for key in encoder.backbone.state_dict()})
    images = photos()
    with torch.no_grad():
        expected = whole.forward_features(images)
        found = encoder.eval().forward_features(images)[-1]
    torch.testing.assert_close(found, expected)
    encoder.train()(images).features.sum().backward()
    assert "head.0.weight" in trunk_gradients(encoder)
    assert not encoder.backbone.head[1].training  # its statistics are frozen like the others


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("timm/resnet10t", (16, 32)),
        ("timm/mobilenetv3_small_050", (16, 32)),  # its convolution comes after the pooling
        ("timm/tf_efficientnet_lite0", (8, 16)),
        ("torchvision/efficientnet_b0", (16, 32)),
    ],
)
def test_a_head_that_is_not_there(name, strides):
    with pytest.raises(ConfigError, match=r"encoder\.head"):
        make(name, strides=strides, head=True)
