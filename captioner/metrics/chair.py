"""CHAIR: how often captions name objects that are not there (Rohrbach et al. 2018).

An object is there if COCO's annotations have its category in the photo, or if one of the photo's
reference captions names it. CHAIR_i is the share of the objects named that are not there, CHAIR_s
the share of captions that name at least one such object; lower is better, 0 to 1. Both reward
silence: a caption that names nothing is never wrong.

Which words name an object is decided by `captioner.metrics.coco_categories`, a table that keeps
silent where a word has two readings. It finds fewer objects than the table of the authors, in
captions and references alike: figures may be too low, and must not be set beside published ones.
Figures of two models by this table can be compared.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.metrics.coco_categories import CATEGORIES, name_categories
from captioner.metrics.ngrams import Words

_SHOWN = 3  # categories in a table


@dataclass(frozen=True)
class Hallucination:
    """What was found; NaN where no object is named or no photo is annotated.

    Attributes:
        chair_i: Objects named that are not there, over objects named.
        chair_s: Captions with such an object, over captions.
        photos: Photos that were measured: those with annotations, left-out ones not counted.
        named: Objects named in their captions, repetitions counted.
        hallucinated: How many of those are not there.
        by_category: For every category that is named: (named, hallucinated).
        per_photo: For every photo the categories named that are not there; None for a photo that
            was not measured.
    """

    chair_i: float
    chair_s: float
    photos: int
    named: int
    hallucinated: int
    by_category: dict[str, tuple[int, int]]
    per_photo: list[tuple[str, ...] | None] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON can hold them; NaN becomes None."""
        return {
            "chair_i": None if math.isnan(self.chair_i) else self.chair_i,
            "chair_s": None if math.isnan(self.chair_s) else self.chair_s,
            "photos": self.photos,
            "named": self.named,
            "hallucinated": self.hallucinated,
            "by_category": {name: list(counts) for name, counts in self.by_category.items()},
        }

    def rows(self) -> list[tuple[str, str]]:
        """Names and figures for a table."""
        worst = sorted(self.by_category.items(), key=lambda item: -item[1][1])[:_SHOWN]
        most = ", ".join(f"{name} {wrong}" for name, (_, wrong) in worst if wrong)
        where = f"in {self.photos:,} photos" + (f"; most often {most}" if most else "")
        return [
            ("CHAIR_i", f"{_percent(self.chair_i)} of {self.named:,} objects named {where}"),
            ("CHAIR_s", f"{_percent(self.chair_s)} of the captions name one that is not there"),
        ]


def measure_hallucination(
    candidates: Sequence[Words | None],
    references: Sequence[Sequence[Words]],
    objects: Sequence[Collection[str] | None],
) -> Hallucination:
    """CHAIR of the captions of a set of photos, one each.

    Args:
        candidates: Words of each photo's caption. None for a photo that was left out: it can name
            nothing wrong, so it is not measured.
        references: Words of each photo's references.
        objects: The categories annotated in each photo; None if it was not annotated.
    """
    named: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    per_photo: list[tuple[str, ...] | None] = []
    for words, captions, annotated in zip(candidates, references, objects, strict=True):
        if words is None or annotated is None:
            per_photo.append(None)
            continue
        there = set(annotated).union(*map(name_categories, captions))
        mentions = [category for category in name_categories(words) if category is not None]
        absent = [category for category in mentions if category not in there]
        named.update(mentions)
        wrong.update(absent)
        per_photo.append(tuple(dict.fromkeys(absent)))
    measured = [absent for absent in per_photo if absent is not None]
    total = named.total()
    return Hallucination(
        chair_i=wrong.total() / total if total else math.nan,
        chair_s=sum(map(bool, measured)) / len(measured) if measured else math.nan,
        photos=len(measured),
        named=total,
        hallucinated=wrong.total(),
        by_category={name: (count, wrong[name]) for name, count in named.most_common()},
        per_photo=per_photo,
    )


def read_objects(paths: Sequence[str | Path]) -> Mapping[int, frozenset[str]]:
    """The object categories annotated in each photo of COCO ``instances_*.json`` files.

    Crowd regions count: a crowd of people is people.

    Raises:
        DataError: A file cannot be read, is no instances file, or knows none of COCO's categories.
    """
    objects: dict[int, set[str]] = {}
    for path in paths:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            names = {entry["id"]: entry["name"] for entry in content["categories"]}
            for image in content["images"]:
                objects.setdefault(image["id"], set())
            for entry in content["annotations"]:
                objects.setdefault(entry["image_id"], set()).add(names[entry["category_id"]])
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a COCO instances file: {error!r}") from error
        if not set(CATEGORIES).intersection(names.values()):
            raise DataError(f"{path} has none of COCO's 80 object categories")
    return {image_id: frozenset(found) for image_id, found in objects.items()}


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"
