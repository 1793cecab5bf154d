"""Write MODEL_CARD.md from the record of the shipped model: `python scripts/model_card.py`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from captioner.checkpoint import describe, read_header, record_rows
from captioner.demo.model_card import MEASURED, model_card
from captioner.hub import WEIGHTS

PAGE = Path(__file__).parents[1] / "MODEL_CARD.md"
HEAD = """# Model card: the model that ships with captioner

<!-- Made by scripts/model_card.py from the model file and captioner/demo/model_card.py. -->

It writes an English sentence about a photo and shows where it looked for each word. It is meant for
learning, research and drafts of descriptions that a person reads before they are used; not for
decisions about people, and not as the only description for those who cannot see the photo.
"""


def page() -> str:
    """Return the card in Markdown."""
    path = WEIGHTS / "default.safetensors"
    header, info = read_header(path), describe(path)
    lines = [HEAD]
    for section in model_card(header, info["parameters"], tuple(info["grid"]), shipped=True):
        lines += [f"## {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        lines += [*(f"- {point}" for point in section.points), ""] if section.points else []
        lines += _table(("", ""), section.rows) if section.rows else []
    lines += ["## What its attention maps are worth", "", "Measured on photos of COCO:", ""]
    lines += _table(("", "attention", "by chance"), MEASURED)
    lines += ["[docs/attention.md](docs/attention.md) tells how, and what the maps cannot say.", ""]
    lines += ["## The whole record of its training", ""]
    lines += _table(("", ""), record_rows(header.record))
    return "\n".join(lines).rstrip() + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [head, ("---",) * len(head), *rows]
    return [*("| " + " | ".join(row) + " |" for row in cells), ""]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
