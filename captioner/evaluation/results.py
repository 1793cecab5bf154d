"""Score existing captions: read files of results, match them to references, score them.

The content decides among three kinds of file: COCO results JSON
(`[{"image_id", "caption"}]`), JSONL as `captioner caption -o captions.jsonl` writes it, and CSV
with a header. A row names its image by id (`image_id`, `id`) or by file name (`image`,
`path`, `file`, ...).

What does not fit is reported, never passed over:

- An image **without a caption** counts against the score, so that a model that skips hard images
  cannot gain: 0 in the mean of ROUGE-L and CIDEr-D, all n-grams wrong and no words in BLEU, an
  empty caption for METEOR and SPICE. A row with an error instead of a caption is such an image.
- Of **several captions** for one image the first counts.
- Captions of images **without references** are not scored.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from captioner.data.annotations import Example
from captioner.data.fields import id_key, some
from captioner.data.records import read_rows
from captioner.errors import DataError
from captioner.evaluation.caption_metrics import CaptionQuality, measure_quality


@dataclass(frozen=True)
class ResultRow:
    """One row of a file of results.

    Attributes:
        image_id: The image's id, if the row has one.
        name: The image's file name, if the row has one.
        caption: Its caption; None if the row has an error instead.
    """

    image_id: int | str | None
    name: str | None
    caption: str | None

    def __str__(self) -> str:
        return str(self.image_id if self.name is None else self.name)


@dataclass(frozen=True)
class Matching:
    """Which caption belongs to which image of the references.

    Attributes:
        captions: One per image, in the order of the references; None where there is none.
        missing: Ids of the images without a caption.
        unknown: Rows whose image has no references.
        repeated: Rows for an image that has a caption already.
    """

    captions: list[str | None] = field(repr=False)
    missing: list[int | str]
    unknown: list[str]
    repeated: list[str]

    @property
    def complete(self) -> bool:
        """Return whether every image has a caption."""
        return not self.missing

    def lines(self) -> list[str]:
        """Return what did not fit, in sentences with examples."""
        lines = []
        if self.missing:
            count = f"{len(self.missing):,} of {len(self.captions):,} photos have no caption"
            lines.append(f"{count} (this lowers the scores): {some(self.missing)}")
        if self.unknown:
            count = f"{len(self.unknown):,} not scored, without references"
            lines.append(f"{count}: {some(self.unknown)}")
        if self.repeated:
            count = f"{len(self.repeated):,} not scored, the photo has an earlier caption"
            lines.append(f"{count}: {some(self.repeated)}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the captions, as JSON can hold it."""
        return {key: getattr(self, key) for key in ("missing", "unknown", "repeated")}


@dataclass(frozen=True)
class ResultsEvaluation:
    """The scores of a file of results.

    Attributes:
        quality: The figures.
        matching: What fitted the references and what did not.
    """

    quality: CaptionQuality
    matching: Matching = field(repr=False)

    def table(self) -> str:
        """Return the figures as text for a terminal, after what did not fit."""
        return "\n".join([*self.matching.lines(), self.quality.table()])

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON can hold them."""
        return {**self.quality.to_dict(), **self.matching.to_dict()}


def score_results(
    path: str | os.PathLike[str], examples: Sequence[Example], **options: Any
) -> ResultsEvaluation:
    """Score a file of results.

    Args:
        path: The file.
        examples: Images with their references; the images themselves need not exist
            (`read_captions` with `missing="ignore"`).
        **options: `objects`, `training` and `official` of `measure_quality`.

    Raises:
        DataError: The file cannot be read, or none of its captions belongs to an example.
    """
    matching = match_results(read_results(path), examples, source=os.fspath(path))
    quality = measure_quality(
        [example.image_id for example in examples],
        matching.captions,
        [example.captions for example in examples],
        **options,
    )
    return ResultsEvaluation(quality, matching)


def read_results(path: str | os.PathLike[str]) -> list[ResultRow]:
    """Read a file of results in any form that `captioner.data.records` knows.

    Raises:
        DataError: The file is of no known form, or a row has no caption or does not name its
            image; the message names the row.
    """
    results = []
    for row in read_rows(path, captioned=True):
        if row.error is not None:
            raise DataError(f"{row.place}: {row.error}")
        if row.failure is None and not row.captioned:
            raise DataError(f"{row.place}: no caption and no error: expected text in 'caption'")
        captions: Sequence[str | None] = row.captions if row.failure is None else ()
        # Further columns are other captions of a search; a list of captions is reported.
        captions = captions if row.complete else captions[:1]
        results += [ResultRow(row.image_id, row.image, text) for text in captions or (None,)]
    return results


def match_results(
    rows: Sequence[ResultRow], examples: Sequence[Example], source: str = "the results"
) -> Matching:
    """Find the image of each row, by file name or by id.

    A file name fits if it is that of one image, folders apart. Ids fit as text: 7 is "7". If the
    references name no files, the number that a file name ends in is taken as the id, as in
    `COCO_val2014_000000000042.jpg`.

    Args:
        rows: The captions.
        examples: The images.
        source: What to call the rows in messages.

    Raises:
        DataError: No row fits, or a row's name and id are of two images.
    """
    references = _References(examples)
    captions: list[str | None] = [None] * len(examples)
    unknown, repeated = [], []
    for row in rows:
        place = references.find(row)
        if place is None:
            unknown.append(str(row))
        elif row.caption is not None:
            if captions[place] is not None:
                repeated.append(str(row))
            else:
                captions[place] = row.caption
    if all(caption is None for caption in captions):
        theirs = examples[0].image_id if examples else "none"
        raise DataError(
            f"{source}: none of its {len(rows)} rows has a caption for a photo of the references: "
            f"their ids are like {theirs!r}, its photos are {some(list(map(str, rows))) or 'none'}"
        )
    pairs = zip(examples, captions, strict=True)
    missing = [example.image_id for example, caption in pairs if caption is None]
    return Matching(captions, missing, unknown, repeated)


class _References:
    """Finds the place of an image among the references."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_id = {str(example.image_id): i for i, example in enumerate(examples)}
        self._by_key = _unique(id_key(example.image_id) for example in examples)
        names = [_last_part(example.image) for example in examples]
        self._by_path = {example.image: i for i, example in enumerate(examples) if example.image}
        self._by_name = _unique(names)
        self._by_stem = _unique(os.path.splitext(name)[0] for name in names)
        self._named = any(names)

    def find(self, row: ResultRow) -> int | None:
        by_id = None if row.image_id is None else self._find_id(str(row.image_id))
        by_name = self._find_name(row.name) if row.name else None
        if by_id is not None and by_name is not None and by_id != by_name:
            raise DataError(
                f"the row of {row.name} has the id {row.image_id}, which is another image in the "
                "references: leave out the wrong one of the two columns"
            )
        return by_id if by_name is None else by_name

    def _find_id(self, image_id: str) -> int | None:
        place = self._by_id.get(image_id, self._by_key.get(id_key(image_id)))
        if place is None:  # some tools write the file name, or its stem, as the id
            place = self._by_stem.get(_last_part(image_id), self._find_name(image_id))
        return place

    def _find_name(self, name: str) -> int | None:
        if name in self._by_path:
            return self._by_path[name]
        last = _last_part(name)
        if self._named:
            return self._by_name.get(last)
        number = re.fullmatch(r"(?:.*_)?0*(\d+)", os.path.splitext(last)[0])
        return self._by_id.get(number[1]) if number else None


def _unique(keys: Iterable[str]) -> dict[str, int]:
    """Return the places of the keys that occur once; empty ones do not count."""
    keys = list(keys)
    count = Counter(keys)
    return {key: place for place, key in enumerate(keys) if key and count[key] == 1}


def _last_part(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]
