"""Captions that exist already, in files of results: read, matched to references, scored.

Three kinds of file are told apart by their content: COCO results JSON
(`[{"image_id", "caption"}]`), JSONL as `captioner caption -o captions.jsonl` writes it, and CSV
with a header. A row names its photo by id (`image_id`, `id`) or by file name (`image`,
`path`, `file`, ...).

What does not fit is reported, never passed over:

- A photo **without a caption** counts against the score, so that a model that skips hard photos
  cannot gain: 0 in the mean of ROUGE-L and CIDEr-D, all n-grams wrong and no words in BLEU, an
  empty caption for METEOR and SPICE. A row with an error instead of a caption is such a photo.
- Of **several captions** for one photo the first counts.
- Captions of photos **without references** are not scored.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.data.annotations import Example, read_text
from captioner.errors import DataError
from captioner.evaluation.caption_metrics import CaptionQuality, measure_quality

_ID_KEYS = ("image_id", "id", "cocoid", "imgid")
_NAME_KEYS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path")
_DELIMITERS = ",;\t"
_SHOWN = 3  # examples in a message


@dataclass(frozen=True)
class ResultRow:
    """One row of a file of results.

    Attributes:
        image_id: The photo's id, if the row has one.
        name: The photo's file name, if the row has one.
        caption: Its caption; None if the row has an error instead.
    """

    image_id: int | str | None
    name: str | None
    caption: str | None

    def __str__(self) -> str:
        return str(self.image_id if self.name is None else self.name)


@dataclass(frozen=True)
class Matching:
    """Which caption belongs to which photo of the references.

    Attributes:
        captions: One per photo, in the order of the references; None where there is none.
        missing: Ids of the photos without a caption.
        unknown: Rows whose photo has no references.
        repeated: Rows for a photo that has a caption already.
    """

    captions: list[str | None] = field(repr=False)
    missing: list[int | str]
    unknown: list[str]
    repeated: list[str]

    @property
    def complete(self) -> bool:
        """Whether every photo has a caption."""
        return not self.missing

    def lines(self) -> list[str]:
        """What did not fit, in sentences with examples."""
        lines = []
        if self.missing:
            count = f"{len(self.missing):,} of {len(self.captions):,} photos have no caption"
            lines.append(f"{count} (this lowers the scores): {_some(self.missing)}")
        if self.unknown:
            count = f"{len(self.unknown):,} not scored, without references"
            lines.append(f"{count}: {_some(self.unknown)}")
        if self.repeated:
            count = f"{len(self.repeated):,} not scored, the photo has an earlier caption"
            lines.append(f"{count}: {_some(self.repeated)}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything but the captions, as JSON can hold it."""
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
        """The figures as text for a terminal, after what did not fit."""
        return "\n".join([*self.matching.lines(), self.quality.table()])

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON can hold them."""
        return {**self.quality.to_dict(), **self.matching.to_dict()}


def score_results(
    path: str | os.PathLike[str], examples: Sequence[Example], **options: Any
) -> ResultsEvaluation:
    """Score a file of results.

    Args:
        path: The file.
        examples: Photos with their references; the photos themselves need not exist
            (:func:`~captioner.data.annotations.read_captions` with `missing="ignore"`).
        **options: `objects`, `training` and `official` of
            :func:`~.quality.measure_quality`.

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
    """Read COCO results JSON, JSONL or CSV.

    Raises:
        DataError: The file is none of these, or a row has no caption or does not name its photo;
            the message names the row.
    """
    source = Path(path)
    text = read_text(source)
    start = text.lstrip()[:1]
    if start == "[":
        records = _json_records(text, source)
    elif start == "{":
        records = _line_records(text, source)
    else:
        records = _csv_records(text, source)
    return [_row(record, where) for where, record in records]


def match_results(
    rows: Sequence[ResultRow], examples: Sequence[Example], source: str = "the results"
) -> Matching:
    """Find the photo of each row, by file name or by id.

    A file name fits if it is that of one photo, folders apart. Ids fit as text: 7 is "7". If the
    references name no files, the number that a file name ends in is taken as the id, as in
    `COCO_val2014_000000000042.jpg`.

    Args:
        rows: The captions.
        examples: The photos.
        source: What to call the rows in messages.

    Raises:
        DataError: No row fits, or a row's name and id are of two photos.
    """
    photos = _Photos(examples)
    captions: list[str | None] = [None] * len(examples)
    unknown, repeated = [], []
    for row in rows:
        place = photos.find(row)
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
            f"their ids are like {theirs!r}, its photos are {_some(list(map(str, rows))) or 'none'}"
        )
    pairs = zip(examples, captions, strict=True)
    missing = [example.image_id for example, caption in pairs if caption is None]
    return Matching(captions, missing, unknown, repeated)


class _Photos:
    """Finds the place of a photo among the references."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_id = {str(example.image_id): i for i, example in enumerate(examples)}
        names = [os.path.basename(example.image) for example in examples]
        count = Counter(names)
        self._by_path = {example.image: i for i, example in enumerate(examples) if example.image}
        self._by_name = {name: i for i, name in enumerate(names) if name and count[name] == 1}
        self._named = any(names)

    def find(self, row: ResultRow) -> int | None:
        by_id = None if row.image_id is None else self._by_id.get(str(row.image_id))
        by_name = self._find_name(row.name) if row.name else None
        if by_id is not None and by_name is not None and by_id != by_name:
            raise DataError(
                f"the row of {row.name} has the id {row.image_id}, which is another photo in the "
                "references: leave out the wrong one of the two columns"
            )
        return by_id if by_name is None else by_name

    def _find_name(self, name: str) -> int | None:
        if name in self._by_path:
            return self._by_path[name]
        base = re.split(r"[/\\]", name)[-1]
        if self._named:
            return self._by_name.get(base)
        number = re.fullmatch(r"(?:.*_)?0*(\d+)", os.path.splitext(base)[0])
        return self._by_id.get(number[1]) if number else None


def _json_records(text: str, source: Path) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(text)
    except ValueError as error:
        raise DataError(f"{source}: damaged JSON ({error})") from error
    for number, record in enumerate(records):
        yield f"{source}, entry {number}", record


def _line_records(text: str, source: Path) -> Iterator[tuple[str, Any]]:
    # Not splitlines: it would also cut at the line separators that a JSON string may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{source}, line {number}", json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{source}, line {number}: not JSON ({error}); expected COCO results, "
                    "one JSON object a line, or CSV"
                ) from error


def _csv_records(text: str, source: Path) -> Iterator[tuple[str, Any]]:
    first = text.split("\n", 1)[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=first.count))
    try:
        header = [cell.strip().lower() for cell in next(rows, [])]
        if "caption" not in header:
            raise DataError(
                f"{source}: expected COCO results JSON, JSONL, or CSV with a header that has "
                "'caption' and 'image' or 'image_id'"
            )
        for cells in rows:
            if any(cells):
                record: dict[str, Any] = dict(zip(header, cells, strict=False))
                if record.get("error"):
                    record.pop("caption", None)  # an empty cell beside an error, or a short row
                yield f"{source}, line {rows.line_num}", record
    except csv.Error as error:
        raise DataError(f"{source}, line {rows.line_num}: {error}") from error


def _row(record: Any, where: str) -> ResultRow:
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with 'caption' and 'image' or 'image_id'")
    given = {key: value for key, value in record.items() if value not in (None, "")}
    image_id = next((given[key] for key in _ID_KEYS if key in given), None)
    name = next((given[key] for key in _NAME_KEYS if isinstance(given.get(key), str)), None)
    if image_id is None and name is None:
        raise DataError(f"{where}: it does not name its photo: expected 'image' or 'image_id'")
    caption = record.get("caption")
    if not isinstance(caption, str) and not (caption is None and given.get("error")):
        raise DataError(f"{where}: 'caption' must be text, not {caption!r}")
    return ResultRow(image_id if isinstance(image_id, int) else _text(image_id), name, caption)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _some(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
