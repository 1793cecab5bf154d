"""What Ray runs on its workers: tasks that read units of photos, actors that caption them.

A *unit* is what becomes one part file: an archive, a table, or a few thousand loose photos. Photos
travel in Arrow tables of `SCHEMA`, and results in tables of `RESULTS`. The last row of each unit
says how many there were, so that the other end knows when it has them all. Ray may run a task
again when a worker dies: rows are known by (unit, row), and the second time they are the same.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from captioner.batch.formats import JsonLinesFormat, to_json
from captioner.batch.item import Item
from captioner.batch.runner import caption_items
from captioner.batch.sources import open_sources
from captioner.errors import CaptionerError

SCHEMA = pa.schema(
    {
        "unit": pa.int64(),
        "row": pa.int64(),  # of the unit; of its end: the number of its photos
        "about": pa.string(),  # JSON: [name, source, id, error], or {name, path} of a file
        "data": pa.large_binary(),  # the photo itself, if the source is not a path
    }
)
STOPPED = -1
"""The unit of a row that tells why an actor cannot work: nor could any other."""

RESULTS = pa.schema({"unit": pa.int64(), "row": pa.int64(), "json": pa.string()})

_ROWS = 64  # read into a table at a time, and
_BYTES = 32 * 1024**2  # no more than this by much


class Photo(NamedTuple):
    """A row of `SCHEMA`: a photo of a unit, or with ``item=None`` the unit's end."""

    unit: int
    row: int
    item: Item | None


def encode_photos(photos: Iterable[Photo]) -> pa.Table:
    """Photos as a table."""
    rows = []
    for unit, row, item in photos:
        about = data = None
        if item is not None:
            source = item.source if isinstance(item.source, (str, os.PathLike)) else None
            if source is None:
                data = item.source
            else:
                source = os.path.abspath(source)  # a worker may have another working directory
            # Escaped, as JSON has it: a name may hold bytes that Arrow's UTF-8 cannot.
            about = json.dumps([item.name, source, item.id, item.error])
        rows.append({"unit": unit, "row": row, "about": about, "data": data})
    return pa.Table.from_pylist(rows, SCHEMA)


def encode_file(unit: int, path: str) -> pa.Table:
    """A file of photos, to be opened by `read_units`, as a table."""
    about = json.dumps({"name": path, "path": os.path.abspath(path)})
    return pa.Table.from_pylist([{"unit": unit, "row": 0, "about": about}], SCHEMA)


def decode_photos(table: pa.Table) -> list[Photo]:
    """The reverse of `encode_photos`."""
    photos = []
    for row in table.to_pylist():
        item = None
        if row["about"] is not None:
            name, source, number, error = json.loads(row["about"])
            item = Item(name, row["data"] if source is None else source, number, error)
        photos.append(Photo(row["unit"], row["row"], item))
    return photos


def read_units(table: pa.Table, **places: Any) -> Iterator[pa.Table]:
    """Open files of photos; loose photos go on as they are, their actor opens them.

    Args:
        table: Of one file (`encode_file`) or of loose photos (`encode_photos`).
        **places: Options of `open_sources`.

    Yields:
        Tables of photos, each of some megabytes.
    """
    first = table.slice(0, 1).to_pylist()[0]
    file = json.loads(first["about"] or "[]")
    if not isinstance(file, dict):
        yield table
        return
    unit, row = first["unit"], 0
    path = file["path"]
    waiting: list[Photo] = []
    size = 0
    for item in open_sources([path], **places):
        if item.name.startswith(path):  # photos inside are called by the path as it was given
            item = replace(item, name=file["name"] + item.name[len(path) :])
        waiting.append(Photo(unit, row, item))
        row += 1
        size += len(item.source) if isinstance(item.source, bytes) else 0
        if len(waiting) == _ROWS or size > _BYTES:
            yield encode_photos(waiting)
            waiting, size = [], 0
    yield encode_photos([*waiting, Photo(unit, row, None)])


class CaptionActor:
    """A process of Ray's with a model in it.

    Args:
        model: ``model``, ``device`` and ``precision``, as on the command line.
        threads: Of PyTorch.
        attention: Add the attention maps to the results.
        options: Of `caption_items`.
    """

    def __init__(
        self, model: argparse.Namespace, threads: int, attention: bool, options: dict[str, Any]
    ):
        import torch

        from captioner.cli.options import load_captioner

        torch.set_num_threads(threads)
        self.error: str | None = None
        try:
            self.captioner = load_captioner(model)
        except CaptionerError as error:  # raised, Ray would show pages of its own insides
            self.error = str(error)
        self.form = JsonLinesFormat(attention)
        self.options = options

    def __call__(self, table: pa.Table) -> pa.Table:
        """Caption a table of `SCHEMA` into one of `RESULTS`."""
        if self.error is None:
            try:
                return pa.Table.from_pylist(self._caption(decode_photos(table)), RESULTS)
            except CaptionerError as error:  # the device's memory is too small
                self.error = str(error)
        return pa.Table.from_pylist([{"unit": STOPPED, "row": 0, "json": self.error}], RESULTS)

    def _caption(self, photos: list[Photo]) -> list[dict[str, Any]]:
        items = (photo.item for photo in photos if photo.item is not None)
        results = caption_items(self.captioner, items, **self.options)
        rows = []
        for unit, row, item in photos:
            text = None
            if item is not None:
                text = to_json(self.form.row(*next(results)))
            rows.append({"unit": unit, "row": row, "json": text})
        return rows


def chunks(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items, the last one shorter."""
    while chunk := list(islice(items, size)):
        yield chunk
