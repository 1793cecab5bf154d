"""The model file: weights and everything needed to use them, in one `.safetensors`.

The header carries the format version, the network's configuration, the vocabulary, the
preprocessing and a record of the training; nothing in it can run code. Weights may be stored in
half precision; they are computed with in fp32 after loading.
"""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.config import ModelConfig, from_dict, to_dict
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.image.foreign import describe_foreign_file
from captioner.image.transforms import Preprocess
from captioner.tokenizer import Vocabulary
from captioner.utils.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from captioner.models.caption_model import CaptionModel

FORMAT_VERSION = 1
_HEADER = "captioner"
_MAX_HEADER = 1 << 25  # bytes; a vocabulary of a million words fits
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, kw_only=True)
class Header:
    """All of a model file but its weights.

    Attributes:
        config: Of the network.
        vocabulary: Its words.
        preprocess: How images become pixels.
        record: How the model was made: data, seed, metrics, versions, commit.
    """

    config: ModelConfig
    vocabulary: Vocabulary
    preprocess: Preprocess
    record: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: str | Path, header: Header, weights: Mapping[str, Tensor], *, half: bool = False
) -> None:
    """Write a model file atomically.

    Args:
        path: Where; the folder is made if it is absent.
        header: What travels with the weights.
        weights: The network's `state_dict`.
        half: Store floating-point weights as fp16, half the size.

    Raises:
        CheckpointError: A weight is too large for fp16, or not a number.
    """
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in weights.items():
        if tensor.data_ptr() in stored and tensor.numel():  # tied weights are stored once
            continue
        stored.add(tensor.data_ptr())
        tensor = tensor.detach().cpu()
        if half and tensor.is_floating_point():
            tensor = tensor.to(torch.float16)
            if not tensor.isfinite().all():
                raise CheckpointError(f"{name} does not fit into fp16: save it without half=True")
        tensors[name] = tensor.contiguous()
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata=header_metadata(header))


def read_header(path: str | Path) -> Header:
    """Read a model file's header without its weights.

    Raises:
        CheckpointError: The file is missing, damaged, not ours, or of a newer format.
    """
    return header_from_document(read_document(path), path)


def read_document(path: str | Path) -> dict[str, Any]:
    """Read a model file's or an export's header as it is written in the file.

    Raises:
        CheckpointError: The file is missing, damaged, not ours, or of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        _check_header_size(path)
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(_missing(path)) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_explain(path, error)) from None
    if _HEADER not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not of captioner")
    try:
        document: dict[str, Any] = json.loads(metadata[_HEADER])
        version = document["format"]
        if not isinstance(document.get("export", {}), dict):
            raise TypeError("the section 'export' is no section")
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {version}, this captioner reads up to {FORMAT_VERSION}: upgrade"
            )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from None
    return document


def _check_header_size(path: str | Path) -> None:
    """Refuse a file whose header would take more memory than that of any model.

    Raises:
        CheckpointError: It is too large.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if (
            _MAX_HEADER < size <= os.fstat(file.fileno()).st_size
        ):  # more: cut short, or no such file
            raise CheckpointError(f"{path} has a header of {size:,} bytes: over {_MAX_HEADER:,}")


def header_from_document(document: Mapping[str, Any], path: str | Path) -> Header:
    """Rebuild the header from `read_document`'s result.

    Raises:
        CheckpointError: A part is missing or cannot be used.
    """
    try:
        return Header(
            config=from_dict(ModelConfig, document["config"], "model"),
            vocabulary=Vocabulary.from_list(document["vocabulary"]),
            preprocess=Preprocess.from_dict(document["preprocess"]),
            record=document["record"],
        )
    except (KeyError, TypeError, ValueError, ConfigError, DataError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from None


def header_metadata(header: Header, **sections: Any) -> dict[str, str]:
    """Write a header as the metadata of a safetensors file, with further sections by name."""
    document = {
        "format": FORMAT_VERSION,
        "config": to_dict(header.config),
        "vocabulary": header.vocabulary.to_list(),
        "preprocess": header.preprocess.to_dict(),
        "record": dict(header.record),
        **sections,
    }
    return {_HEADER: json.dumps(document, ensure_ascii=False)}


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a model file in fp32.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(path))
    except FileNotFoundError:
        raise CheckpointError(_missing(path)) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_explain(path, error)) from None
    return {  # copies, as the file's own tensors can be pages of it, which may change
        name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in tensors.items()
    }


def load_checkpoint(path: str | Path) -> tuple[CaptionModel, Header]:
    """Rebuild the network of a model file, in `eval()` and fp32 on the CPU.

    Raises:
        CheckpointError: The file cannot be used; the message says why.
    """
    from captioner.models.caption_model import CaptionModel

    document = read_document(path)
    if "export" in document:
        raise CheckpointError(
            f"{path} is an export for the onnx backend: PyTorch needs the model that it was made of"
        )
    header = header_from_document(document, path)
    weights = load_weights(path)
    embedding = weights.get("decoder.embed.weight")
    if header.config.decoder.tied and embedding is not None:
        weights.setdefault("decoder.project.weight", embedding)
    try:
        model = CaptionModel.from_weights(header.config, len(header.vocabulary), weights)
    except ConfigError as error:  # for example a CNN that the installed timm does not have
        raise CheckpointError(f"{path}: its network cannot be built: {error}") from None
    except RuntimeError as error:
        # PyTorch lists what does not fit from the second line on; out of memory is a single one.
        reason = str(error).splitlines()[:2][-1].strip()
        raise CheckpointError(
            f"{path}: the weights do not fit the configuration: {reason}"
        ) from None
    return model.eval(), header


def describe(path: str | Path) -> dict[str, Any]:
    """Return all of a model file or an export but its weights, as JSON can hold it.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is missing, damaged or no model file of captioner.
    """
    from safetensors import safe_open

    document = read_document(path)
    header = header_from_document(document, path)
    export = document.get("export")
    if export is None:
        with safe_open(str(path), framework="numpy") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
            parameters = sum(math.prod(piece.get_shape()) for piece in slices)
            types = sorted({piece.get_dtype() for piece in slices})
    else:  # its tensors are graphs
        try:
            parameters, types = int(export["parameters"]), [str(export["precision"])]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is a damaged export: {error!r}") from None
    encoder = header.config.encoder
    side = encoder.grid or math.ceil(encoder.image_size / encoder.strides[0])
    return {
        "file": str(path),
        "format": FORMAT_VERSION,
        "bytes": os.path.getsize(path),
        "parameters": parameters,
        "types": types,
        "grid": [side, side],
        "config": to_dict(header.config),
        "preprocess": header.preprocess.to_dict(),
        "record": dict(header.record),
        "vocabulary": header.vocabulary.to_list(),
        **({} if export is None else {"export": export}),
    }


def render(info: dict[str, Any]) -> str:
    """Return the result of `describe` as a short text."""
    config, record, preprocess = info["config"], info["record"], info["preprocess"]
    encoder, attention, decoder = config["encoder"], config["attention"], config["decoder"]
    height, width = info["grid"]
    joined = "strides " + "+".join(map(str, encoder["strides"]))
    heads = f", {attention['heads']} heads" if attention["kind"] == "multi_head" else ""
    refine = f", {encoder['refine_layers']} refining layers" if encoder["refine_layers"] else ""
    rows = [
        ("file", info["file"]),
        *([("export", f"ONNX opset {info['export'].get('opset')}")] if "export" in info else []),
        ("size", f"{info['bytes'] / 1e6:,.1f} MB, format {info['format']}"),
        ("weights", f"{info['parameters']:,} ({', '.join(info['types'])})"),
        ("encoder", f"{encoder['name']}, {joined}, width {encoder['width']}{refine}"),
        ("grid", f"{height} × {width}"),
        (
            "attention",
            f"{attention['kind']} {attention['size']}{heads}, {attention['normalizer']}"
            + (", smoothed" if attention["smooth"] else "")
            + (", sees the word before" if attention["see_word"] else ""),
        ),
        (
            "decoder",
            f"LSTM {decoder['hidden']}, embedding {decoder['embedding']}, gate {decoder['gate']}"
            + (", deep output" if decoder["deep_output"] else "")
            + (", tied embeddings" if decoder["tied"] else ""),
        ),
        ("vocabulary", f"{len(info['vocabulary']):,} words"),
        (
            "pictures",
            f"{preprocess['size']} × {preprocess['size']}, {preprocess['interpolation']}, "
            f"mean {_numbers(preprocess['mean'])}, std {_numbers(preprocess['std'])}",
        ),
        *record_rows(record),
    ]
    indent = max(len(key) for key, _ in rows) + 2
    return "\n".join(
        textwrap.fill(
            f"{key:<{indent}}{value}",
            width=100,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for key, value in rows
    )


def record_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the training record of a model file, each entry as a name and a line of text."""
    return [(key, _value(value)) for key, value in record.items() if value is not None]


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _value(value: Any) -> str:
    """Return a value of the training record as text, nested sections in brackets."""
    if isinstance(value, dict):
        inner = (
            f"{k} ({_value(v)})" if isinstance(v, dict) else f"{k} {_value(v)}"
            for k, v in value.items()
            if v is not None and v != []
        )
        return ", ".join(inner)
    if isinstance(value, list):
        return "[" + "; ".join(map(_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _missing(path: str | Path) -> str:
    if address := re.match(r"(https?:)/+(.+)", str(path)):  # `Path` has taken a slash away
        return (
            f"{address[1]}//{address[2]} is a web address: download the model, then name the file"
        )
    return f"no model file {path}"


def _is_pickle(path: str | Path) -> bool:
    """Return whether a zip archive is what `torch.save` makes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return str(path).endswith((".pt", ".pth", ".ckpt", ".bin"))


def _explain(path: str | Path, error: Exception) -> str:
    """Say what a file is that safetensors cannot read."""
    if isinstance(error, IsADirectoryError) or Path(path).is_dir():
        return f"{path} is a folder; name the .safetensors file in it"
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as problem:
        return f"cannot read {path}: {problem.strerror}"
    if start.startswith(b"PK") and not _is_pickle(path):
        return f"{path} is a zip archive: unpack it and name the .safetensors file in it"
    if start.startswith(_PICKLES):
        return f"{path} is a pickled file, which could run code: captioner loads .safetensors only"
    if foreign := describe_foreign_file(start):
        return f"{path} is no model but {foreign.removesuffix(', not a list of images')}"
    return f"{path} is damaged, cut short or no safetensors file ({error})"
