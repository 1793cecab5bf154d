"""Write docs/cli.md from the parsers of the command line: `python scripts/cli_docs.py`.

The tables are made from the parsers' arguments and not from what `--help` prints, whose layout
depends on the version of Python and on the width of the terminal.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from captioner.cli.main import build_parser

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """# Command line

<!-- Made by scripts/cli_docs.py from the parsers: change the help texts there. -->

`captioner COMMAND --help` prints the same. Data goes to standard output; the progress bar,
warnings, errors and summaries go to standard error. Exit status:
0 success, 1 some images failed, 2 wrong usage or unusable input, 130 Ctrl-C, 141 the reader of a
pipe is gone.
"""


def page() -> str:
    """Return the page in Markdown."""
    program, commands = build_parser()
    lines = [HEAD, *_table(program, (a for a in program._actions if a.option_strings))]
    for name, command in commands.items():
        summary, _, examples = (command.description or "").partition("\n")
        lines += [f"## {name}", "", summary, ""]
        lines += [f"    {line.strip()}" for line in examples.strip().splitlines()] + [""]
        arguments, options, *groups = command._action_groups
        lines += _table(command, [*arguments._group_actions, *options._group_actions])
        for group in groups:
            lines += [f"**{str(group.title).capitalize()}**", ""]
            lines += _table(command, group._group_actions)
    return "\n".join(lines).rstrip() + "\n"


def _table(parser: argparse.ArgumentParser, actions: Iterable[argparse.Action]) -> Iterator[str]:
    """Yield a table of arguments and their meaning; nothing if there are none but `--help`."""
    formatter = parser._get_formatter()
    rows = [
        f"| {_name(action)} | {_cell(formatter._expand_help(action) if action.help else '')} |"
        for action in actions
        if "--help" not in action.option_strings
    ]
    if rows:
        yield from ("| argument | meaning |", "|---|---|", *rows, "")


def _name(action: argparse.Action) -> str:
    """Return an argument's names and the placeholder of its value."""
    value = action.metavar if isinstance(action.metavar, str) else ""
    if not value and action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not value and action.nargs != 0:
        value = action.dest.upper()
    if action.nargs == "?":
        value = f"[{value}]"
    elif action.nargs in ("+", "*"):
        value += " ..."
    names = list(action.option_strings) or [value]
    if action.option_strings and value:
        names[-1] += f" {value}"
    return ", ".join(f"`{_cell(name)}`" for name in names)


def _cell(text: str) -> str:
    """Escape what would end a cell of the table or start a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
