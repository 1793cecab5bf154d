"""Lists of images and captions in JSON: lines, or one document in any of the usual forms."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from captioner.data.fields import (
    NAME_KEYS,
    Row,
    field_key,
    id_key,
    is_image_name,
    is_known_field,
    read_entry,
)
from captioner.errors import DataError

logger = logging.getLogger(__name__)


def read_json(file: TextIO, path: str, first: str, lines: bool) -> Iterator[Row]:
    """Read JSON Lines or one JSON document.

    Args:
        file: Open behind its first line.
        path: Its name.
        first: That line.
        lines: The file's name promises JSON Lines.

    Raises:
        DataError: It is damaged, or a document of another form.
    """
    if not first and not lines:
        raise DataError(f"{path}: empty")
    content: Any = None
    try:
        content = json.loads(first)
        whole = True
    except (ValueError, RecursionError):
        whole = False
    second = next((line for line in file if line.strip()), "")
    if not (whole and second):
        # A document, or lines of which the first is damaged or the only one.
        try:
            content = content if whole else json.loads(first + second + file.read())
        except ValueError as error:
            if not lines and not _is_object(second):
                raise DataError(f"{path}: damaged JSON ({error})") from error
        else:
            if not (lines and isinstance(content, dict) and not _is_document(content)):
                yield from _read_document(content, path)
                return
    file.seek(0)
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                value = json.loads(line.lstrip("\ufeff"))  # of a file that was appended
            except (ValueError, RecursionError) as error:
                yield Row(place, error=f"not JSON ({error})")
            else:
                each = value if isinstance(value, list) and _are_objects(value) else [value]
                yield from (read_entry(entry, place) for entry in each)


def _are_objects(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_document(content: Mapping[str, Any]) -> bool:
    """Return whether an object holds many images, as COCO's does, or is `{"a.jpg": "A dog."}`."""
    lists = any(isinstance(content.get(key), list) for key in ("images", "annotations"))
    return lists or (bool(content) and all(map(is_image_name, content)))


def _read_document(content: Any, path: str) -> Iterator[Row]:
    """Read a whole JSON document."""
    if isinstance(content, dict):
        content = _unpack(content)
    if isinstance(content, dict):
        annotations = content.get("annotations")
        if isinstance(annotations, list) and not _name_images(annotations):
            yield from _read_coco(content, path)
            return
        content = content if annotations is None else annotations
    if isinstance(content, dict):
        if isinstance(content.get("images"), list):
            content = content["images"]
        elif _is_document(content):
            content = [{"image": name, "captions": text} for name, text in content.items()]
        elif any(map(is_known_field, content)):
            content = [content]
    if not isinstance(content, list):
        raise DataError(
            f"{path}: expected COCO JSON ('images' and 'annotations'), Karpathy JSON ('images' with"
            " 'sentences'), a list of objects with 'image', or one such object per line"
        )
    for number, value in enumerate(content):
        yield read_entry(value, f"{path}[{number}]")


def _unpack(content: Mapping[str, Any]) -> Any:
    """Turn what `DataFrame.to_json` writes, whatever its `orient`, into a list of objects.

    The table may also lie under `data`, as other tools have it. Anything else stays as it is.
    """
    data = content.get("data")
    if isinstance(data, list):  # `split` and `table`
        names = content.get("columns")
        if isinstance(names, list) and all(isinstance(row, list) for row in data):
            return [dict(zip(names, row, strict=False)) for row in data]
        return data if _are_objects(data) else content
    columns = {key: cells for key, cells in content.items() if field_key(key) in NAME_KEYS}
    rows = next(iter(columns.values()), None)
    if isinstance(rows, dict) and all(isinstance(cells, dict) for cells in content.values()):
        return [{key: cells.get(row) for key, cells in content.items()} for row in rows]
    if isinstance(rows, list) and all(
        isinstance(cells, list) and len(cells) == len(rows) for cells in content.values()
    ):
        return [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]
    return content


def _name_images(annotations: list[Any]) -> bool:
    """Return whether annotations name their images themselves, instead of by COCO's ids."""
    return bool(annotations) and all(
        isinstance(entry, dict)
        and "image_id" not in entry
        and any(isinstance(key, str) and field_key(key) in NAME_KEYS for key in entry)
        for entry in annotations
    )


def _read_coco(content: Mapping[str, Any], path: str) -> Iterator[Row]:
    """Read COCO captions (or COCO results in their form); ids of annotations are not looked at."""
    captions: dict[str, list[Any]] = {}
    ids: dict[str, Any] = {}
    for number, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict) or entry.get("image_id") is None:
            raise DataError(f"{path}: annotation {number} has no 'image_id'")
        key = id_key(entry["image_id"])
        ids.setdefault(key, entry["image_id"])
        if "caption" in entry:  # not in files of objects
            captions.setdefault(key, []).append(entry["caption"])
    images = content.get("images")
    if not isinstance(images, list):  # results
        images = [{"id": image_id} for image_id in ids.values()]
    listed = set()
    for number, entry in enumerate(images):
        place = f"{path}[{number}]"
        if not isinstance(entry, dict) or "id" not in entry:
            yield Row(place, error="expected an object with 'id' and 'file_name'")
            continue
        key = id_key(entry["id"])
        listed.add(key)
        yield read_entry({**entry, "captions": captions.get(key, [])}, place)
    strays = sum(len(captions[key]) for key in captions.keys() - listed)
    if strays:
        logger.warning("%s: left out %d caption(s) of images that it does not list", path, strays)
