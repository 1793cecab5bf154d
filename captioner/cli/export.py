"""`captioner export`: a model for the onnx backend, which captions without PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.errors import ConfigError, ImageError

if TYPE_CHECKING:
    import numpy as np

_CALIBRATION_IMAGES = 256


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `captioner export` takes."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="model file")
    add(
        "-o",
        "--output",
        metavar="FILE|DIR",
        help="the export, or the folder for it (MODEL with the ending .onnx.safetensors)",
    )
    add(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="fp32 is exact (default); fp16 rounds the weights, half the size; int8 computes "
        "convolutions and layers in 8 bits, faster, and changes some captions",
    )
    add(
        "--calibrate",
        metavar="FOLDER",
        help=f"for int8: images like those to caption, of which {_CALIBRATION_IMAGES} are read",
    )


def export(arguments: argparse.Namespace) -> int:
    """Run `captioner export`."""
    from captioner.backends.onnx import export_path

    model = Path(arguments.model)
    output = Path(arguments.output) if arguments.output else export_path(model)
    if output.is_dir():
        output = output / export_path(model).name
    if output.resolve() == model.resolve():
        raise ConfigError(f"{output} is the model itself: give -o another name")
    if arguments.calibrate and arguments.precision != "int8":
        raise ConfigError("--calibrate is for --precision int8")
    if arguments.precision == "int8" and not arguments.calibrate:
        raise ConfigError("int8 needs images to calibrate with: --calibrate FOLDER")
    try:
        from captioner.backends.export import export_file
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigError("exporting needs PyTorch: pip install 'captioner[export]'") from None
    calibration = _read_images(model, arguments.calibrate) if arguments.calibrate else None
    export_file(model, output, precision=arguments.precision, calibration=calibration)
    print(output)
    return 0


def _read_images(model: Path, folder: str) -> list[np.ndarray]:
    """Images of a folder, evenly chosen, as the model sees them; those that fail are left out."""
    from captioner.checkpoint import read_header
    from captioner.image.io import open_image

    preprocess = read_header(model).preprocess
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    images: list[np.ndarray] = []
    for file in files[:: max(1, len(files) // _CALIBRATION_IMAGES)]:
        try:
            image = open_image(file, shrink_to=preprocess.size)
        except ImageError:
            continue
        images.append(preprocess.to_uint8(image))
        if len(images) == _CALIBRATION_IMAGES:
            break
    if not images:
        raise ConfigError(f"{folder} has no images to calibrate with")
    return images
