"""Captions in: COCO JSON, Karpathy JSON (`dataset_*.json`) or JSONL, told apart by their content.

Karpathy's files hold all splits of a data set: `{"images": [{"filename", "split", "sentences":
[{"raw"}], "imgid" or "cocoid", "filepath"}]}` (Karpathy and Fei-Fei 2015, arXiv 1412.2306). A JSONL
file has one photo per line: `{"image": "a.jpg", "captions": ["A dog.", ...], "split": "train"}`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioner.data.coco import coco_examples
from captioner.data.examples import (
    Example,
    Missing,
    choose_split,
    clean_captions,
    find_images,
    read_text,
)
from captioner.errors import DataError


def read_captions(
    path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    split: str | None = None,
    *,
    missing: Missing = "error",
    restval_as_train: bool = True,
) -> list[Example]:
    """Read a caption file of any of the three formats.

    Args:
        path: The file.
        image_root: Folder of the photos; None looks in `images` beside the file, then beside it.
        split: Only this split; None takes all. A COCO file holds a single split, which gets this
            name (`train` for None).
        missing: `error`, `skip` to leave out photos that do not exist, or `ignore` not to look
            for them; then a COCO file need not name them.
        restval_as_train: Count Karpathy's `restval` photos as `train`, as is usual.

    Returns:
        One example per photo with captions, in the order of the file.

    Raises:
        DataError: The file is of none of these forms, has no such split, an id occurs twice, a line
            is wrong (the message has its number), or photos are missing.
    """
    path = Path(path)
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        if path.suffix == ".json" and not _is_object(text.lstrip().split("\n", 1)[0]):
            raise DataError(f"{path}: damaged JSON ({error})") from error
        content = None  # several lines: each must be JSON by itself
    images = content.get("images") if isinstance(content, dict) else None
    if images is not None and "annotations" in content:
        return coco_examples(content, path, image_root, split or "train", missing)
    first = images[0] if isinstance(images, list) and images else None
    if isinstance(first, dict) and "sentences" in first:
        examples = _karpathy(content, path, restval_as_train)
    elif content is None or (isinstance(content, dict) and images is None):
        examples = _jsonl(text, path, split or "train")
    else:
        raise DataError(
            f"{path}: not a caption file: expected COCO captions JSON ('images' and 'annotations'),"
            " Karpathy JSON ('images' with 'sentences') or JSONL ('image' and 'captions' a line)"
        )
    return find_images(choose_split(examples, path, split), path, image_root, missing)


def _karpathy(content: Mapping[str, Any], path: Path, restval_as_train: bool) -> list[Example]:
    examples = []
    for number, entry in enumerate(content["images"]):
        try:
            split = entry["split"]
            name = entry["filename"]
            examples.append(
                Example(
                    # COCO's photos lie in train2014 and val2014, Flickr's in one folder.
                    image=f"{entry['filepath']}/{name}" if entry.get("filepath") else name,
                    captions=clean_captions(_sentence(words) for words in entry["sentences"]),
                    split="train" if split == "restval" and restval_as_train else split,
                    image_id=entry["cocoid"] if "cocoid" in entry else entry.get("imgid", name),
                )
            )
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}: entry {number} of 'images': {reason}") from error
    return examples


def _sentence(sentence: Mapping[str, Any]) -> Any:
    """The caption as written; some re-distributed files keep its words only."""
    return sentence["raw"] if "raw" in sentence else " ".join(sentence["tokens"])


def _jsonl(text: str, path: Path, default_split: str) -> list[Example]:
    examples: list[Example] = []
    lines: dict[int | str, int] = {}  # image id -> its line
    # Not splitlines: it would also cut at the line separators that a JSON string may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise TypeError("expected an object with 'image' and 'captions'")
            if not isinstance(entry["image"], str) or not isinstance(entry["captions"], list):
                raise TypeError("'image' must be a string and 'captions' a list of strings")
            split = entry.get("split") or default_split  # tables write null where there is none
            if not isinstance(split, str):
                raise TypeError(f"'split' must be a string, not {split!r}")
            example = Example(
                image=entry["image"],
                captions=clean_captions(entry["captions"]),
                split=split,
                image_id=entry.get("image_id", entry["image"]),
            )
            first = lines.setdefault(example.image_id, number)
            if first != number:
                raise TypeError(f"{example.image_id} is on line {first} already")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}, line {number}: {reason}") from error
        examples.append(example)
    return examples


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
