"""The tables of docs/ablations.md, from the logs and measurements of runs; see ablations.py."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_figures import table

from captioner.training.log import read_log
from captioner.utils.files import replacing

BEGIN, END = "<!-- tables: begin", "<!-- tables: end -->"
HEADS = ["", "CIDEr-D", "difference", "BLEU-4", "correctness × uniform"]
HEADS += ["pointing above centre", "entropy"]
SKELETON = f"""# Ablations

What each part of the model and of its training is worth. Every line is the recipe
`configs/flickr8k.yaml` with one change, trained once per seed by `scripts/ablations.py`. CIDEr-D
and BLEU-4 are those of the best epoch on the validation photos (beam 3); attention is measured
against the outlines of COCO's objects (see [attention.md](attention.md)).

## What we conclude

Nothing yet: the runs are to come.

## The figures

{BEGIN} (made by scripts/ablations.py; do not edit by hand) -->
{END}
"""


@dataclass(frozen=True)
class Result:
    """What a run reached.

    Attributes:
        cider: Of its best epoch, on the validation photos.
        bleu4: Of the same epoch, 0 to 100.
        attention: ``ratio``, ``pointing_gain`` and ``entropy`` against object masks, if measured.
        beams: Metrics by beam size, if measured.
    """

    cider: float
    bleu4: float
    attention: dict[str, float]
    beams: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Line:
    """A line of a table: an ablation's results by seed, and those it is compared with."""

    group: str
    label: str
    results: dict[int, Result]
    against: dict[int, Result]


def read_result(out: Path) -> Result:
    """A run's figures from its log and its measurements."""
    records = read_log(out)
    best = max((r["validation"] for r in records if "validation" in r), key=lambda v: v["cider"])
    return Result(
        best["cider"],
        100 * best["bleu4"],
        _read(out / "attention.json"),
        _read(out / "beams.json"),
    )


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return values


def write_tables(page: Path, intro: str, lines: Sequence[Line]) -> None:
    """Replace the tables in a page, made if it is absent; the rest of it stays."""
    parts = [intro]
    for group in dict.fromkeys(line.group for line in lines):
        rows = [row(line) for line in lines if line.group == group]
        parts.append(f"### {group}\n\n{table(HEADS, rows)}")
    beams = [result.beams for line in lines for result in line.results.values() if result.beams]
    if beams:
        parts.append(f"### Beam size (base)\n\n{beam_table(beams)}")
    text = page.read_text(encoding="utf-8") if page.exists() else SKELETON
    pattern = re.compile(rf"({re.escape(BEGIN)}[^\n]*\n).*?({re.escape(END)})", re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"{page}: no line {BEGIN!r} with {END!r} after it")
    body = "\n\n".join(parts)
    text = pattern.sub(lambda match: f"{match[1]}\n{body}\n\n{match[2]}", text)
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def row(line: Line) -> list[str]:
    """The cells of a line."""
    every = list(line.results.values())
    gains = [r.cider - line.against[s].cider for s, r in line.results.items() if s in line.against]
    measured = [result.attention for result in every if result.attention]
    return [
        line.label,
        spread([result.cider for result in every], ".3f"),
        spread(gains, "+.3f"),
        spread([result.bleu4 for result in every], ".1f"),
        *(
            spread([figures[key] for figures in measured], form)
            for key, form in (("ratio", ".2f"), ("pointing_gain", "+.1f"), ("entropy", ".3f"))
        ),
    ]


def beam_table(beams: Sequence[dict[str, dict[str, float]]]) -> str:
    """Metrics by beam size; one of ``beams`` per seed."""
    rows = []
    for beam in beams[0]:
        metrics = [each[beam] for each in beams]
        cider = spread([m["cider"] for m in metrics], ".3f")
        others = [spread([100 * m[key] for m in metrics], ".1f") for key in ("bleu4", "rouge_l")]
        rows.append([beam, cider, *others])
    return table(["beam", "CIDEr-D", "BLEU-4", "ROUGE-L"], rows)


def spread(values: Sequence[float], form: str) -> str:
    """The mean, and the range if there are several; nothing of nothing."""
    values = [value for value in values if math.isfinite(value)]  # no word named an object: NaN
    if not values:
        return ""
    mean = f"{statistics.mean(values):{form}}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):{form}} .. {max(values):{form}})"
