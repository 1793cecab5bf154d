"""The arguments of the longer commands of the command line."""

from __future__ import annotations

import argparse
from typing import Any

from captioner.batch import FORMATS
from captioner.decoding.options import OPTION_NAMES, WORD_OPTIONS, DecodingOptions
from captioner.errors import ConfigError


def add_caption_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``captioner caption`` takes."""
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="photo, folder, glob, list of photos (.txt .csv .jsonl .json .parquet), .tar archive, "
        "or - for names on standard input",
    )
    add("-o", "--output", metavar="FILE", help="default: standard output")
    add("--format", choices=FORMATS, help="default: by the output's ending, or text")
    add("-r", "--recursive", action="store_true", help="search subfolders too")
    add("-0", "--null", action="store_true", help="names on standard input end in NUL")
    add("--image-root", metavar="DIR", help="folder that names in lists are relative to")
    add("--column", metavar="NAME", help="column of .parquet files with the paths or image bytes")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an output")
    again.add_argument("--overwrite", action="store_true", help="replace an output")
    add("--attention", metavar="DIR", help="also draw what each word looked at: a PNG per photo")
    add("--attention-json", action="store_true", help="put the attention maps into JSON or Parquet")
    add(
        "--write-metadata",
        metavar="DIR",
        help="also copy the photos into DIR with the caption in their metadata (XMP, IPTC)",
    )
    add("--errors", metavar="FILE", help="write failures here too: JSON Lines, itself a valid PATH")
    add("--fail-fast", action="store_true", help="stop at the first photo that fails")
    add("--workers", type=_positive, metavar="N", help="threads that read photos")
    add(
        "--shard",
        metavar="I/N",
        help="only the I-th of N shares (from 0) of the photos; 'captioner merge OUTPUT' puts them "
        "together. Under torchrun this goes by itself",
    )
    add(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: on a Ray cluster, or on this machine; -o is then a folder of part files",
    )
    add("--ray-address", metavar="ADDR", help="of the cluster (default: this machine alone)")
    add("--ray-workers", type=_positive, metavar="N", help="default: one per GPU, or per 4 cores")
    _add_model_arguments(parser, several=True)
    add("--num-captions", type=_positive, metavar="N", help="captions per photo (1)")
    _add_search_arguments(parser)


def add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``captioner merge`` takes."""
    add = parser.add_argument
    add("output", metavar="OUTPUT", help="what -o of the shards said; replaced if it is there")
    add("--errors", metavar="FILE", help="write failures here: JSON Lines, itself a valid PATH")
    add("-q", "--quiet", action="store_true", help="no summary")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``captioner evaluate`` takes."""
    add = parser.add_argument
    _add_reference_arguments(parser, required=True)
    add("--results", metavar="FILE", help="score these captions: COCO results, JSONL or CSV")
    add("--images", metavar="DIR", help="folder of the photos (default: beside the captions)")
    add(
        "--instances",
        nargs="+",
        default=[],
        metavar="FILE",
        help="COCO objects: measure attention, and objects named that are not there",
    )
    add("--training", metavar="FILE", help="captions of the training set: find copies")
    add("--official", action="store_true", help="also METEOR and SPICE by the official Java tools")
    add(
        "--faithfulness",
        nargs="?",
        type=_positive,
        const=300,
        default=0,
        metavar="N",
        help="on N photos (300), delete what was attended: does the word's probability drop?",
    )
    add("--json", metavar="FILE", help="write all figures and the scores of each photo here")
    add("--results-out", metavar="FILE", help="write the captions here, as COCO results JSON")
    add("--report", metavar="DIR", help="write a page to look at here: DIR/index.html")
    _add_model_arguments(parser, several=True)
    _add_search_arguments(parser)


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``captioner compare`` takes."""
    add = parser.add_argument
    add("a", metavar="A", help="what evaluate --json wrote; with --references a file of captions")
    add("b", metavar="B", help="the same for the other model")
    _add_reference_arguments(parser, required=False)
    add("--seed", type=int, default=0, metavar="N", help="of the random resamples (0)")
    add("--json", metavar="FILE", help="write all figures here")


def _add_reference_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    add = parser.add_argument
    add(
        "--captions",
        "--references",
        required=required,
        metavar="FILE",
        help="what people wrote: COCO JSON, Karpathy JSON or JSONL",
    )
    add("--split", metavar="NAME", help="only this split of the file")


def _add_model_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    add = parser.add_argument
    if several:
        text = "default: the shipped model; given several times, the models caption together"
        add("-m", "--model", action="append", metavar="FILE", help=text)
    else:
        add("-m", "--model", metavar="FILE", help="default: the shipped model")
    add("--batch-size", type=_positive, default=32, metavar="N", help="photos at a time (32)")
    add(
        "--backend",
        default="auto",
        choices=("auto", "torch", "onnx"),
        help="what computes the model; auto: onnx on a CPU if the model has an export, else torch",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    add("-q", "--quiet", action="store_true", help="no progress bar, no summary")


def _add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """How a photo's sentence is found, whatever is then done with it."""
    add = parser.add_argument
    add("--beam", type=_positive, metavar="K", help="beam width (3); 1 is greedy")
    add("--min-length", type=_positive, metavar="N", help="fewest words (1)")
    add("--max-length", type=_positive, metavar="N", help="most words (24)")
    add(
        "--length-penalty",
        type=_penalty,
        metavar="A",
        help="above 0 favours longer captions (0); or 'average': by the mean over the words",
    )
    add("--no-repeat-ngram", type=_positive, metavar="N", help="no N words in a row occur twice")
    add("--ban", action="append", metavar="WORD", help="never say this word; repeatable")
    add("--require", action="append", metavar="WORD", help="always say this word; repeatable")
    add(
        "--diverse",
        dest="groups",
        type=_positive,
        metavar="G",
        help="search in G groups of beams that avoid each other's words",
    )
    add("--sample", action="store_true", default=None, help="draw words by their probability")
    add("--temperature", type=float, metavar="T", help="below 1 draws likely words more often (1)")
    add("--top-k", type=_positive, metavar="K", help="draw among the K likeliest words")
    add("--top-p", type=float, metavar="P", help="draw among the likeliest words of probability P")
    add("--seed", type=int, metavar="N", help="of the draws (0); a photo's are its own")
    add(
        "--mbr",
        type=_positive,
        metavar="N",
        help="of N sentences, take the one that agrees most with the others (by CIDEr-D)",
    )


def given_search_options(arguments: argparse.Namespace) -> list[str]:
    """The search options that were given, as they are written: ``--beam``, ``--diverse``, ..."""
    flags = {"groups": "diverse"}
    return [
        "--" + flags.get(name, name).replace("_", "-")
        for name in (*OPTION_NAMES, *WORD_OPTIONS)
        if getattr(arguments, name, None) is not None
    ]


def search_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The search options that were given, checked together.

    Raises:
        ConfigError: They contradict each other.
    """
    given = {name: getattr(arguments, name, None) for name in (*OPTION_NAMES, *WORD_OPTIONS)}
    options = {name: value for name, value in given.items() if value is not None}
    if options.get("sample") and "beam" in options:
        raise ConfigError("--beam and --sample are two ways to search: choose one")
    checked = DecodingOptions(
        **{name: value for name, value in options.items() if name not in WORD_OPTIONS}
    )
    if not checked.sample:  # written down with the results, for `--resume`
        options.setdefault("beam", checked.beams)
    return options


def run_settings(arguments: argparse.Namespace, search: dict[str, Any]) -> dict[str, Any]:
    """What results must have been made with to belong together, whatever photos, as JSON values."""
    names = ("attention_json", "model", "precision", "image_root", "column")
    return {"search": search, **{name: getattr(arguments, name) for name in names}}


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load_captioner`: the models that caption together, and where."""
    model = arguments.model
    paths = model if isinstance(model, list) or model is None else [model]
    options = {name: getattr(arguments, name) for name in ("backend", "device", "precision")}
    return {"paths": paths, **options}


def _penalty(text: str) -> float | str:
    """A number, or ``average``."""
    return text if text == "average" else float(text)


def _positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


_penalty.__name__ = "number"
_positive.__name__ = "whole number"  # argparse: "invalid whole number value: 'x'"
