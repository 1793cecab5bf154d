"""captioner: an image in, a sentence out, and for every word the place the model looked at."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from captioner.api import Captioner, Ensemble
    from captioner.decoding.options import DecodingOptions
    from captioner.errors import (
        CaptionerError,
        CheckpointError,
        ConfigError,
        DataError,
        ImageError,
    )
    from captioner.hub import ModelFile, list_models
    from captioner.outputs import Caption, Failure, SentenceScore

__all__ = [
    "Caption",
    "Captioner",
    "CaptionerError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DecodingOptions",
    "Ensemble",
    "Failure",
    "ImageError",
    "ModelFile",
    "SentenceScore",
    "__version__",
    "list_models",
]
_MODULES = {
    "Captioner": "api",
    "Ensemble": "api",
    "DecodingOptions": "decoding.options",
    "ModelFile": "hub",
    "list_models": "hub",
    "Caption": "outputs",
    "Failure": "outputs",
    "SentenceScore": "outputs",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: `import captioner` itself is instant."""
    if name not in __all__:
        raise AttributeError(f"module 'captioner' has no attribute {name!r}")
    return getattr(import_module(f"captioner.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
