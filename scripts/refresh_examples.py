"""Run the commands that a page of the docs shows, and put their output below them.

    python scripts/refresh_examples.py docs/decoding.md

A command is an indented line that begins with `$ captioner caption`; its output is what follows up
to the next blank line. Commands run in the repository's folder with --precision fp32, by the
shipped model.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from captioner.utils.files import replacing

ROOT = Path(__file__).parents[1]
PROMPT = "    $ captioner caption"


def output_of(command: str) -> list[str]:
    """What a command prints, indented; the summary is left out, an error is not."""
    words = shlex.split(command)[1:]  # without the program's name
    done = subprocess.run(
        [sys.executable, "-m", "captioner", *words, "--precision", "fp32", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return [f"    {line}" for line in (done.stdout + done.stderr).splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page
    lines: list[str] = []
    stale = False  # inside of an old output
    for line in page.read_text(encoding="utf-8").splitlines():
        stale = stale and bool(line.strip())
        if stale:
            continue
        lines.append(line)
        if line.startswith(PROMPT):
            lines += output_of(line.strip().removeprefix("$ "))
            stale = True
    with replacing(page) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
