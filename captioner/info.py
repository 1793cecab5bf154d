"""What is in a model file or an export, for people and for programs."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioner.checkpoint import FORMAT_VERSION, header_from_document, read_document
from captioner.config import to_dict


def describe(path: str | Path) -> dict[str, Any]:
    """All of a model file or an export but its weights, as JSON can hold it.

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
        parameters, types = export["parameters"], [export["precision"]]
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
    """The result of `describe` as a short text."""
    config, record, preprocess = info["config"], info["record"], info["preprocess"]
    encoder, attention, decoder = config["encoder"], config["attention"], config["decoder"]
    height, width = info["grid"]
    joined = "strides " + "+".join(map(str, encoder["strides"]))
    heads = f", {attention['heads']} heads" if attention["kind"] == "multi_head" else ""
    refine = f", {encoder['refine_layers']} refining layers" if encoder["refine_layers"] else ""
    rows = [
        ("file", info["file"]),
        *([("export", f"ONNX opset {info['export']['opset']}")] if "export" in info else []),
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
    """The training record of a model file, each entry as a name and a line of text."""
    return [(key, _value(value)) for key, value in record.items() if value is not None]


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _value(value: Any) -> str:
    """A value of the training record: nested sections in brackets."""
    if isinstance(value, dict):
        inner = (
            f"{k} ({_value(v)})" if isinstance(v, dict) else f"{k} {_value(v)}"
            for k, v in value.items()
            if v is not None
        )
        return ", ".join(inner)
    if isinstance(value, list):
        return "[" + "; ".join(map(_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
