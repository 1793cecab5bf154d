"""Measure the attention of one or more models, and put the tables into docs/attention.md.

    python scripts/attention_figures.py FOLDER                           # the shipped model
    python scripts/attention_figures.py FOLDER additive=a.safetensors dot=b.safetensors

FOLDER holds coco/ with captions_*.json, instances_*.json and images/; all photos that have masks
are measured. The first model gets the full tables, the others a row each beside it.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from captioner import Captioner
from captioner.data.annotations import Example, read_captions
from captioner.evaluation.evaluate import Evaluation, evaluate
from captioner.evaluation.faithfulness import METHODS
from captioner.evaluation.masks import CocoInstances
from captioner.utils.files import replacing

PAGE = Path(__file__).parents[1] / "docs" / "attention.md"
BEGIN, END = "<!-- figures: begin", "<!-- figures: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds coco/")
    parser.add_argument("models", nargs="*", metavar="NAME=FILE", help="default: the shipped model")
    parser.add_argument("--photos", type=int, metavar="N", help="only the first N (for trials)")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/attention.md")
    arguments = parser.parse_args()
    page = arguments.page.read_text(encoding="utf-8")
    pattern = re.compile(rf"({re.escape(BEGIN)}[^\n]*\n).*?({re.escape(END)})", re.DOTALL)
    if not pattern.search(page):
        sys.exit(f"{arguments.page}: no line {BEGIN!r} with {END!r} after it")
    models = dict(model.split("=", 1) for model in arguments.models) or {"the shipped model": None}

    instances, examples = outlined_photos(arguments.folder / "coco", arguments.photos)
    first = next(iter(models))
    found = {
        name: evaluate(
            Captioner.from_pretrained(path, backend="torch"),  # deletion needs it
            examples,
            instances=instances,
            saliency=name == first,  # slow, and only the first model's are shown
            deletions=len(examples) if name == first else 0,
            beam=3,
        )
        for name, path in models.items()
    }
    text = "\n\n".join(
        [against_masks(first, found[first]), deletion(found[first]), classes(found[first])]
    )
    if len(found) > 1:
        text += "\n\n" + side_by_side(found)
    page = pattern.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page)
    with replacing(arguments.page) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(text)


def outlined_photos(coco: Path, photos: int | None) -> tuple[list[Path], list[Example]]:
    """COCO's object files in a folder, and the (first) captioned photos that they outline."""
    instances = sorted(coco.glob("instances_*.json"))
    objects = CocoInstances(*instances)
    examples = [
        example
        for path in instances
        for example in read_captions(
            path.with_name(path.name.replace("instances", "captions")),
            coco / "images",
            missing="skip",
        )
        if example.image_id in objects
    ]
    return instances, examples[:photos]


def against_masks(name: str, evaluation: Evaluation) -> str:
    """Attention beside its baselines."""
    report, saliency = evaluation.attention, evaluation.saliency
    n = report.named
    centre = n.correctness_centre / n.correctness_uniform
    rows = [
        ("correctness", "correctness", ".3f", n.correctness_centre, n.correctness_uniform),
        ("… in multiples of uniform", "ratio", ".2f", centre, 1.0),
        ("pointing, hits", "pointing", ".3f", n.pointing_centre, n.pointing_uniform),
        ("… in points above centre", "pointing_gain", "+.1f", None, None),
        ("entropy, words that name an object", "entropy_named", ".3f", n.entropy_centre, 1.0),
        ("entropy, all words", "entropy", ".3f", n.entropy_centre, 1.0),
    ]
    cells = []
    for title, key, form, *baselines in rows:
        low, high = report.intervals[key]
        values = [saliency.figure(key), *baselines]
        cells.append(
            [title, f"{report.figure(key):{form}}", f"{low:{form}} .. {high:{form}}"]
            + ["" if value is None else f"{value:{form}}" for value in values]
        )
    intro = (
        f"**Against object masks**, {name}, beam 3: {n.words:,} of {report.words:,} generated "
        "words name an object that is there, in "
        f"{report.images_measured:,} of {report.images:,} photos."
    )
    heads = ["", "attention", "95 % interval", "saliency", "centre", "uniform"]
    return intro + "\n\n" + table(heads, cells)


def deletion(evaluation: Evaluation) -> str:
    """The deletion curves, and attention's lead."""
    report = evaluation.faithfulness
    curve = report.groups["all"]
    rows = []
    for method in METHODS:
        low, high = curve.area_intervals[method]
        drops = [f"{drop:.3f}" for drop in curve.drops[method]]
        rows.append([method, *drops, f"{curve.areas[method]:.3f}", f"{low:.3f} .. {high:.3f}"])
    for method in METHODS[1:]:
        low, high = curve.gain_intervals[method]
        lead = [f"{curve.gains[method]:+.3f}", f"{low:+.3f} .. {high:+.3f}"]
        rows.append([f"attention above {method}", *[""] * len(report.shares), *lead])
    intro = (
        f"**Deletion**: drop of log-probability of {curve.words:,} content words in "
        f"{report.images:,} photos, by the share of the cells deleted. Attention's cells matter "
        f"more than random ones for {100 * curve.above_random:.0f} % of the words."
    )
    shares = [f"{100 * share:g} %" for share in report.shares]
    return intro + "\n\n" + table(["cells of", *shares, "mean", "95 % interval"], rows)


def classes(evaluation: Evaluation) -> str:
    """Both checks by word class."""
    named = evaluation.attention.by_class
    rows = [
        [
            name,
            f"{f.words:,}",
            f"{f.correctness:.3f}",
            f"{f.ratio:.2f}",
            f"{f.pointing:.3f}",
            f"{f.pointing_gain:+.1f}",
            f"{f.entropy:.3f}",
        ]
        for name, f in sorted(named.items(), key=lambda item: -item[1].words)
    ]
    rows = [["" if cell in ("nan", "+nan") else cell for cell in row] for row in rows]
    heads = [
        "word class",
        "words",
        "correctness",
        "× uniform",
        "pointing",
        "above centre",
        "entropy",
    ]
    groups = evaluation.faithfulness.groups
    drops = [
        [name, f"{c.words:,}", *(f"{c.areas[method]:.3f}" for method in METHODS)]
        for name, c in groups.items()
    ]
    return (
        "**By word class.** `absent`: a category that the photo lacks; `no mask`: one that "
        "it has only as a crowd or without an outline.\n\n"
        + table(heads, rows)
        + "\n\n"
        + table(["mean drop by deletion", "words", *METHODS], drops)
    )


def side_by_side(found: dict[str, Evaluation]) -> str:
    """A row per model, with the intervals that tell how much a difference means."""
    rows = []
    for name, evaluation in found.items():
        report = evaluation.attention
        cider = evaluation.quality.scores.cider.score
        row = [name, "" if cider is None else f"{cider:.3f}"]
        for key, form in (("ratio", ".2f"), ("pointing_gain", "+.1f"), ("entropy", ".3f")):
            low, high = report.intervals[key]
            row.append(f"{report.figure(key):{form}} ({low:{form}} .. {high:{form}})")
        rows.append(row)
    heads = ["", "CIDEr-D here", "correctness × uniform", "pointing above centre", "entropy"]
    return "**Side by side**, with 95 % intervals.\n\n" + table(heads, rows)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column to the left, figures to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
