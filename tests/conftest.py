"""Set up what all tests share: threads, markers, the data folder, a tiny model."""

import logging
import os
from pathlib import Path

import pytest
import torch
from helpers.tiny import MODEL, shake
from helpers.tiny_files import make_photos, save_model

from captioner.models.caption_model import CaptionModel

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

pytest_plugins = ["helpers.browser"]


def pytest_collection_modifyitems(items):
    """Mark what needs the real data sets, so that `-m "not needs_data"` leaves it out."""
    for item in items:
        if "shared_data" in item.fixturenames:
            item.add_marker("needs_data")


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the real data sets: CAPTIONER_DATA, else ../shared/data beside the repository."""
    named = os.environ.get("CAPTIONER_DATA")
    path = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no data at {path}; set CAPTIONER_DATA to the folder of the data sets")
    return path


@pytest.fixture
def tiny_model():
    """A random network of 30 words for photos of 64 pixels, whose words differ much in score."""
    torch.manual_seed(0)
    model = CaptionModel(MODEL, 30)
    shake(model.decoder, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Path of a tiny model file."""
    return save_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """``photos/00.png`` to ``photos/04.png``, relative to the working directory."""
    make_photos(tmp_path / "photos", 5)
    monkeypatch.chdir(tmp_path)
    return Path("photos")


@pytest.fixture(autouse=True)
def _fresh_logging():
    """What a test of the command line sets up for logging ends with the test."""
    yield
    logger = logging.getLogger("captioner")
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()
