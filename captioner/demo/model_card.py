"""A model's card: what it is made of, how good it is, where it fails, its licence.

All of this comes from the record in the model file, except for licence and failures of the model
that ships with the package: no training can know these. The demo shows the card as HTML, and
`scripts/model_card.py` writes MODEL_CARD.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.checkpoint import Header

LICENCE = (
    "Apache-2.0, the code and the weights. Trained on Flickr8k (Hodosh et al. 2013) and a part of "
    "MS-COCO (captions CC BY 4.0), and the Pascal sentences (Rashtchian et al. 2010), starting "
    "from ImageNet weights of EfficientNet-Lite2 (Apache-2.0)."
)
FAILURES = (
    "It has seen few photos: people, dogs, sports and streets. "
    "Of other things it says the same few sentences.",
    "It guesses genders, and often guesses wrong.",
    "It counts badly.",
)
COMMON_FAILURES = (
    "It always says something, even about an empty wall, and names things that are not there.",
    "It knows only the words of its vocabulary: no names, no writing in the photo.",
)
SHOWN = "What photos of Flickr8k's validation split show, and what it wrote with a beam of 3:"
MISTAKES = (
    (
        "Empty seats of a ski lift in front of white mountains",
        "a person is standing on a pole in front of a building",
    ),
    (
        "The cockpit of a glider, seen by its pilot",
        "a man is sitting on a silver and one is holding a sign",
    ),
    (
        "A crowd watches a snowboarder do a trick",
        "a man in a blue shirt is standing in front of a crowd",
    ),
    ("A baby crawls over a wooden floor towards a bottle", "a young boy is jumping in the air"),
    ("A girl hits a volleyball on a field", "a young boy is playing with a soccer ball"),
    (
        "A young woman with short red hair, from close by",
        "a young boy wearing a red shirt is smiling",
    ),
)
# Of README.md; a test compares them.
VALIDATION = (
    (
        "Beam 3",
        "CIDEr-D 0.662 (0.623 to 0.703), BLEU-4 25.6 (24.2 to 27.1), BLEU-1 69.3, ROUGE-L 49.3",
    ),
    (
        "Beam 5",
        "CIDEr-D 0.666 (0.627 to 0.708), BLEU-4 26.1 (24.7 to 27.6), BLEU-1 69.8, ROUGE-L 49.4",
    ),
)
TEST = (
    ("BLEU-1, 2, 3, 4", "70.1, 51.8, 36.9, 25.5"),
    ("METEOR", "21.9"),
    ("ROUGE-L", "49.8"),
    ("CIDEr-D", "0.657"),
)
MEASURES = (
    "BLEU, METEOR, ROUGE-L and CIDEr-D measure how much a caption has in common with people's "
    "captions of the photo: the more, the better."
)
CHOSEN = (
    "On the 1,000 validation photos of Flickr8k; in brackets, 95 % intervals. With a beam of 3, "
    "the search follows three sentences at a time. The weights were chosen on these very photos, "
    "from about twenty-five runs and their means, so these figures flatter it:"
)
APART = (
    "On the 1,000 photos of Flickr8k's test split, which no training and no selection saw, by the "
    "official Java tools; of the model from whose further training these weights come:"
)
# Of docs/attention.md (scripts/attention_figures.py); a test compares them.
MEASURED = (
    ("Share of a map inside the outline of the object that its word names", "0.509", "0.184"),
    ("Maps whose brightest cell lies inside that outline", "0.652", "0.186"),
    (
        "Fall of a word's log-probability without the cells with most attention",
        "0.514",
        "0.043",
    ),
)
_METRICS = {
    "cider": "CIDEr-D",
    "bleu4": "BLEU-4",
    "bleu1": "BLEU-1",
    "rouge_l": "ROUGE-L",
}
_OTHERS = {
    "attention_entropy": "Entropy of the maps (1 is uniform)",
    "words": "Words a sentence",
}
_SHARES = ("bleu1", "bleu4", "rouge_l")  # shown in percent


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a card, as plain text.

    Attributes:
        title: Its heading.
        text: A paragraph.
        points: A list below it.
        rows: A table of names and values below it.
    """

    title: str
    text: str = ""
    points: tuple[str, ...] = ()
    rows: tuple[tuple[str, str], ...] = ()


def model_card(
    header: Header, parameters: int, grid: tuple[int, int], *, shipped: bool = False
) -> list[Section]:
    """Return the sections of a model's card.

    Args:
        header: Of the model file.
        parameters: Number of its weights.
        grid: Height and width of its attention maps.
        shipped: Whether it is the model of the package, whose licence and failures are known.
    """
    return [
        Section(title="What it is", text=_network(header, parameters, grid)),
        Section(title="What it learnt from", text=_data(header.record)),
        *(_own_figures() if shipped else [_figures(header.record)]),
        Section(title="Where it fails", points=(*(FAILURES if shipped else ()), *COMMON_FAILURES)),
        *([Section(title="Six of its mistakes", text=SHOWN, rows=MISTAKES)] if shipped else []),
        Section(
            title="Licence",
            text=LICENCE if shipped else "The model file names none: ask whoever trained it.",
        ),
    ]


def _network(header: Header, parameters: int, grid: tuple[int, int]) -> str:
    """Describe the network in two sentences."""
    config = header.config
    height, width = grid
    known = len(header.vocabulary)
    name = config.encoder.name.split("/")[-1]  # without its library's
    return (
        f"A convolutional network ({name}) reads the whole photo, squashed to "
        f"{config.encoder.image_size} × {config.encoder.image_size} pixels, into a grid of "
        f"{height} × {width} cells; an LSTM of {config.decoder.hidden} units writes the sentence "
        f"and looks at the grid before each word ({config.attention.kind.replace('_', '-')} "
        f"attention). {parameters / 1e6:.1f} million weights; a vocabulary of {known:,} words."
    )


def _data(record: Mapping[str, Any]) -> str:
    """Name the training data, as far as the record tells."""
    files = _at(record, "recipe", "data", "train")
    paths = [
        str(path)
        for file in (files if isinstance(files, list) else [])
        for path in (_at(file, "captions"), *(_at(file, "more_captions") or ()))
    ]
    names = dict.fromkeys(map(_data_set, paths))
    told = []
    if "training_photos" in record:
        told.append(f"{_number(record['training_photos'])} photos with their captions")
    if names:
        *others, last = names
        told.append("from " + " and ".join([", ".join(others), last] if others else [last]))
    text = " ".join(told) or "The model file does not tell"
    if "date" in record:
        text += f"; trained {record['date']}"
    return text[:1].upper() + text[1:] + "."


def _data_set(path: str) -> str:
    """Return the name of a data set: that of the folder that holds all of it."""
    whole = Path(path)
    if whole.is_absolute() or path.startswith(".."):
        return whole.parent.name
    return whole.as_posix().split("/")[0]


def _own_figures() -> list[Section]:
    """Return the figures of the shipped model, as README has them."""
    return [
        Section(title="How good it is", text=f"{MEASURES} {CHOSEN}", rows=VALIDATION),
        Section(title="Measured apart", text=APART, rows=TEST),
    ]


def _figures(record: Mapping[str, Any]) -> Section:
    """Return the validation figures."""
    title = "How good it is"
    found = record.get("validation")
    figures = found if isinstance(found, Mapping) else {}
    rows = {}
    for key, label in (_METRICS | _OTHERS).items():
        value = figures.get(key)
        if isinstance(value, (int, float)):
            shown = f"{100 * value:.1f}" if key in _SHARES else f"{value:.3g}"
            rows[key] = (label, shown)
    if not rows:
        return Section(title=title, text="The model file tells no figures.")
    images = record.get("validation_photos")
    beam = _at(record, "recipe", "validation", "beam")
    told = "Captions that it wrote freely" + (f" with beam {beam}" if beam else "")
    told += f" for {_number(images)} photos" if images else ""
    told += " that it was not trained on:"
    measures = f"{MEASURES} " if rows.keys() & _METRICS.keys() else ""
    return Section(title=title, text=measures + told, rows=tuple(rows.values()))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _at(value: Any, *keys: str) -> Any:
    """Look up a value deep inside a record; None if it is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
