"""Where ImageNet weights come from when the model hub does not answer."""

import socket

import pytest

from captioner.errors import ConfigError
from captioner.models.backbones import build_backbone


@pytest.fixture
def silent_hub(monkeypatch, tmp_path):
    """A hub address at which nobody listens, and nothing downloaded earlier."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="timm's hub client")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it does not listen
        port = taken.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        yield constants


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/tf_efficientnet_lite3"])
def test_a_hub_that_does_not_answer_is_told_without_trying_again(name, silent_hub, monkeypatch):
    def wait(_seconds):
        pytest.fail("it waits to try again")

    monkeypatch.setattr("time.sleep", wait)
    with pytest.raises(ConfigError, match=r"the model hub cannot be reached.*pretrained=false"):
        build_backbone(name, (16, 32), 64, pretrained=True)
    assert silent_hub.HF_HUB_OFFLINE is False  # as it was
