"""The command `captioner`: dispatch to the sub-commands, exit status, logging.

Standard output carries data only; the progress bar, warnings, errors and summaries go to standard
error. Exit status: 0 success, 1 some images failed, 2 wrong usage or unusable input, 130 Ctrl-C,
141 the reader of a pipe is gone. What a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from captioner import __version__
from captioner.cli.demo import add_demo_arguments, demo
from captioner.cli.export import add_export_arguments, export
from captioner.cli.options import (
    HUB_HELP,
    add_caption_arguments,
    add_compare_arguments,
    add_evaluate_arguments,
    add_merge_arguments,
)
from captioner.cli.prepare import add_prepare_arguments
from captioner.errors import CaptionerError, ConfigError

_FOLDERS = ("DIR", "FOLDER")
_PATHS = (*_FOLDERS, "PATH", "FILE", "FILE|DIR", "MODEL", "OUTPUT", "CONFIG", "RUN")
"""What the help calls arguments that name files or folders."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        The exit status.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _replace_closed_streams()
    parser, commands = build_parser()
    arguments = argparse.Namespace()
    try:
        if not argv:
            parser.print_help(sys.stderr)
            return 2
        if argv[0] not in commands:
            if not argv[0].startswith("-"):
                parser.error(f"there is no command {argv[0]!r}{_nearest(argv[0], commands)}")
            parser.parse_args(argv)  # --help, --version, or an error
            parser.error("which command? " + ", ".join(commands))
        arguments = _parse(commands[argv[0]], argv[1:])
        with _logging(logging.DEBUG if arguments.verbose else arguments.level):
            _fetch_models(arguments)
            status: int = arguments.run(arguments)
            return status
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        from captioner.cli.caption import how_to_go_on

        _complain("interrupted" + how_to_go_on(arguments))
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # otherwise Python complains at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (CaptionerError, OSError) as error:
        _complain(f"error: {' '.join(str(error).splitlines())}")
        return 2


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command, whose options may stand between paths.

    Not so if there is a `--`: argparse would take what follows it for options.
    """
    parse = parser.parse_args if "--" in argv else parser.parse_intermixed_args
    arguments = parse(argv)
    for action in parser._actions:
        if action.metavar in _PATHS:
            value = getattr(arguments, action.dest, None)
            names = _expand_home(value)
            if isinstance(value, list):
                names = [_expand_home(name) for name in value]
            setattr(arguments, action.dest, names)
    return arguments


def _expand_home(path: Any) -> Any:
    """Replace the `~` of `--output=~/captions.csv`, which shells leave alone."""
    if isinstance(path, str) and path.startswith("~") and not os.path.lexists(path):
        return os.path.expanduser(path)
    return path


def _fetch_models(arguments: argparse.Namespace) -> None:
    """Replace models of the hub, named `hf-hub:...`, by the files that are downloaded."""
    models = getattr(arguments, "model", None)
    names = [models] if isinstance(models, str) else models or []
    if not any(name.startswith("hf-hub:") for name in names):
        return
    from captioner.hub import local_model

    paths = [str(local_model(name)) for name in names]
    arguments.model = paths[0] if isinstance(models, str) else paths


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
    from captioner.checkpoint import describe, render

    path = arguments.model
    if path is None:
        from captioner.api import DEFAULT_WEIGHTS
        from captioner.backends.load import installed

        path = installed(DEFAULT_WEIGHTS)
        if path is None:
            raise ConfigError("this installation ships no default model: name a model file")
    info = describe(path)
    print(json.dumps(info, ensure_ascii=False) if arguments.json else render(info))
    return 0


# ---------------------------------------------------------------------------------------- helpers


def _complain(message: str) -> None:
    print(f"captioner: {message}", file=sys.stderr)


def _replace_closed_streams() -> None:
    """Open the standard streams that the caller closed; the next file would take their number.

    Reading or writing data there then fails, as it should; messages are lost.
    """
    for name, flags, mode in (
        ("stdin", os.O_WRONLY, "rb"),
        ("stdout", os.O_RDONLY, "wb"),
        ("stderr", os.O_WRONLY, "wb"),
    ):
        if getattr(sys, name) is None:
            raw: Any = open(os.open(os.devnull, flags), mode, buffering=0)  # noqa: SIM115
            setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", write_through=True))


@contextlib.contextmanager
def _logging(level: int) -> Iterator[None]:
    """Log to standard error, above a progress bar if there is one, while the block runs."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    logger = logging.getLogger("captioner")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("captioner: %(message)s"))
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        logger.removeHandler(handler)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, which names the nearest flag to one that is unknown."""

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            flag = unknown.split()[0].split("=")[0]
            message = f"unknown option {flag}{_nearest(flag, self._option_string_actions)}"
            if not flag.startswith("-"):
                message = f"unexpected argument {unknown!r}"
        self.exit(2, f"captioner: error: {message} ({self.prog} --help)\n")


class _PrintCompletion(argparse.Action):
    """Print a shell's completion script and stop."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: Any, *rest: Any) -> None:
        try:
            import shtab
        except ModuleNotFoundError:
            message = "--print-completion needs shtab: pip install 'captioner[completion]'"
            raise ConfigError(message) from None
        program, commands = build_parser()
        folders = dict.fromkeys(_FOLDERS, shtab.DIRECTORY)
        paths = {**dict.fromkeys(_PATHS, shtab.FILE), **folders}
        for command in commands.values():
            for action in command._actions:
                if isinstance(action.metavar, str) and action.metavar in paths:
                    action.complete = paths[action.metavar]  # type: ignore[attr-defined]
        print(shtab.complete(program, shell))
        parser.exit()


def _nearest(word: str, known: Iterable[str]) -> str:
    """Return a question that names the known word most like another; empty if none is like it."""
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


# --------------------------------------------------------------------------------------- arguments

_EXAMPLES = {
    "caption": ("photo.jpg", "photos/ -o captions.jsonl --resume"),
    "merge": ("captions.jsonl", "captions.jsonl --errors failed.jsonl"),
    "prepare": ("flickr8k --root data/flickr8k", "csv my.csv -o captions.jsonl"),
    "train": (
        "configs/flickr8k.yaml data.root=DIR",
        "configs/flickr8k.yaml data.root=DIR --resume",
    ),
    "plot": ("runs/flickr8k", "runs/first runs/second -o curves.png"),
    "evaluate": (
        "--captions captions.jsonl --split test",
        "--captions captions.jsonl --results results.json",
    ),
    "compare": (
        "first.json second.json",
        "first.jsonl second.jsonl --references captions.jsonl",
    ),
    "demo": ("--open", "--model runs/flickr8k/best.safetensors --port 8000"),
    "export": ("model.safetensors", "model.safetensors --precision int8 --calibrate photos/"),
    "info": ("", "model.safetensors --json"),
}


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the program, and those of the commands by name."""
    parser = _Parser(
        prog="captioner",
        description="Describe photos in a sentence, and see what each word looked at.",
        epilog="See captioner COMMAND --help for the options of a command.",
    )
    text = "print the version"
    parser.add_argument(
        "--version", action="version", version=f"captioner {__version__}", help=text
    )
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        metavar="SHELL",
        help="print what makes bash, zsh or tcsh complete the options (extra completion)",
    )
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, run: Callable[..., int], help: str, level: int = logging.WARNING) -> Any:
        examples = "".join(f"\n  captioner {name} {text}".rstrip(" ") for text in _EXAMPLES[name])
        command = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("-v", "--verbose", action="store_true", help="log details")
        command.set_defaults(run=run, level=level)
        return command

    add_caption_arguments(add("caption", _caption, "caption photos"))
    add_merge_arguments(add("merge", _merge, "join the shares that caption --shard has written"))
    prepare = "get a data set, or check and split your own captions"
    add_prepare_arguments(add("prepare", _prepare, prepare, logging.INFO))
    train = add("train", _train, "train a model", logging.INFO)
    train.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/flickr8k.yaml")
    train.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="replaces a value of the file: optim.epochs=3",
    )
    train.add_argument("--resume", action="store_true", help="continue the run in its folder")
    plot = add("plot", _plot, "draw the curves of training runs side by side")
    plot.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its log.jsonl")
    plot.add_argument(
        "-o", "--output", default="curves.png", metavar="FILE", help="PNG or SVG file (%(default)s)"
    )
    add_evaluate_arguments(
        add("evaluate", _evaluate, "score a model, or a file of captions, on captioned photos")
    )
    add_compare_arguments(
        add("compare", _compare, "test whether one set of captions is better than another")
    )
    add_demo_arguments(add("demo", demo, "open a page that shows what each word looked at"))
    add_export_arguments(
        add("export", export, "make a model ready to caption without PyTorch", logging.INFO)
    )
    info = add("info", _info, "describe a model file or an export")
    info.add_argument(
        "model", nargs="?", metavar="MODEL", help="default: the shipped model" + HUB_HELP
    )
    info.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser, dict(commands.choices)
