"""Results as a Parquet table, made of the JSON Lines that a run has kept.

A Parquet file is nothing before its footer is written, so it cannot grow durably: the rows do, in a
file beside it, and become the table at the end, some megabytes of them at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.batch.formats import to_json
from captioner.batch.parquet import import_pyarrow

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_ROWS = 50_000
_GROUP_BYTES = 4 * 1024**2  # of JSON; attention maps take some ten times as much while converted
_ROWS = 64  # read back at a time


def write_parquet(rows: Path, target: Path) -> None:
    r"""Make a Parquet table of a JSON Lines file of results.

    The columns are the fields of the rows: ``image``, ``caption``, ``score``, ``words``,
    ``log_probs``, ``finished``, ``error``, and where any row has them ``id`` (64-bit integers, or
    text if any id is text), ``candidates`` (structs of ``caption`` and ``score``) and ``attention``
    (words × rows × columns of fp32). A field that a row lacks is null; bytes of a file name that
    are not UTF-8 are escaped as ``\udcNN``.

    Args:
        rows: As `formats.JsonLinesFormat` writes them.
        target: The table.

    Raises:
        OSError: The table cannot be written.
    """
    pa, pq = import_pyarrow()
    schema = _schema(rows)
    with open(target, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(rows, "id" in schema.names and schema.field("id").type == pa.string()):
            writer.write_table(pa.Table.from_pylist(group, schema))


def read_rows(table: Path) -> Iterator[str]:
    """The JSON Lines that a table was made of by `write_parquet`.

    Raises:
        ValueError: It is no table, or damaged.
    """
    pa, pq = import_pyarrow()
    try:
        with open(table, "rb") as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    filled = {name: value for name, value in row.items() if value is not None}
                    yield to_json(filled) + "\n"
    except pa.ArrowException as error:
        raise ValueError(error) from None


def _schema(rows: Path) -> pa.Schema:
    """The columns that the rows need."""
    pa, _ = import_pyarrow()
    ids: set[bool] = set()  # whether they fit 64 bits
    nested = set()
    with open(rows, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            row = json.loads(line)
            if "id" in row:
                ids.add(type(row["id"]) is int and abs(row["id"]) < 2**63)
            nested |= row.keys() & {"candidates", "attention"}
    fields: dict[str, Any] = {"image": pa.string()}
    if ids:
        fields["id"] = pa.string() if False in ids else pa.int64()
    fields |= {
        "caption": pa.string(),
        "score": pa.float64(),
        "words": pa.list_(pa.string()),
        "log_probs": pa.list_(pa.float64()),
        "finished": pa.bool_(),
    }
    if "candidates" in nested:
        candidate = pa.struct({"caption": pa.string(), "score": pa.float64()})
        fields["candidates"] = pa.list_(candidate)
    if "attention" in nested:
        fields["attention"] = pa.list_(pa.list_(pa.list_(pa.float32())))
    fields["error"] = pa.string()
    return pa.schema(fields)


def _groups(rows: Path, text_ids: bool) -> Iterator[list[dict[str, Any]]]:
    """The rows, as many at a time as become one row group."""
    group: list[dict[str, Any]] = []
    size = 0
    with open(rows, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            row = json.loads(line)
            row["image"] = _valid(row["image"])
            if "error" in row:
                row["error"] = _valid(row["error"])
            if text_ids and "id" in row:
                row["id"] = _valid(str(row["id"]))
            group.append(row)
            size += len(line)
            if len(group) == _GROUP_ROWS or size > _GROUP_BYTES:
                yield group
                group, size = [], 0
    if group:
        yield group


def _valid(text: str) -> str:
    """Text that is valid UTF-8, lone surrogates escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
