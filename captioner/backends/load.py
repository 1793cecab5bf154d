"""Choose and load the backend that computes a model."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path

from captioner.backends.base import Backend, BackendName
from captioner.errors import CheckpointError, ConfigError
from captioner.utils.device import Precision

logger = logging.getLogger(__name__)

_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, Windows' Linux, AMD


def load_backend(
    path: Path,
    backend: BackendName = "auto",
    device: str = "auto",
    precision: Precision = "auto",
) -> Backend:
    """Load a model file, or the export that belongs to it.

    Args:
        path: A model file or an export.
        backend: `torch`, `onnx`, or `auto`: onnx on a CPU if there is an export, else torch.
        device: For torch: `auto`, `cpu`, `cuda`, ...
        precision: For torch: `auto`, `fp32` or `bf16`.

    Raises:
        CheckpointError: The file is missing or cannot be used.
        ConfigError: There is no such backend, or it has no such device or precision.
    """
    if backend not in ("auto", "torch", "onnx"):
        raise ConfigError(f"unknown backend {backend!r}: take auto, torch or onnx")
    if backend == "torch":
        return _load_torch(path, device, precision)
    from captioner.backends.onnx import OnnxBackend, find_export

    if backend == "onnx":
        if device not in ("auto", "cpu") or precision == "bf16":
            raise ConfigError("the onnx backend computes on the CPU and in the export's precision")
        return OnnxBackend(find_export(path) or path)
    why = _why_torch(device, precision)
    export = find_export(path)
    if export is None:
        why = why or f"{path} has no export"
    elif why is None or export == path:
        logger.info("backend: onnx, with %s", export)
        return OnnxBackend(export)
    logger.info("backend: torch (%s)", why)
    return _load_torch(path, device, precision)


def is_installed(path: Path) -> bool:
    """Whether there is a model file, or the export that belongs beside it."""
    from captioner.backends.onnx import export_path

    return path.exists() or export_path(path).exists()


def _load_torch(path: Path, device: str, precision: Precision) -> Backend:
    try:
        from captioner.backends.torch import TorchBackend
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise CheckpointError(
            f"{path} needs PyTorch, which is not installed: pip install captioner"
        ) from None
    return TorchBackend.load(path, device, precision)


def _why_torch(device: str, precision: Precision) -> str | None:
    """Why PyTorch is the better choice, whatever the model; None if it is not."""
    if device not in ("auto", "cpu"):
        return f"device {device}"
    if precision == "bf16":
        return "precision bf16"
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed"
    return "there is a GPU" if device == "auto" and _has_gpu() else None


def _has_gpu() -> bool:
    """Whether PyTorch can use a GPU; it is imported only where there seems to be one."""
    if "torch" not in sys.modules:
        if importlib.util.find_spec("torch") is None:
            return False
        if not any(map(os.path.exists, _GPU_FILES)) and shutil.which("nvidia-smi") is None:
            return False
    import torch

    return torch.cuda.is_available()
