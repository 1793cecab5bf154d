"""Choose and load the backend that computes a model."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path

from captioner.backends.base import Backend, BackendName
from captioner.checkpoint import read_document
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

    export = find_export(path)
    if backend == "auto":
        why = _why_torch(path, export, device, precision)
        if why is not None and export != path and (path.exists() or export is None):
            logger.info("backend: torch (%s)", why)
            return _load_torch(path, device, precision)
        logger.info("backend: onnx, with %s", export)
    if export is None:
        return OnnxBackend(path)  # which says what is wrong
    on_cpu = device in ("auto", "cpu")
    if not on_cpu or not _computes_in(export, precision):
        raise ConfigError(
            f"{f'precision {precision}' if on_cpu else f'device {device}'} needs PyTorch and a "
            f"model file: {export} is computed on the CPU and in its own precision"
        )
    return OnnxBackend(export)


def installed(path: Path) -> Path | None:
    """Return a model file, or the export beside it if only that is there; None without both."""
    from captioner.backends.onnx import export_path

    return next((each for each in (path, export_path(path)) if each.exists()), None)


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


def _why_torch(path: Path, export: Path | None, device: str, precision: Precision) -> str | None:
    """Why PyTorch is the better choice for a model; None if it is not."""
    if export is None:
        return f"{path} has no export"
    if device not in ("auto", "cpu"):
        return f"device {device}"
    if not _computes_in(export, precision):
        return f"precision {precision}"
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed"
    return "there is a GPU" if device == "auto" and _has_gpu() else None


def _computes_in(export: Path, precision: Precision) -> bool:
    """Whether an export computes in a precision: all but int8 compute in fp32."""
    if precision == "fp32":
        return bool(read_document(export)["export"].get("precision") != "int8")
    return precision == "auto"


def _has_gpu() -> bool:
    """Whether PyTorch can use a GPU; it is imported only where there seems to be one."""
    if "torch" not in sys.modules:
        if importlib.util.find_spec("torch") is None:
            return False
        if not any(map(os.path.exists, _GPU_FILES)) and shutil.which("nvidia-smi") is None:
            return False
    import torch

    return torch.cuda.is_available()
