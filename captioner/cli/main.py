"""The command ``captioner``: sub-commands with one thin function each.

Standard output carries data only; the progress bar, warnings, errors and summaries go to standard
error. Exit status: 0 all good, 1 some photos failed, 2 wrong usage or unusable input, 130 Ctrl-C,
141 when the reader of a pipe went away. What a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from captioner import __version__
from captioner.cli.demo import add_demo_arguments, demo
from captioner.cli.export import add_export_arguments, export
from captioner.cli.options import (
    add_caption_arguments,
    add_compare_arguments,
    add_evaluate_arguments,
    add_merge_arguments,
)
from captioner.cli.prepare import add_prepare_arguments
from captioner.errors import CaptionerError, ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        The exit status.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _replace_closed_streams()
    parser, commands = _build_parser()
    arguments = argparse.Namespace()
    try:
        if not argv or argv[0] not in commands:
            parser.parse_args(argv)  # --help, --version, or an error
            parser.error("which command? " + ", ".join(commands))
        arguments = _parse(commands[argv[0]], argv[1:])
        _configure_logging(logging.DEBUG if arguments.verbose else arguments.level)
        status: int = arguments.run(arguments)
        return status
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        from captioner.cli.caption import how_to_go_on

        _complain("interrupted" + how_to_go_on(arguments))
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # else Python complains at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (CaptionerError, OSError) as error:
        _complain(f"error: {' '.join(str(error).splitlines())}")
        return 2


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; options may stand between paths, but not beside a ``--``.

    argparse mixes the two in two passes, of which the second takes what follows ``--`` for options.
    """
    parse = parser.parse_args if "--" in argv else parser.parse_intermixed_args
    return parse(argv)


def _caption(arguments: argparse.Namespace) -> int:
    """Caption photos."""
    from captioner.cli.caption import caption_command

    return caption_command(arguments)


def _merge(arguments: argparse.Namespace) -> int:
    """Put the shards of a run together."""
    from captioner.cli.caption import merge_command

    return merge_command(arguments)


def _prepare(arguments: argparse.Namespace) -> int:
    """Make captioned photos ready for training."""
    from captioner.cli.prepare import prepare

    return prepare(arguments)


def _train(arguments: argparse.Namespace) -> int:
    """Train a model."""
    from captioner.config import load_config

    config = load_config(arguments.config, arguments.overrides)  # its errors come at once

    from captioner.cli.train import train

    return train(config, resume=arguments.resume)


def _plot(arguments: argparse.Namespace) -> int:
    """Draw the curves of training runs."""
    from captioner.training.plot import plot_runs

    plot_runs(arguments.runs, arguments.output)
    print(arguments.output)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    """Score a model, or captions that exist already."""
    from captioner.cli.evaluate import evaluate_captions, evaluate_model

    return evaluate_model(arguments) if arguments.results is None else evaluate_captions(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    """Compare two sets of captions."""
    from captioner.cli.evaluate import compare

    return compare(arguments)


def _info(arguments: argparse.Namespace) -> int:
    """Describe a model file."""
    from captioner.info import describe, render

    path = arguments.model
    if path is None:
        from captioner.api import DEFAULT_WEIGHTS
        from captioner.backends.load import is_installed
        from captioner.backends.onnx import export_path

        if not is_installed(DEFAULT_WEIGHTS):
            raise ConfigError("this installation ships no default model: name a model file")
        path = DEFAULT_WEIGHTS if DEFAULT_WEIGHTS.exists() else export_path(DEFAULT_WEIGHTS)
    info = describe(path)
    print(json.dumps(info, ensure_ascii=False) if arguments.json else render(info))
    return 0


# ---------------------------------------------------------------------------------------- helpers


def _complain(message: str) -> None:
    print(f"captioner: {message}", file=sys.stderr)


def _replace_closed_streams() -> None:
    """Open the standard streams that the caller closed, or the next files would take their place.

    Reading or writing data there fails then, as it should; messages go nowhere.
    """
    for name, flags, mode in (
        ("stdin", os.O_WRONLY, "rb"),
        ("stdout", os.O_RDONLY, "wb"),
        ("stderr", os.O_WRONLY, "wb"),
    ):
        if getattr(sys, name) is None:
            raw: Any = open(os.open(os.devnull, flags), mode, buffering=0)  # noqa: SIM115
            setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", write_through=True))


class _StderrHandler(logging.Handler):
    """Log records on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(f"captioner: {self.format(record)}", file=sys.stderr)


def _configure_logging(level: int) -> None:
    logger = logging.getLogger("captioner")
    logger.setLevel(level)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())


# --------------------------------------------------------------------------------------- arguments


def _build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the program, and those of the commands by name."""
    parser = argparse.ArgumentParser(
        prog="captioner",
        description="Describe photos in a sentence, and see what each word looked at.",
        epilog="captioner COMMAND --help tells more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"captioner {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, run: Callable[..., int], help: str, level: int = logging.WARNING) -> Any:
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        command.add_argument("-v", "--verbose", action="store_true", help="log what happens")
        command.set_defaults(run=run, level=level)
        return command

    add_caption_arguments(add("caption", _caption, "caption photos"))
    add_merge_arguments(add("merge", _merge, "put together what caption --shard has made"))
    prepare = "get a data set, or check and split your own captions"
    add_prepare_arguments(add("prepare", _prepare, prepare, logging.INFO))
    train = add("train", _train, "train a model by a recipe", logging.INFO)
    train.add_argument("config", metavar="CONFIG", help="recipe, a YAML file")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="optim.epochs=3, ...")
    train.add_argument("--resume", action="store_true", help="go on with the run in its folder")
    plot = add("plot", _plot, "draw the curves of training runs side by side")
    plot.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or its log.jsonl")
    plot.add_argument(
        "-o", "--output", default="curves.png", metavar="FILE", help="PNG or SVG file (curves.png)"
    )
    add_evaluate_arguments(
        add("evaluate", _evaluate, "score a model, or a file of captions, on captioned photos")
    )
    add_compare_arguments(add("compare", _compare, "tell whether one set of captions is better"))
    add_demo_arguments(add("demo", demo, "open a page that shows what each word looked at"))
    add_export_arguments(
        add("export", export, "make a model ready to caption without PyTorch", logging.INFO)
    )
    info = add("info", _info, "describe a model file or an export")
    info.add_argument("model", nargs="?", metavar="FILE", help="default: the shipped model")
    info.add_argument("--json", action="store_true", help="everything, as JSON")
    return parser, dict(commands.choices)
