"""The parts of the report's page that need no script: head, tables, plots."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from captioner import __version__
from captioner.evaluation.caption_metrics import METRIC_NAMES, CaptionQuality, format_score
from captioner.evaluation.plots import curves, histogram
from captioner.metrics.significance import CONFIDENCE, SAMPLES
from captioner.tokenizer import tokenize

if TYPE_CHECKING:
    from captioner.evaluation.attention import Figures
    from captioner.evaluation.evaluate import Evaluation
    from captioner.evaluation.faithfulness import FaithfulnessReport

METHODS = ("attention", "saliency", "centre", "random")
_TILES = ("cider", "bleu4", "rouge_l")


def sections(
    quality: CaptionQuality,
    *,
    title: str,
    evaluation: Evaluation | None,
    notes: Sequence[str],
    shown: int,
) -> dict[str, str]:
    """The page's parts as HTML, by their names in the template.

    Args:
        quality: The captions and their scores.
        title: What was evaluated.
        evaluation: Adds what only a model has.
        notes: Sentences to put on top.
        shown: How many photos the page shows.
    """
    photos, references = len(quality.image_ids), sum(map(len, quality.references))
    facts = [f"{photos:,} photos", f"{references:,} references"]
    notes = list(notes)
    if evaluation is not None:
        facts += [f"{key.replace('_', ' ')} {value}" for key, value in evaluation.search.items()]
        if evaluation.failures:
            notes.append(f"{len(evaluation.failures):,} photos could not be read: not scored.")
    if shown < photos:
        notes.append(
            f"{shown:,} of the {photos:,} photos are shown below: the best, the worst and an even "
            "sample of the others. Tables and plots are of all."
        )
    return {
        "title": escape(title),
        "facts": escape(" · ".join([*facts, f"captioner {__version__}"])),
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        "tiles": _tiles(quality),
        "scores": _scores(quality, evaluation),
        "plots": _plots(quality),
        "attention": _attention(evaluation) if evaluation else "",
        "deletion": _deletion(evaluation.faithfulness) if evaluation else "",
    }


def _tiles(quality: CaptionQuality) -> str:
    """The main figures, large."""
    cells = []
    for key in _TILES:
        value = quality.metrics[key]
        number = "–" if value is None else format_score(key, value)
        cells.append((METRIC_NAMES[key], number, _interval(quality, key) or "undefined"))
    diversity = quality.diversity
    cells.append(("Words a caption", f"{diversity.mean_length:.1f}", "mean"))
    cells.append(("Vocabulary used", f"{diversity.vocabulary:,}", "distinct words"))
    return "".join(
        f'<div class="tile"><div class="name">{escape(name)}</div>'
        f'<div class="value">{escape(value)}</div><div class="sub">{escape(sub)}</div></div>'
        for name, value, sub in cells
    )


def _interval(quality: CaptionQuality, key: str) -> str:
    if key not in quality.intervals:
        return "" if quality.metrics[key] is None else "one photo: no interval"
    low, high = (format_score(key, bound) for bound in quality.intervals[key])
    return f"{low} – {high}"


def _scores(quality: CaptionQuality, evaluation: Evaluation | None) -> str:
    """All metrics with intervals, then what else was measured on the captions."""
    rows = []
    for key, name in METRIC_NAMES.items():
        value = quality.metrics[key]
        cell = "undefined on a single photo" if value is None else format_score(key, value)
        rows.append((name, cell, _interval(quality, key)))
    for score in quality.official:
        if score.score is not None:
            rows.append((score.name, f"{100 * score.score:.1f}", score.implementation))
        else:
            rows.append((score.name, "–", f"not computed: {score.reason}"))
    heads = ("metric", "score", f"{100 * CONFIDENCE:g} % interval")
    others = list(quality.diversity.rows())
    if quality.hallucination is not None:
        others += quality.hallucination.rows()
    if evaluation is not None:
        others += [
            ("unfinished", f"{100 * evaluation.unfinished:.1f} % of the captions"),
            ("attention entropy", f"{evaluation.entropy:.3f} (uniform map: 1)"),
        ]
    return (
        '<div class="columns"><div>'
        + _table(heads, rows)
        + f'<p class="small">BLEU, ROUGE-L, METEOR and SPICE from 0 to 100, CIDEr-D from 0 up. '
        f"Intervals: bootstrap over photos, {SAMPLES:,} resamples.</p></div><div>"
        + _table(("captions", ""), [(name, re.sub(r"\bnan\b", "–", text)) for name, text in others])
        + "</div></div>"
    )


def _plots(quality: CaptionQuality) -> str:
    scores = quality.scores
    if scores.cider.defined:
        first = ("CIDEr-D of each photo", histogram(scores.cider.per_image, label="CIDEr-D"))
    else:
        values = [100 * value for value in scores.rouge_l.per_image]
        first = ("ROUGE-L of each photo", histogram(values, label="ROUGE-L"))
    given = [text for text in quality.captions if text is not None]
    theirs = [len(tokenize(text)) for texts in quality.references for text in texts]
    lengths = histogram(
        [len(tokenize(text)) for text in given],
        label="words",
        unit="captions",
        whole=True,
        others=theirs,
        others_label="reference captions",
    )
    legend = _legend(["captions", "references"]) if lengths else ""
    return _figure(first[0], first[1], "The dashed line is the mean.") + _figure(
        "Length of the captions", lengths, "Beside the references that people wrote.", legend
    )


def _attention(evaluation: Evaluation) -> str:
    report, saliency = evaluation.attention, evaluation.saliency
    if report is None:
        return ""
    named = report.named
    uniform = named.correctness_uniform
    centre = named.correctness_centre / uniform if uniform else math.nan
    lines: list[tuple[str, str, str, list[float]]] = [
        (
            "share of the map on the object",
            "correctness",
            ".3f",
            [uniform, named.correctness_centre],
        ),
        ("… in multiples of a uniform map", "ratio", ".2f", [1.0, centre]),
        ("peak on the object", "pointing", ".3f", [named.pointing_uniform, named.pointing_centre]),
        ("entropy, these words", "entropy_named", ".3f", [1.0, named.entropy_centre]),
        ("entropy, all words", "entropy", ".3f", [1.0, named.entropy_centre]),
    ]
    heads = ["", "attention", f"{100 * report.confidence:g} % interval", "uniform", "centre"]
    rows = []
    for name, key, form, baselines in lines:
        values = baselines + ([saliency.figure(key)] if saliency else [])
        low, high = report.intervals.get(key, (math.nan, math.nan))
        bounds = f"{_number(low, form)} – {_number(high, form)}"
        cells = [_number(value, form) for value in values]
        rows.append((name, _number(report.figure(key), form), bounds, *cells))
    if saliency:
        heads.append("saliency")
    return (
        "<section><h2>Attention against object masks</h2>"
        f"<p>{named.words:,} of {report.words:,} words name an object that is in the photo, in "
        f"{report.photos_measured:,} of {report.photos:,} photos. <em>Uniform</em> and "
        "<em>centre</em> are maps that know nothing of the photo"
        + ("; <em>saliency</em> is the gradient of the same model." if saliency else ".")
        + "</p>"
        + _table(heads, rows)
        + _groups("By word class", report.by_class)
        + _groups("By category", report.by_category)
        + "</section>"
    )


def _groups(title: str, groups: dict[str, Figures]) -> str:
    """A table by group, folded."""
    heads = ("", "words", "on object", "× uniform", "peak on object", "above centre", "entropy")
    rows = [
        (
            name,
            f"{f.words:,}",
            _number(f.correctness, ".3f"),
            _number(f.ratio, ".2f"),
            _number(f.pointing, ".3f"),
            _number(f.pointing_gain, "+.1f"),
            _number(f.entropy, ".3f"),
        )
        for name, f in sorted(groups.items(), key=lambda item: -item[1].words)
    ]
    return f"<details><summary>{escape(title)}</summary>{_table(heads, rows)}</details>"


def _deletion(report: FaithfulnessReport | None) -> str:
    if report is None or "all" not in report.groups:
        return ""
    curve = report.groups["all"]
    plot = curves(
        report.shares,
        {name: curve.drops[name] for name in METHODS},
        {name: curve.drop_intervals[name] for name in METHODS},
        x_label="share of the grid's cells deleted",
        y_label="drop of log-probability",
    )
    rows = []
    for name in METHODS:
        low, high = curve.area_intervals[name]
        gain = ""
        if name in curve.gains:
            gain_low, gain_high = curve.gain_intervals[name]
            gain = f"{curve.gains[name]:+.3f} ({gain_low:+.3f} – {gain_high:+.3f})"
        rows.append((name, f"{curve.areas[name]:.3f}", f"{low:.3f} – {high:.3f}", gain))
    heads = ("cells of", "mean drop", f"{100 * report.confidence:g} % interval", "attention beyond")
    by_group = [
        (name, f"{c.words:,}", *(f"{c.areas[method]:.3f}" for method in METHODS))
        for name, c in report.groups.items()
    ]
    return (
        "<section><h2>Does a word depend on what its map shows?</h2>"
        f"<p>For {curve.words:,} content words in {report.photos:,} photos the most attended cells "
        "are deleted from the photo's features, and the word's log-probability drops. The drop is "
        "held against that of as many cells by the model's own gradient, at the photo's centre, "
        "and at random. Attention's cells matter more than random ones for "
        f"{100 * curve.above_random:.0f} % of the words.</p>"
        '<div class="columns">'
        + _figure("", plot, "Bands: intervals over photos.", _legend(list(METHODS), start=0))
        + "<div>"
        + _table(heads, rows)
        + "<details><summary>By word class</summary>"
        + _table(("mean drop", "words", *METHODS), by_group)
        + "</details></div></div></section>"
    )


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _legend(names: Sequence[str], start: int = 0) -> str:
    items = "".join(
        f'<span><i class="key s{n}"></i>{escape(name)}</span>'
        for n, name in enumerate(names, start)
    )
    return f'<div class="legend">{items}</div>'


def _figure(title: str, svg: str, caption: str, legend: str = "") -> str:
    if not svg:
        return ""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<figure>{heading}{legend}{svg}<figcaption>{escape(caption)}</figcaption></figure>"
