"""Trunks that are built without timm, and weights where the model hub does not answer."""

import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from captioner.errors import ConfigError
from captioner.models.backbones import build_backbone
from captioner.models.efficientnet_lite import SCALES, STRIDES, EfficientNetLite


@pytest.fixture
def silent_hub(monkeypatch, tmp_path):
    """A hub address at which nobody listens, and nothing downloaded earlier."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="timm's hub client")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it does not listen
        port = taken.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        yield


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/tf_efficientnet_lite3"])
def test_a_hub_that_does_not_answer_is_told(name, silent_hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # before its client tries again
    with pytest.raises(ConfigError, match=r"the model hub cannot be reached.*pretrained=false"):
        build_backbone(name, (16, 32), 64, pretrained=True)


def test_weights_that_were_downloaded_earlier_need_no_hub(silent_hub, tmp_path, monkeypatch):
    """As the hub's client keeps them."""
    timm = pytest.importorskip("timm")
    whole = timm.create_model("resnet10t")
    revision = "0" * 40
    folder = tmp_path / f"models--{whole.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    save_file(whole.state_dict(), folder / "snapshots" / revision / "model.safetensors")
    backbone = build_backbone("timm/resnet10t", (16, 32), 64, pretrained=True)
    assert torch.equal(backbone.trunk.conv1[0].weight, whole.conv1[0].weight)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("strides", [(16, 32), (2, 4, 8)])
def test_efficientnet_lite_is_that_of_timm(name, strides):
    import timm

    positions = tuple(STRIDES.index(stride) for stride in strides)
    theirs = timm.create_model(name, features_only=True, out_indices=positions).eval()
    for key, value in theirs.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 1.5)
    ours = EfficientNetLite(name, strides).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.channels == theirs.feature_info.channels()
    weights = [m.weight for m in ours.modules() if isinstance(m, nn.Conv2d)]
    drawn = [m.weight for m in theirs.modules() if isinstance(m, nn.Conv2d)]
    for mine, other in zip(weights, drawn, strict=True):
        assert mine.std().item() == pytest.approx(other.std().item(), rel=0.3)
    ours.load_state_dict(theirs.state_dict())
    for side in (64, 75):
        images = torch.randn(1, 3, side, side)
        with torch.no_grad():
            for mine, other in zip(ours(images), theirs(images), strict=True):
                torch.testing.assert_close(mine, other)


def test_a_model_file_is_loaded_without_timm():
    code = """
import sys
from captioner.config import ModelConfig
from captioner.models.caption_model import CaptionModel
CaptionModel(ModelConfig(), 9, pretrained=False)
print(sorted({"timm", "torchvision", "torch._dynamo"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
