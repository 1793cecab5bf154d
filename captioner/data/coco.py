"""COCO captions JSON, a list of photos and a list of captions that point to them.

`{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}`

Format: https://cocodataset.org/#format-data (caption annotations), read through pycocotools.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioner.data.examples import Example, Missing, clean_captions, find_images, read_json
from captioner.errors import DataError

logger = logging.getLogger(__name__)


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
