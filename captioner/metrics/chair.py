"""CHAIR: how often captions name objects that are not there (Rohrbach et al. 2018).

An object is there if COCO's annotations have its category in the image, or if one of the image's
reference captions names it. CHAIR_i is the share of the objects named that are not there, CHAIR_s
the share of captions that name at least one such object; lower is better, 0 to 1. Both reward
silence: a caption that names nothing is never wrong.

Names of objects and rules for pairs of words are those of the authors' program
(github.com/LisaAnne/Hallucination), so that figures can be set beside published ones. What differs:
words are split by `captioner.tokenizer`, and plurals are recognised for the listed names only, by
rule. Names in the authors' list that their program can never match are left out of
`chair_synonyms.txt`: "motor bike", "cheesecake", "iPhone", "stove top oven".
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from captioner.metrics.coco_categories import plural
from captioner.metrics.ngrams import Words
from captioner.utils.formatting import json_value, percent

_SHOWN = 3  # categories in a table

_PAIRS = (
    "motor bike,motor cycle,air plane,traffic light,street light,traffic signal,stop light,"
    "fire hydrant,stop sign,parking meter,suit case,sports ball,baseball bat,baseball glove,"
    "tennis racket,wine glass,hot dog,cell phone,mobile phone,teddy bear,hair drier,potted plant,"
    "laptop computer,home plate,train track"
)
# "Baby" and "passenger" before these name no person.
_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub"
_VEHICLES = "jet train"
_IRREGULAR = {
    **{"people": "person", "children": "child", "grandchildren": "grandchild", "mice": "mouse"},
    **{"geese": "goose", "calves": "calf", "thieves": "thief", "knives": "knife"},
    **{"pocketknives": "pocketknife", "men": "man", "women": "woman", "policemen": "policeman"},
    **{"gentlemen": "gentleman", "servicemen": "serviceman"},
}


@dataclass(frozen=True)
class Hallucination:
    """The figures of a set of captions; NaN where no object is named or no image is annotated.

    Attributes:
        chair_i: Objects named that are not there, over objects named.
        chair_s: Captions with such an object, over captions.
        images: Images measured: those with annotations and a caption.
        named: Objects named in their captions, repetitions counted.
        hallucinated: How many of those are not there.
        by_category: For every category that is named: (named, hallucinated).
        per_image: For every image the categories named that are not there; None for an image that
            was not measured.
    """

    chair_i: float
    chair_s: float
    images: int
    named: int
    hallucinated: int
    by_category: dict[str, tuple[int, int]]
    per_image: list[tuple[str, ...] | None] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them; NaN becomes None."""
        return {
            "chair_i": json_value(self.chair_i),
            "chair_s": json_value(self.chair_s),
            "photos": self.images,
            "named": self.named,
            "hallucinated": self.hallucinated,
            "by_category": {name: list(counts) for name, counts in self.by_category.items()},
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return names and figures for a table."""
        worst = sorted(self.by_category.items(), key=lambda item: -item[1][1])[:_SHOWN]
        most = ", ".join(f"{name} {wrong}" for name, (_, wrong) in worst if wrong)
        where = f"in {self.images:,} photos" + (f"; most often {most}" if most else "")
        return [
            ("CHAIR_i", f"{percent(self.chair_i)} of {self.named:,} objects named {where}"),
            ("CHAIR_s", f"{percent(self.chair_s)} of the captions name one that is not there"),
        ]


def measure_hallucination(
    candidates: Sequence[Words | None],
    references: Sequence[Sequence[Words]],
    objects: Sequence[Collection[str] | None],
) -> Hallucination:
    """Measure CHAIR on one caption per image.

    Args:
        candidates: Words of each image's caption. None for an image without one: it can name
            nothing wrong, so it is not measured.
        references: Words of each image's references.
        objects: The COCO categories annotated in each image; None if it was not annotated.
    """
    named: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    per_image: list[tuple[str, ...] | None] = []
    for words, captions, annotated in zip(candidates, references, objects, strict=True):
        if words is None or annotated is None:
            per_image.append(None)
            continue
        there = set(annotated).union(*map(name_objects, captions))
        mentions = name_objects(words)
        absent = [category for category in mentions if category not in there]
        named.update(mentions)
        wrong.update(absent)
        per_image.append(tuple(dict.fromkeys(absent)))
    measured = [absent for absent in per_image if absent is not None]
    total = named.total()
    return Hallucination(
        chair_i=wrong.total() / total if total else math.nan,
        chair_s=sum(map(bool, measured)) / len(measured) if measured else math.nan,
        images=len(measured),
        named=total,
        hallucinated=wrong.total(),
        by_category={name: (count, wrong[name]) for name, count in named.most_common()},
        per_image=per_image,
    )


def name_objects(words: Words) -> list[str]:
    """Return the COCO category of every object that a caption names, in order.

    Args:
        words: One caption as `captioner.tokenizer.tokenize` gives it.
    """
    categories, pairs, singular = _tables()
    words = [singular.get(word, word) for word in words]
    names, start = [], 0
    while start < len(words):
        pair = pairs.get(" ".join(words[start : start + 2]))
        names.append(pair or words[start])
        start += 2 if pair else 1
    if "toilet" in names:  # "the seat of the toilet" is no chair
        names = [name for name in names if name != "seat"]
    return [categories[name] for name in names if name in categories]


@functools.cache
def _tables() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Return the category of each name, the name of each word pair, and the singulars."""
    text = files("captioner.metrics").joinpath("chair_synonyms.txt").read_text(encoding="utf-8")
    categories = {}
    for line in text.splitlines():
        names = line.split(", ")
        categories.update(dict.fromkeys(names, names[0]))
    pairs = {pair: pair for pair in _PAIRS.split(",")}
    pairs |= {f"{age} {name}": name for age in ("baby", "adult") for name in _ANIMALS.split()}
    pairs |= {f"passenger {name}": name for name in _VEHICLES.split()}
    pairs |= {"bow tie": "tie", "toilet seat": "toilet"}
    words = {word for name in (*categories, *pairs) for word in name.split()}
    plurals = {plural(word): word for word in words if plural(word) not in words}
    return categories, pairs, plurals | _IRREGULAR
