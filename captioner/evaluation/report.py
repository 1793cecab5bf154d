"""A page to look at: figures with intervals, plots, and every image with its captions and maps.

`write_report` writes one `index.html` that needs no network and no other file. The images are small
JPEGs inside it; attention maps are stored as numbers, one byte per cell, which the page draws over
the image. Needs Jinja and Matplotlib (extra `plots`).

Captions, references and file names are untrusted text. The template escapes them in HTML and in the
data, the script shows them as text only, and the content security policy allows no other script and
loads nothing.

Shapes: T words of a caption, (H, W) attention grid.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from captioner import __version__
from captioner.errors import ConfigError, ImageError
from captioner.evaluation.caption_metrics import METRIC_NAMES, CaptionQuality, format_score
from captioner.evaluation.plots import curves, histogram
from captioner.image.io import open_image
from captioner.metrics.significance import CONFIDENCE, SAMPLES
from captioner.tokenizer import tokenize
from captioner.utils.files import replacing
from captioner.utils.formatting import interval, number, percent, printable

if TYPE_CHECKING:
    from captioner.data.annotations import Example
    from captioner.evaluation.attention import AttentionReport, Figures
    from captioner.evaluation.evaluate import Evaluation
    from captioner.evaluation.faithfulness import FaithfulnessReport
    from captioner.outputs import Caption

logger = logging.getLogger(__name__)

MOST_IMAGES = 1000
"""Images on a page; of more, the best, the worst and a sample of the others are shown."""

_BYTES = 20_000_000  # of all images on a page, about
_SIDES = (224, 448)  # smallest and largest length of an image's longer side, in pixels
_TILES = ("cider", "bleu4", "rouge_l")
_DASH = " – "
_ATTENTION_ROWS = {
    "correctness": "share of the map on the object",
    "ratio": "… in multiples of a uniform map",
    "pointing": "peak on the object",
    "entropy_named": "entropy, these words",
    "entropy": "entropy, all words",
}


@dataclass(frozen=True)
class ReportImage:
    """What the page shows of one image beside its scores.

    Attributes:
        image_id: As in the evaluation.
        image: Path of the file; one that cannot be read leaves a blank.
        words: The caption's T words; empty if they are not known one by one.
        maps: (T, H, W) uint8, each word's map as a share of its own peak; None without maps.
        peaks: The T peaks, 0 to 1.
    """

    image_id: int | str
    image: str
    words: tuple[str, ...] = ()
    maps: np.ndarray | None = field(default=None, repr=False)
    peaks: tuple[float, ...] = ()

    @classmethod
    def of(cls, example: Example, caption: Caption) -> ReportImage:
        """Return the image with a caption's words and maps; for `evaluate(watch=...)`."""
        peaks = caption.attention.max(axis=(1, 2), initial=0)
        scale = np.where(peaks > 0, peaks, 1)[:, None, None]
        return cls(
            image_id=example.image_id,
            image=example.image,
            words=tuple(caption.words),
            maps=np.round(255 * caption.attention / scale).astype(np.uint8),
            peaks=tuple(round(float(peak), 4) for peak in peaks),
        )


def check_libraries() -> None:
    """Check that a report can be written, before an evaluation that takes long.

    Raises:
        ConfigError: Jinja or Matplotlib is not installed.
    """
    if not all(importlib.util.find_spec(name) for name in ("jinja2", "matplotlib")):
        raise ConfigError(
            "the report needs Jinja and Matplotlib: pip install 'captioner[plots]', or leave out "
            "--report"
        )


def write_report(
    folder: str | os.PathLike[str],
    quality: CaptionQuality,
    images: Sequence[ReportImage],
    *,
    title: str = "Captions",
    evaluation: Evaluation | None = None,
    notes: Sequence[str] = (),
    most: int = MOST_IMAGES,
) -> Path:
    """Write the page.

    Args:
        folder: Created if needed; `index.html` in it is replaced.
        quality: The captions and their scores.
        images: What to show of the images; those without an entry are shown as text only.
        title: What was evaluated.
        evaluation: Adds what only a model has: attention, deletion check.
        notes: Sentences to put on top.
        most: Number of images on the page.

    Returns:
        The path of the page.

    Raises:
        ConfigError: Jinja or Matplotlib is not installed.
    """
    check_libraries()
    from jinja2 import Environment, StrictUndefined

    order = _ranked(quality)
    shown = _spread(order, most)
    known = {image.image_id: image for image in images}
    side = _side(len(shown))
    rows = [
        _row(quality, order[rank], known.get(quality.image_ids[order[rank]]), side) | {"n": rank}
        for rank in shown
    ]
    data = {"photos": rows, "total": len(order), "cider": quality.scores.cider.defined}
    text = files("captioner.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    page = environment.from_string(text).render(
        _context(quality, evaluation, notes, len(shown)),
        title=title,
        data=data,
        hash=base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode(),
    )
    path = Path(folder) / "index.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return path


def _ranked(quality: CaptionQuality) -> list[int]:
    """Return the images' places, best first: by CIDEr-D, or by ROUGE-L where that is undefined."""
    scores = quality.scores
    found = scores.cider.per_image if scores.cider.defined else scores.rouge_l.per_image
    return [int(i) for i in np.lexsort((-scores.rouge_l.per_image, -found))]


def _spread(order: Sequence[int], most: int) -> list[int]:
    """Return the ranks to show: all, or a quarter of the places for each end and a sample."""
    total = len(order)
    if total <= most:
        return list(range(total))
    end = most // 4
    between = np.linspace(end, total - end, most - 2 * end, endpoint=False)
    return [*range(end), *(int(rank) for rank in between), *range(total - end, total)]


def _side(images: int) -> int:
    """Return the longer side of the images in pixels: as large as the page's size allows.

    An image of side s is a JPEG of about 0.16 s² bytes, and a third more as text.
    """
    side = math.sqrt(_BYTES / max(1, images) / 0.21)
    return int(min(max(side, _SIDES[0]), _SIDES[1]))


def _row(quality: CaptionQuality, i: int, image: ReportImage | None, side: int) -> dict[str, Any]:
    """Return one image as the page's script reads it."""
    scores = quality.scores
    row: dict[str, Any] = {
        "id": str(quality.image_ids[i]),
        "caption": quality.captions[i],
        "refs": list(quality.references[i]),
        "bleu4": round(100 * float(scores.bleu.per_image[i, 3]), 1),
        "rouge": round(100 * float(scores.rouge_l.per_image[i]), 1),
    }
    if scores.cider.defined:
        row["cider"] = round(float(scores.cider.per_image[i]), 3)
    wrong = quality.hallucination.per_image[i] if quality.hallucination else None
    if wrong:
        row["wrong"] = list(wrong)
    if image is None:
        return row
    row["file"] = Path(image.image).name  # not the path: a page is passed on
    row["words"] = list(image.words)
    jpeg = _jpeg(image.image, side)
    if jpeg is not None:
        row["jpeg"], row["size"] = base64.b64encode(jpeg[0]).decode(), jpeg[1]
        if image.maps is not None and len(image.maps):
            row["grid"] = image.maps.shape[1:]
            row["maps"] = base64.b64encode(image.maps.tobytes()).decode()
            row["peaks"] = image.peaks
    return row


def _jpeg(path: str, side: int) -> tuple[bytes, tuple[int, int]] | None:
    """Return a small JPEG of an image and its (width, height); None if it cannot be read."""
    try:
        image = open_image(path, shrink_to=side)
    except ImageError as error:
        text = printable(f"{path}: {error}")
        logger.warning("the report shows no photo for %s", text)
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue(), image.size


def _context(
    quality: CaptionQuality, evaluation: Evaluation | None, notes: Sequence[str], shown: int
) -> dict[str, Any]:
    """Return the values of the template, apart from those of the images."""
    total, references = len(quality.image_ids), sum(map(len, quality.references))
    facts = [f"{total:,} photos", f"{references:,} references"]
    notes, others = list(notes), list(quality.diversity.rows())
    if quality.hallucination is not None:
        others += quality.hallucination.rows()
    if evaluation is not None:
        facts += [f"{key.replace('_', ' ')} {value}" for key, value in evaluation.search.items()]
        if evaluation.failures:
            notes.append(f"{len(evaluation.failures):,} photos could not be read: not scored.")
        entropy = number(evaluation.entropy, ".3f", "–")
        others += [
            ("unfinished", f"{percent(evaluation.unfinished)} of the captions"),
            ("attention entropy", f"{entropy} (uniform map: 1)"),
        ]
    if shown < total:
        notes.append(
            f"{shown:,} of the {total:,} photos are shown below: the best, the worst and an even "
            "sample of the others. Tables and plots are of all."
        )
    scores = quality.scores
    ranking = "CIDEr-D" if scores.cider.defined else "ROUGE-L"
    values = scores.cider.per_image if scores.cider.defined else 100 * scores.rouge_l.per_image
    lengths = histogram(
        [len(tokenize(text)) for text in quality.captions if text is not None],
        label="words",
        unit="captions",
        whole=True,
        others=[len(tokenize(text)) for texts in quality.references for text in texts],
        names=("captions", "references"),
    )
    return {
        "facts": " · ".join([*facts, f"captioner {__version__}"]),
        "notes": notes,
        "tiles": _tiles(quality),
        "interval_head": f"{100 * CONFIDENCE:g} % interval",
        "samples": f"{SAMPLES:,}",
        "scores": _scores(quality),
        "others": others,
        "metric_plot_title": f"{ranking} of each photo",
        "metric_plot": histogram(values, label=ranking),
        "length_plot": lengths,
        "attention": evaluation
        and evaluation.attention
        and _attention(evaluation.attention, evaluation.saliency),
        "deletion": evaluation and evaluation.faithfulness and _deletion(evaluation.faithfulness),
    }


def _tiles(quality: CaptionQuality) -> list[tuple[str, str, str]]:
    """Return the main figures: name, value, detail."""
    tiles = []
    for key in _TILES:
        value = quality.metrics[key]
        text = "–" if value is None else format_score(key, value)
        tiles.append((METRIC_NAMES[key], text, _interval(quality, key) or "undefined"))
    diversity = quality.diversity
    tiles.append(("Words a caption", number(diversity.mean_length, ".1f", "–"), "mean"))
    tiles.append(("Vocabulary used", f"{diversity.vocabulary:,}", "distinct words"))
    return tiles


def _scores(quality: CaptionQuality) -> list[tuple[str, str, str]]:
    """Return all metrics: name, score, interval or remark."""
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
    return rows


def _interval(quality: CaptionQuality, key: str) -> str:
    if key not in quality.intervals:
        return "" if quality.metrics[key] is None else "one photo: no interval"
    return _DASH.join(format_score(key, bound) for bound in quality.intervals[key])


def _attention(report: AttentionReport, saliency: AttentionReport | None) -> dict[str, Any]:
    """Return what the section on object masks shows."""
    heads = ["", "attention", f"{100 * report.confidence:g} % interval", "uniform", "centre"]
    rows = []
    for key, form, *baselines in report.rows():
        if key in _ATTENTION_ROWS:
            values = baselines + ([saliency.figure(key)] if saliency else [])
            cells = [number(math.nan if value is None else value, form, "–") for value in values]
            bounds = interval(report.intervals.get(key, ()), form, _DASH) or "–"
            own = number(report.figure(key), form, "–")
            rows.append((_ATTENTION_ROWS[key], own, bounds, *cells))
    return {
        "facts": f"{report.named.words:,} of {report.words:,} words name an object that is in the "
        f"photo, in {report.images_measured:,} of {report.images:,} photos.",
        "saliency": saliency is not None,
        "heads": heads + (["saliency"] if saliency else []),
        "rows": rows,
        "groups": [
            ("By word class", _groups(report.by_class)),
            ("By category", _groups(report.by_category)),
        ],
    }


def _groups(groups: dict[str, Figures]) -> list[tuple[str, ...]]:
    """Return the rows of a table by group, the largest first."""
    return [
        (
            name,
            f"{f.words:,}",
            number(f.correctness, ".3f", "–"),
            number(f.ratio, ".2f", "–"),
            number(f.pointing, ".3f", "–"),
            number(f.pointing_gain, "+.1f", "–"),
            number(f.entropy, ".3f", "–"),
        )
        for name, f in sorted(groups.items(), key=lambda item: -item[1].words)
    ]


def _deletion(report: FaithfulnessReport) -> dict[str, Any] | None:
    """Return what the section on the deletion check shows; None without a content word."""
    if "all" not in report.groups:
        return None
    curve = report.groups["all"]
    rows = []
    for method, area in curve.areas.items():
        bounds, gain = interval(curve.area_intervals[method], ".3f", _DASH), ""
        if method in curve.gains:
            spread = interval(curve.gain_intervals[method], "+.3f", _DASH)
            gain = f"{curve.gains[method]:+.3f} ({spread})"
        rows.append((method, f"{area:.3f}", bounds, gain))
    return {
        "facts": f"For {curve.words:,} content words in {report.images:,} photos the most attended "
        "cells are deleted from the photo's features, and the drop of the word's log-probability "
        "is measured. It is compared with the drop when as many cells are deleted by the model's "
        "own gradient, at the photo's centre, and at random. Attention's cells matter more than "
        f"random ones for {percent(curve.above_random, 0)} of the words.",
        "plot": curves(
            report.shares,
            curve.drops,
            curve.drop_intervals,
            x_label="share of the grid's cells deleted",
            y_label="drop of log-probability",
        ),
        "rows": rows,
        "methods": list(curve.areas),
        "groups": [
            (name, f"{c.words:,}", *(f"{area:.3f}" for area in c.areas.values()))
            for name, c in report.groups.items()
        ],
    }
