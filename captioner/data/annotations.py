"""Captions in: COCO JSON, Karpathy JSON (`dataset_*.json`) or JSONL, told apart by their content.

Karpathy's files hold all splits of a data set: `{"images": [{"filename", "split", "sentences":
[{"raw"}], "imgid" or "cocoid", "filepath"}]}` (Karpathy and Fei-Fei 2015, arXiv 1412.2306). A JSONL
file has one photo per line: `{"image": "a.jpg", "captions": ["A dog.", ...], "split": "train"}`.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from captioner.errors import DataError

logger = logging.getLogger(__name__)

Missing = Literal["error", "skip", "ignore"]
"""What to do about photos that a caption file names and the disk does not have.

`ignore` does not look: only the captions are wanted, and names stay as the file has them.
"""

_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Example:
    """A photo and what people wrote about it.

    Attributes:
        image: Path of the image file.
        captions: Its captions as written (raw case and punctuation), in the order of the file.
        split: The split it belongs to, for example `train`, `val` or `test`.
        image_id: The id in the caption file (COCO: an integer), unique within one list.
    """

    image: str
    captions: tuple[str, ...]
    split: str
    image_id: int | str


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


def read_coco(
    annotations: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    split: str = "train",
    missing: Missing = "error",
) -> list[Example]:
    """Read a COCO captions file.

    Args:
        annotations: The JSON file, for example `captions_train2014.json`.
        image_root: Folder of the photos; None looks in `images` beside the file, then beside it.
        split: What to call the file's only split.
        missing: `error`, `skip` to leave out photos that do not exist, or `ignore` not to look
            for them; then the file need not name them.

    Returns:
        One example per photo with captions, in the order of the file's `images`.

    Raises:
        DataError: The file is not of this form, an id occurs twice, photos are missing.
    """
    return coco_examples(read_json(annotations), Path(annotations), image_root, split, missing)


def coco_examples(
    dataset: Mapping[str, Any],
    source: Path,
    image_root: str | os.PathLike[str] | None = None,
    split: str = "train",
    missing: Missing = "error",
) -> list[Example]:
    """The same as `read_coco` for a file that is parsed already; `source` is its path."""
    from pycocotools.coco import COCO  # here, since it is slow to import

    # pycocotools would open the file in the locale's encoding, and it prints its progress.
    coco = COCO()
    coco.dataset = dataset
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        ids = [image["id"] for image in dataset["images"]]
        examples = [
            Example(
                image=image.get("file_name", "") if missing == "ignore" else image["file_name"],
                captions=clean_captions(entry["caption"] for entry in coco.imgToAnns[image["id"]]),
                split=split,
                image_id=image["id"],
            )
            for image in dataset["images"]
        ]
        strays = len(coco.anns) - sum(len(coco.imgToAnns[image_id]) for image_id in set(ids))
        entries = len(dataset["annotations"])
    except (KeyError, TypeError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{source}: not a COCO captions file: {reason}") from error
    if len(coco.anns) < entries:
        raise DataError(f"{source}: {entries - len(coco.anns)} annotation id(s) occur twice")
    if strays:
        logger.warning("%s: left out %d caption(s) of photos that it does not list", source, strays)
    return find_images(examples, source, image_root, missing)


def find_images(
    examples: Iterable[Example],
    source: Path,
    image_root: str | os.PathLike[str] | None,
    missing: Missing = "error",
) -> list[Example]:
    """Check the examples of one file and replace the file names in them by paths that exist.

    Photos without captions are left out, with a warning.

    Args:
        examples: As the file has them: `image` is a file name, perhaps with folders.
        source: The caption file.
        image_root: Folder of the photos; None looks in `images` beside the file, then beside it.
            Only the last part of a name is looked for where the whole is not found.
        missing: `error`, `skip` to leave photos out that do not exist (with a warning), or
            `ignore` to leave all names as they are.

    Raises:
        DataError: An id occurs twice, photos are missing, or nothing is left.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing must be 'error', 'skip' or 'ignore', not {missing!r}")
    examples = list(examples)
    ids = Counter(example.image_id for example in examples)
    twice = [image_id for image_id, count in ids.items() if count > 1]
    if twice:
        raise DataError(f"{source}: {len(twice)} image id(s) occur more than once: {_some(twice)}")
    captioned = [example for example in examples if example.captions]
    if len(captioned) < len(examples):
        silent = [example.image for example in examples if not example.captions]
        logger.warning(
            "%s: left out %d photo(s) without a caption: %s", source, len(silent), _some(silent)
        )
    if not captioned:
        raise DataError(f"{source}: no photo with a caption in it")
    if missing == "ignore":
        return captioned
    beside = source.parent
    roots = [Path(image_root)] if image_root is not None else [beside / "images", beside]
    found, lost = [], []
    for example in captioned:
        path = _find(example.image, roots)
        if path is None:
            lost.append(example.image)
        else:
            found.append(Example(path, example.captions, example.split, example.image_id))
    if lost:
        places = " and ".join(str(root) for root in roots)
        message = f"{source}: {len(lost)} of {len(captioned)} photos not found: {_some(lost)}"
        if missing == "error" or not found:
            raise DataError(
                f"{message}; looked in {places}: name their folder by --images (in a recipe by"
                " images, below data.root; in Python by image_root, or leave them out with"
                " missing='skip')"
            )
        logger.warning("%s; looked in %s; left out", message, places)
    return found


def choose_split(examples: Sequence[Example], source: Path, split: str | None) -> list[Example]:
    """The examples of one split, or all of them for None.

    Raises:
        DataError: The file has no such split; the message lists those that it has.
    """
    chosen = [example for example in examples if split in (None, example.split)]
    if examples and not chosen:
        names = ", ".join(sorted({example.split for example in examples}))
        raise DataError(f"{source}: no split {split!r} in it, only {names}")
    return chosen


def read_text(path: str | os.PathLike[str]) -> str:
    """A caption file's text; UTF-8 whatever the locale is, with or without a byte-order mark.

    Raises:
        DataError: The file cannot be read or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{os.fspath(path)}: cannot read this caption file ({error})") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON file's content.

    Raises:
        DataError: The file cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{os.fspath(path)}: not a JSON file ({error})") from error


def clean_captions(captions: Iterable[Any]) -> tuple[str, ...]:
    """The captions without those that are empty, stripped of white space at both ends.

    Raises:
        TypeError: One of them is not a string.
    """
    captions = list(captions)
    for caption in captions:
        if not isinstance(caption, str):
            raise TypeError(f"a caption must be a string, not {caption!r}")
    return tuple(stripped for caption in captions if (stripped := caption.strip()))


def _find(name: str, roots: Sequence[Path]) -> str | None:
    """The path of an image file: root/folders/name, else root/name; absolute names as they are."""
    for tail in dict.fromkeys([name, Path(name).name]):
        for root in roots:
            path = os.path.join(root, tail)
            if os.path.isfile(path):
                return path
    return None


def _some(names: Sequence[object]) -> str:
    return ", ".join(str(name) for name in names[:_SHOWN]) + (
        ", ..." if len(names) > _SHOWN else ""
    )
