"""A page to look at: figures with intervals, plots, and every photo with its captions and maps.

`write_report` makes one `index.html` that needs nothing else: no network, no library, no other
file. The photos are small JPEGs inside it; the attention maps are stored as numbers, one byte a
cell, and the page lays them over the photo itself.

Captions, references and file names are text of strangers. In the page's HTML they are escaped, in
its data they cannot end the element that holds them, its script shows them as text only, and the
content policy lets no other script run and nothing be loaded.

Shapes: T words of a caption, (H, W) attention grid.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
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

from captioner.errors import ImageError
from captioner.evaluation.caption_metrics import CaptionQuality
from captioner.evaluation.report_sections import sections
from captioner.image.io import open_image
from captioner.utils.files import replacing
from captioner.utils.formatting import printable

if TYPE_CHECKING:
    from captioner.api import Caption
    from captioner.data.annotations import Example
    from captioner.evaluation.evaluate import Evaluation

logger = logging.getLogger(__name__)

MOST_PHOTOS = 1000
"""Photos on a page; of more, the best, the worst and a sample of the others are shown."""

_BYTES = 20_000_000  # of all photos on a page, about
_SIDES = (224, 448)  # smallest and largest length of a photo's longer side, in pixels


@dataclass(frozen=True)
class ReportPhoto:
    """What the page shows of one photo beside its scores.

    Attributes:
        image_id: As the evaluation has it.
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
    def of(cls, example: Example, caption: Caption) -> ReportPhoto:
        """The photo with a caption's words and maps; for `evaluate(watch=...)`."""
        peaks = caption.attention.max(axis=(1, 2), initial=0)
        scale = np.where(peaks > 0, peaks, 1)[:, None, None]
        return cls(
            image_id=example.image_id,
            image=example.image,
            words=tuple(caption.words),
            maps=np.round(255 * caption.attention / scale).astype(np.uint8),
            peaks=tuple(round(float(peak), 4) for peak in peaks),
        )


def write_report(
    folder: str | os.PathLike[str],
    quality: CaptionQuality,
    photos: Sequence[ReportPhoto],
    *,
    title: str = "Captions",
    evaluation: Evaluation | None = None,
    notes: Sequence[str] = (),
    most: int = MOST_PHOTOS,
) -> Path:
    """Write the page.

    Args:
        folder: Made if it is absent; `index.html` in it is replaced.
        quality: The captions and their scores.
        photos: What to show of them; those without an entry are shown as text only.
        title: What was evaluated.
        evaluation: Adds what only a model has: attention, deletion check.
        notes: Sentences to put on top.
        most: Photos on the page.

    Returns:
        The path of the page.
    """
    order = _ranked(quality)
    shown = _spread(order, most)
    known = {photo.image_id: photo for photo in photos}
    side = _side(len(shown))
    rows = []
    for rank in shown:
        i = order[rank]
        photo = known.get(quality.image_ids[i])
        rows.append(_row(quality, i, photo, side) | {"n": rank})
    data = {
        "photos": rows,
        "total": len(order),
        "cider": quality.scores.cider.defined,
    }
    template = files("captioner.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    page = _fill(
        template,
        {
            "hash": base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode(),
            "data": _json_for_html(data),
            **sections(quality, title=title, evaluation=evaluation, notes=notes, shown=len(shown)),
        },
    )
    path = Path(folder) / "index.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return path


def _ranked(quality: CaptionQuality) -> list[int]:
    """The photos' places, best first: by CIDEr-D, or by ROUGE-L where that is undefined."""
    scores = quality.scores
    found = scores.cider.per_image if scores.cider.defined else scores.rouge_l.per_image
    return [int(i) for i in np.lexsort((-scores.rouge_l.per_image, -found))]


def _spread(order: Sequence[int], most: int) -> list[int]:
    """The ranks to show: all, or a quarter of the places for each end and the rest between."""
    total = len(order)
    if total <= most:
        return list(range(total))
    end = most // 4
    between = np.linspace(end, total - end, most - 2 * end, endpoint=False)
    return [*range(end), *(int(rank) for rank in between), *range(total - end, total)]


def _side(photos: int) -> int:
    """The longer side of the photos, in pixels: as large as the page's size allows.

    A photo of side s is a JPEG of about 0.16 s² bytes, a third more as text.
    """
    side = math.sqrt(_BYTES / max(1, photos) / 0.21)
    return int(min(max(side, _SIDES[0]), _SIDES[1]))


def _row(quality: CaptionQuality, i: int, photo: ReportPhoto | None, side: int) -> dict[str, Any]:
    """One photo as the page's script reads it."""
    scores = quality.scores
    caption = quality.captions[i]
    row: dict[str, Any] = {
        "id": str(quality.image_ids[i]),
        "caption": caption,
        "refs": list(quality.references[i]),
        "bleu4": round(100 * float(scores.bleu.per_image[i, 3]), 1),
        "rouge": round(100 * float(scores.rouge_l.per_image[i]), 1),
    }
    if scores.cider.defined:
        row["cider"] = round(float(scores.cider.per_image[i]), 3)
    wrong = quality.hallucination.per_photo[i] if quality.hallucination else None
    if wrong:
        row["wrong"] = list(wrong)
    if photo is None:
        return row
    row["file"] = Path(photo.image).name  # not the path: a page is passed on
    row["words"] = list(photo.words)
    jpeg = _jpeg(photo.image, side)
    if jpeg is not None:
        row["jpeg"], row["size"] = base64.b64encode(jpeg[0]).decode(), jpeg[1]
        if photo.maps is not None and len(photo.maps):
            row["grid"] = photo.maps.shape[1:]
            row["maps"] = base64.b64encode(photo.maps.tobytes()).decode()
            row["peaks"] = photo.peaks
    return row


def _jpeg(path: str, side: int) -> tuple[bytes, tuple[int, int]] | None:
    """A small JPEG of a photo and its (width, height); None if it cannot be read."""
    try:
        photo = open_image(path, shrink_to=side)
    except ImageError as error:
        logger.warning("the report shows no photo for %s: %s", printable(path), error)
        return None
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue(), photo.size


def _json_for_html(value: Any) -> str:
    """JSON that holds no character with a meaning in HTML, and still means the same."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _fill(template: str, values: dict[str, str]) -> str:
    """Put values in the places of `{{name}}`, all at once: a value is never searched."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
