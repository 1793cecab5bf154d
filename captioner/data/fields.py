"""What one entry of a list, a file of results or a captions file says: fields, values, ids.

Tools write the same facts under many names: `image`, `file_name`, `path`; `caption`, `text`,
`sentences`. Here they become a `Row`.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from captioner.image.io import IMAGE_SUFFIXES

NAME_KEYS = (
    *("image", "path", "file", "filename", "file_name", "filepath", "image_path", "image_name"),
    *("img", "img_path"),
)
"""Fields that name an image, those that count first; in lower case, blanks and hyphens as `_`."""

ID_KEYS = ("image_id", "id", "cocoid", "imgid", "img_id")
"""Fields with an image's id, those that count first."""

_SPLIT_KEYS = ("split", "subset", "partition")
_CAPTION_KINDS = ("caption", "sentence", "comment", "text", "description", "raw")
"""Fields with captions; where a row has several kinds, the first counts."""

CAPTION_FIELD = re.compile(rf"({'|'.join(_CAPTION_KINDS)})s?(_?\d+)?")
_MISSING = frozenset({"nan", "none", "null", "<na>"})  # how tables write a missing value


@dataclass(frozen=True)
class Row:
    """What one entry of a file says about an image.

    Attributes:
        place: `file:line`, or `file[entry]` in a JSON list; for messages.
        image: The image's file name as written.
        image_id: Its id.
        captions: Its captions as written, without missing values.
        missing: Number of missing captions: null, `nan`, `None`.
        split: The split it belongs to.
        complete: The entry has all captions of its image: a second one would be a mistake.
        failure: Why captioning the image has failed, in results.
        error: Why the entry cannot be used; then it says nothing else.
    """

    place: str
    image: str | None = None
    image_id: int | str | None = None
    captions: tuple[str, ...] = ()
    missing: int = 0
    split: str | None = None
    complete: bool = False
    failure: str | None = None
    error: str | None = None

    @property
    def captioned(self) -> bool:
        """Return whether the entry has a field for captions, be it empty."""
        return bool(self.captions or self.missing or self.complete)


def coco_image_id(name: str) -> int | None:
    """Return the image id in one of COCO's own file names, None for any other name.

    `COCO_val2014_000000000042.jpg` and `000000000042.jpg` are 42; `dog_42.jpg` has no id.
    """
    stem = os.path.splitext(re.split(r"[/\\]", name)[-1])[0]
    match = re.fullmatch(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})", stem)
    return int(match[1]) if match else None


def id_key(image_id: object) -> str:
    """Return an image id in the form by which ids are compared: `42.0` and `"000042"` are `42`."""
    text = str(image_id).strip()
    number = re.fullmatch(r"0*(\d+)(?:\.0+)?", text)
    return number[1] if number else text


def mend_text(text: str) -> str:
    """Return a text with its undecodable bytes (surrogate escapes) read as Windows-1252."""
    if text.isascii():
        return text
    return re.sub(
        "[\udc80-\udcff]",
        lambda match: bytes([ord(match[0]) - 0xDC00]).decode("cp1252", "replace"),
        text,
    )


def field_key(name: str) -> str:
    """Return the name of a field as `NAME_KEYS` and its like have it."""
    return re.sub(r"[\s-]+", "_", name.strip().strip('"').strip().lower())


def is_known_field(cell: str) -> bool:
    """Return whether a cell of a header names an image, an id or captions."""
    key = field_key(cell)
    return key in NAME_KEYS or key in ID_KEYS or bool(CAPTION_FIELD.fullmatch(key))


def is_image_name(text: str) -> bool:
    """Return whether a text ends as the name of an image file does."""
    return os.path.splitext(text.strip().strip('"'))[1].lower() in IMAGE_SUFFIXES


def read_entry(value: Any, place: str) -> Row:
    """Read one entry, whatever its fields are called."""
    if isinstance(value, str):
        return Row(place, value)
    if not isinstance(value, dict):
        return Row(place, error="expected an object with 'image', or a file name")
    record = {field_key(key): cell for key, cell in value.items() if isinstance(key, str)}
    image = next((name for key in NAME_KEYS if (name := _name(record.get(key)))), None)
    if record.get("filepath") and record.get("filename"):
        # Karpathy's COCO images lie in folders of their own.
        image = f"{record['filepath']}/{record['filename']}"
    image_id = next((found for key in ID_KEYS if (found := _id(record.get(key))) is not None), None)
    if image is None and isinstance(image_id, str) and is_image_name(image_id):
        image = image_id
    if image is None and image_id is None:
        given = ", ".join(map(repr, value)) or "nothing"
        return Row(place, error=f"no image named: expected 'image' or 'image_id' in {given}")
    split = next((found for key in _SPLIT_KEYS if (found := record.get(key))), None)
    if split is not None and not isinstance(split, str):
        return Row(place, error=f"'split' must be a string, not {split!r}")
    failure = record.get("error")
    texts = [record[key] for key in _caption_keys(record)]
    captions: list[str] = []
    missing = 0
    try:
        for text in texts:
            some_captions, lost = _captions(text)
            captions += some_captions
            missing += lost
    except ValueError as error:
        return Row(place, error=str(error))
    if len(texts) > 1:  # columns that this image does not use
        captions = [caption for caption in captions if caption.strip()] or captions[:1]
        missing = 0 if captions else min(missing, 1)
    return Row(
        place,
        image,
        image_id,
        tuple(captions),
        missing,
        None if split is None or _is_missing(split) else split.strip() or None,
        complete=any(isinstance(text, list) for text in texts),
        failure=str(failure) if failure else None,
    )


def _name(value: Any) -> str | None:
    if isinstance(value, dict):  # Hugging Face's struct of bytes and path
        value = value.get("path")
    return value if isinstance(value, str) and value.strip() else None


def _id(value: Any) -> int | str | None:
    if isinstance(value, float) and value.is_integer():  # from a table with gaps
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return None if isinstance(value, str) and (not value.strip() or _is_missing(value)) else value


def _caption_keys(record: Mapping[str, Any]) -> list[str]:
    """Return the fields with captions, all of the kind that counts first."""
    kinds: dict[str, list[str]] = {}
    for key in record:
        if match := CAPTION_FIELD.fullmatch(key):
            kinds.setdefault(match[1], []).append(key)
    return kinds[min(kinds, key=_CAPTION_KINDS.index)] if kinds else []


def _captions(value: Any) -> tuple[list[str], int]:
    """Return the captions in one field and how many are missing.

    Raises:
        ValueError: It holds something else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return [], 1
    if isinstance(value, str):
        if _is_missing(value):
            return [], 1
        items = _parse_list(value)
        return ([value], 0) if items is None else _captions(items)
    if isinstance(value, dict):  # Karpathy's sentences; some copies of his files have words only
        if isinstance(value.get("tokens"), list) and "raw" not in value:
            return [" ".join(str(word) for word in value["tokens"])], 0
        sentence = next((value[key] for key in ("raw", "caption", "text") if key in value), None)
        if isinstance(sentence, str):
            return [sentence], 0
    if isinstance(value, list):
        captions: list[str] = []
        missing = 0
        for item in value:
            if isinstance(item, list):
                raise ValueError(f"a caption must be a string, not {item!r}")
            text = isinstance(item, str) and not _is_missing(item)
            found, lost = ([item], 0) if text else _captions(item)
            captions += found
            missing += lost
        return captions, missing
    raise ValueError(f"a caption must be a string, not {value!r}")


def _is_missing(text: str) -> bool:
    return text.strip().lower() in _MISSING


def _parse_list(text: str) -> list[Any] | None:
    """Return the captions in a cell that holds a list in JSON, or as Python or NumPy print it."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = _parse_printed(text)
    if isinstance(content, list) and all(item is None or isinstance(item, str) for item in content):
        return content
    return None


def _parse_printed(text: str) -> list[Any] | None:
    """Read `['a dog', "it's", None]`; NumPy leaves out the commas. Nothing is evaluated."""
    items: list[Any] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.STRING:
                items.append(ast.literal_eval(token.string))
            elif token.string in ("None", "nan"):
                items.append(None)
            elif token.string.strip() not in ("[", "]", ",", ""):
                return None
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    return items


def some(names: Iterable[object], shown: int = 3) -> str:
    """Return a few names of many, for a message."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:shown]) + (", ..." if len(texts) > shown else "")
