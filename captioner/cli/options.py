"""The arguments of the longer commands, and the groups that several commands share.

They are declared apart from the commands, so that `--help` need not import what a command runs.
"""

from __future__ import annotations

import argparse
from typing import Any

from captioner.batch import FORMATS
from captioner.decoding.options import OPTION_NAMES, WORD_OPTIONS, DecodingOptions
from captioner.errors import ConfigError

HUB_HELP = ". A model is a file, or hf-hub:owner/name[@revision] on the Hugging Face Hub"


def add_caption_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `captioner caption`."""
    parser.usage = "captioner caption [OPTION ...] PATH ..."
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="photo, folder, glob, list of photos (.txt .csv .jsonl .json .parquet), .tar archive, "
        "or - for names on standard input",
    )
    add = parser.add_argument_group("input").add_argument
    add("-r", "--recursive", action="store_true", help="search subfolders too")
    add("-0", "--null", action="store_true", help="names on standard input end in NUL")
    add("--image-root", metavar="DIR", help="folder that relative names in lists start from")
    add("--column", metavar="NAME", help="column of .parquet files with the paths or image bytes")
    add("--workers", type=_positive, metavar="N", help="threads that read photos")
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("-o", "--output", metavar="FILE", help="where captions go (default: standard output)")
    add("--format", choices=FORMATS, help="default: by the ending of the output, or text")
    again = group.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue an interrupted run")
    again.add_argument("--overwrite", action="store_true", help="replace an existing output")
    add("--attention", metavar="DIR", help="also draw what each word looked at: a PNG per photo")
    add("--font", metavar="FILE", help="draw the words of --attention with this .ttf, .otf or .ttc")
    add("--attention-json", action="store_true", help="add the attention maps to JSON and Parquet")
    add(
        "--write-metadata",
        metavar="DIR",
        help="also copy the photos to DIR, with the caption in their metadata (XMP, IPTC)",
    )
    add(
        "--errors", metavar="FILE", help="also write the failures here, as a list of photos (JSONL)"
    )
    add("--fail-fast", action="store_true", help="stop at the first photo that fails")
    add = parser.add_argument_group("several processes").add_argument
    add(
        "--shard",
        metavar="I/N",
        help="caption only share I of N (I from 0); 'captioner merge OUTPUT' joins the shares. "
        "Under torchrun this is automatic",
    )
    add(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: use Ray, on this machine or a cluster; -o is then a folder of part files",
    )
    add("--ray-address", metavar="ADDR", help="address of the cluster (default: this machine)")
    add("--ray-workers", type=_positive, metavar="N", help="default: one per GPU, or per 4 cores")
    _add_model_arguments(parser)
    _add_search_arguments(parser, num_captions=True)


def add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `captioner merge`."""
    add = parser.add_argument
    add("output", metavar="OUTPUT", help="the file that -o of the shards named")
    add(
        "--errors", metavar="FILE", help="also write the failures here, as a list of photos (JSONL)"
    )
    add("-q", "--quiet", action="store_true", help="no summary")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `captioner evaluate`."""
    parser.usage = "captioner evaluate --captions FILE [OPTION ...]"
    _add_reference_arguments(parser, required=True)
    add = parser.add_argument
    add("--images", metavar="DIR", help="folder of the photos (default: beside the captions)")
    add("--results", metavar="FILE", help="score these captions: COCO results, JSONL or CSV")
    add(
        "--instances",
        nargs="+",
        default=[],
        metavar="FILE",
        help="COCO objects: also score attention, and count objects named that are not there",
    )
    add("--training", metavar="FILE", help="captions of the training set: count copies of them")
    add("--official", action="store_true", help="also METEOR and SPICE by the official Java tools")
    add(
        "--faithfulness",
        nargs="?",
        type=_positive,
        const=300,
        default=0,
        metavar="N",
        help="delete the attended places of N photos (%(const)s): how much less likely is the "
        "word?",
    )
    add("--json", metavar="FILE", help="write all figures and the scores of each photo here")
    add("--results-out", metavar="FILE", help="write the captions here, as COCO results")
    add("--report", metavar="DIR", help="write an illustrated report to DIR/index.html")
    _add_model_arguments(parser)
    _add_search_arguments(parser)


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `captioner compare`."""
    add = parser.add_argument
    add("a", metavar="A", help="output of evaluate --json; with --references a file of captions")
    add("b", metavar="B", help="the same for the other model")
    _add_reference_arguments(parser, required=False)
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the random resamples (%(default)s)",
    )
    add("--json", metavar="FILE", help="write all figures here")


def _add_reference_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--captions",
        "--references",
        required=required,
        metavar="FILE",
        help="human captions: COCO JSON, Karpathy JSON or JSONL",
    )
    parser.add_argument("--split", metavar="NAME", help="only this split of the file")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    text = "default: the shipped model; given several times, the models caption together"
    add("-m", "--model", action="append", metavar="MODEL", help=text + HUB_HELP)
    add(
        "--batch-size",
        type=_positive,
        metavar="N",
        help="photos at a time (default: 32; on a GPU 128, unless shards share the photos)",
    )
    add(
        "--backend",
        default="auto",
        choices=("auto", "torch", "onnx"),
        help="what computes the model; auto: onnx on a CPU if the model has an export, else torch",
    )
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
    text = "numbers of the CNN; bf16 is faster on hardware that has it (auto: there, and on GPUs)"
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"), help=text)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no summary")


def _add_search_arguments(parser: argparse.ArgumentParser, num_captions: bool = False) -> None:
    """Declare the decoding options, which say how the captions of a photo are found."""
    add = parser.add_argument_group("decoding").add_argument
    default = DecodingOptions()  # the command line passes on only what was given
    if num_captions:
        add(
            "--num-captions",
            type=_positive,
            metavar="N",
            help=f"captions per photo ({default.num_captions})",
        )
    add(
        "--beam",
        type=_positive,
        metavar="K",
        help=f"beam width ({default.beams}); 1 is greedy search",
    )
    add("--min-length", type=_positive, metavar="N", help=f"fewest words ({default.min_length})")
    add("--max-length", type=_positive, metavar="N", help=f"most words ({default.max_length})")
    add(
        "--length-penalty",
        type=_penalty,
        metavar="A",
        help=f"above 0 favours longer captions ({default.length_penalty:g}); 'average' ranks by "
        "the mean over the words",
    )
    add("--no-repeat-ngram", type=_positive, metavar="N", help="no N words in a row occur twice")
    add("--ban", action="append", metavar="WORD", help="never use this word; repeatable")
    add("--require", action="append", metavar="WORD", help="always use this word; repeatable")
    add("--prefix", metavar="TEXT", help="begin every caption with these words")
    add(
        "--repeat-words",
        action="store_true",
        default=None,
        help="let a caption use a word twice that is no function word such as 'a' or 'of'",
    )
    add(
        "--diverse",
        dest="groups",
        type=_positive,
        metavar="G",
        help="search in G groups of beams that avoid each other's words",
    )
    add("--sample", action="store_true", default=None, help="draw words by their probability")
    text = f"below 1 draws likely words more often ({default.temperature:g})"
    add("--temperature", type=float, metavar="T", help=text)
    add("--top-k", type=_positive, metavar="K", help="draw among the K likeliest words")
    add("--top-p", type=float, metavar="P", help="draw among the likeliest words of probability P")
    text = f"seed of --sample ({default.seed}); the draws for a photo do not depend on other photos"
    add("--seed", type=int, metavar="N", help=text)
    add(
        "--mbr",
        type=_positive,
        metavar="N",
        help="of N captions, take the one that agrees most with the others (by CIDEr-D)",
    )


def given_search_options(arguments: argparse.Namespace) -> list[str]:
    """Return the flags of the decoding options that were given: `--beam`, `--diverse`, ..."""
    flags = {"groups": "diverse"}
    return [
        "--" + flags.get(name, name).replace("_", "-")
        for name in (*OPTION_NAMES, *WORD_OPTIONS)
        if getattr(arguments, name, None) is not None
    ]


def search_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the decoding options that were given, checked together.

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
    if not checked.sample:  # recorded with the results, for `--resume`
        options.setdefault("beam", checked.beams)
    return options


def run_settings(arguments: argparse.Namespace, search: dict[str, Any]) -> dict[str, Any]:
    """Return, as JSON values, the settings that shards and resumed parts must agree on."""
    names = ("attention_json", "model", "precision", "image_root", "column")
    settings = {"search": search, **{name: getattr(arguments, name) for name in names}}
    if arguments.backend != "auto":  # results of versions without this option go on
        settings["backend"] = arguments.backend
    return settings


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load_captioner`: the models that caption together, and where."""
    options = {name: getattr(arguments, name) for name in ("backend", "device", "precision")}
    return {"paths": arguments.model, **options}


def _penalty(text: str) -> float | str:
    """Parse a number or `average`."""
    return text if text == "average" else float(text)


def _positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


_penalty.__name__ = "number"
_positive.__name__ = "whole number"  # argparse: "invalid whole number value: 'x'"
