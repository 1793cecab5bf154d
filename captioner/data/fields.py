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

_SENTENCE_KEYS = ("raw", "caption", "text")  # of an object that holds one caption
_SPLIT_KEYS = ("split", "subset", "partition")
_CAPTION_KINDS = ("caption", "sentence", "comment", "text", "description", "raw")
"""Fields with captions; where a row has several kinds, the first counts."""

CAPTION_FIELD = re.compile(rf"({'|'.join(_CAPTION_KINDS)})s?([_.]?\d+)?")
# How tables, pandas and spreadsheets write a missing value.
_MISSING = frozenset(
    {"nan", "-nan", "none", "null", "<na>", "na", "n/a", "#n/a", "#na", "nat", "undefined"}
)
_WRAPPED = re.compile(
    r"(?:(?:np|numpy)\.)?(?:array|list|tuple)\((.*?)(?:,\s*dtype=[^,()]+)?\)", re.DOTALL
)
_BYTES = re.compile(r"b('.*'|\".*\")", re.DOTALL)
_CUT_LIST = re.compile(r"""\[\s*(?:'[^']*'|"[^"]*")\s*,\s*['"][^\]]*""")


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
    """Return a text with its undecodable bytes (surrogate escapes) read as Windows-1252.

    Other lone surrogates, which JSON can hold and no file, become U+FFFD.
    """
    if text.isascii():
        return text
    text = re.sub(
        "[\udc80-\udcff]",
        lambda match: bytes([ord(match[0]) - 0xDC00]).decode("cp1252", "replace"),
        text,
    )
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


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
    if isinstance(value, list) and len(value) > 1 and isinstance(value[0], str):
        name, *texts = value  # ["a.jpg", "A dog."]
        value = {"image": name, "captions": texts[0] if len(texts) == 1 else texts}
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
        content = _parse_cell(value.strip())
        return ([value], 0) if content is None else _captions(content)
    if isinstance(value, dict):  # Karpathy's sentences; some copies of his files have words only
        if isinstance(value.get("tokens"), list) and "raw" not in value:
            return [" ".join(str(word) for word in value["tokens"])], 0
        key = next((key for key in _SENTENCE_KEYS if key in value), None)
        if key is not None:
            return _captions(value[key])
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


def _parse_cell(text: str) -> list[Any] | dict[str, Any] | None:
    """Return what a cell holds in JSON, or as Python or NumPy print it; None if it is prose.

    Raises:
        ValueError: It holds a part of a list.
    """
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1].strip()
    if _BYTES.fullmatch(text):
        text = f"[{text}]"
    if text[:1] + text[-1:] not in ("[]", "()", "{}"):
        if _CUT_LIST.fullmatch(text):
            raise ValueError("a list of captions that has lost its end")
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = _parse_printed(text)
    if isinstance(content, dict) and not any(key in content for key in (*_SENTENCE_KEYS, "tokens")):
        return None
    if (
        isinstance(content, list)
        and content
        and all(type(item) in (int, float) for item in content)
    ):
        return None  # a footnote, [1]
    return content if isinstance(content, (list, dict)) else None


def _parse_printed(text: str) -> Any:
    """Read `['a dog', "it's", None]`; NumPy leaves out the commas. Nothing is evaluated.

    Raises:
        ValueError: The list was printed in part.
    """
    items: list[Any] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.STRING:
                item = ast.literal_eval(token.string)
                items.append(item.decode("utf-8", "replace") if isinstance(item, bytes) else item)
            elif token.type == tokenize.NUMBER:
                items.append(ast.literal_eval(token.string))
            elif token.string in ("None", "nan", "NaN", "NA"):
                items.append(None)
            elif token.string == "..." and items:
                raise _CutError
            elif token.string.strip() not in (*"[](){},<>", ""):
                return _parse_literal(text)
    except _CutError:
        raise ValueError("a list of captions that was printed with '...', not in full") from None
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    return items


class _CutError(Exception):
    """A list of which a part is missing."""


def _parse_literal(text: str) -> Any:
    """Read `[{'raw': 'A dog.', 'tokens': ['a', 'dog']}]`; None if the text is something else."""
    if "{" not in text[:2]:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def some(names: Iterable[object], shown: int = 3) -> str:
    """Return a few names of many, for a message."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:shown]) + (", ..." if len(texts) > shown else "")
