"""Parquet tables: images read from them, results written to them.

The images are a column of paths, of image bytes, or of `{bytes, path}` structs; the last is how
Hugging Face datasets store them. A table is read a few rows at a time, row group by row group, so
memory stays flat however large the file is: one page of a column is held at a time, which with some
writers is a thousand images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.batch.item import Item
from captioner.batch.lists import list_item
from captioner.data.annotations import ImageFinder
from captioner.data.fields import ID_KEYS, NAME_KEYS
from captioner.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

PARQUET_SUFFIXES = (".parquet", ".pq")

_BYTES_KEYS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "image_data")
_URL_KEYS = ("url", "image_url", "image_link")
_ROWS = 16  # read at a time: images of ten megabytes are common
_BUFFER = 1 << 20  # bytes of a column to read ahead; the default is its whole row group
_GROUP_ROWS = 50_000
_GROUP_BYTES = 4 * 1024**2  # of JSON; attention maps take about ten times as much when converted


def read_parquet(
    path: str, image_root: str | None = None, column: str | None = None
) -> Iterator[Item]:
    """Yield the images of a table, in its order.

    An image that is listed by its path has that as its name. One whose bytes are in the table is
    named by the table's path column or the struct's `path`, else `file.parquet#row`, counted from
    0. A damaged row group becomes one error and is skipped.

    Args:
        path: The table.
        image_root: The folder that relative paths start from; None tries the table's own folder,
            then the working directory.
        column: The column with the images; None takes the first with a usual name and a suitable
            type, image bytes before paths.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    pa, pq = import_pyarrow()
    try:
        with (
            open(path, "rb") as file,
            pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table,
        ):
            reader = _RowReader(path, table.schema_arrow, image_root, column)
            start = 0
            for group in range(table.num_row_groups):
                end = start + table.metadata.row_group(group).num_rows
                yield from reader.read_group(table, group, start, end)
                start = end
    except DataError as error:
        yield Item(path, error=str(error))
    except (OSError, pa.ArrowException) as error:
        yield Item(path, error=f"cannot read this table: {_one_line(error)}")


def count_rows(path: str, image_root: str | None = None) -> Iterator[Item]:
    """Yield as many empty items as `read_parquet` yields images, from the table's footer alone."""
    pa, pq = import_pyarrow()
    try:
        with open(path, "rb") as file:
            rows = pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException):
        rows = 1  # `read_parquet` yields the error
    row = Item("")
    for _ in range(rows):
        yield row


def import_pyarrow() -> tuple[Any, Any]:
    """Return the modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        ConfigError: They are not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(
            "Parquet needs the package pyarrow: pip install 'captioner[parquet]'"
        ) from None
    return pa, pq


class _RowReader:
    """Finds the columns of a table and turns its rows into items.

    Raises:
        DataError: No column holds images.
    """

    def __init__(self, path: str, schema: pa.Schema, image_root: str | None, column: str | None):
        self.path = path
        self.finder = ImageFinder(path, image_root, cwd=True)
        columns = {name: schema.field(name).type for name in schema.names}
        self.image = _image_column(columns, column)
        self.is_path = _kind(columns[self.image]) == "path"
        self.name = self.image if self.is_path else _first(columns, NAME_KEYS, "path")
        self.id = _first(columns, ID_KEYS, "path", "number")
        used = (self.image, self.name, self.id)
        self.columns = list(dict.fromkeys(name for name in used if name is not None))

    def read_group(self, table: pq.ParquetFile, group: int, start: int, end: int) -> Iterator[Item]:
        """Yield the images of a row group, which holds rows `start` to `end`."""
        pa, _ = import_pyarrow()
        row = start
        try:
            for batch in table.iter_batches(_ROWS, [group], self.columns, use_threads=False):
                for index in range(batch.num_rows):
                    yield self._item(batch, index, f"{self.path}#{row}")
                    row += 1
        except (OSError, pa.ArrowException) as error:
            where = f"damaged: rows {row:,} to {end - 1:,} are lost ({_one_line(error)})"
            yield Item(f"{self.path}#{row}", error=where)

    def _item(self, batch: pa.RecordBatch, index: int, where: str) -> Item:
        """Return the image of one row."""
        try:
            values = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
        except UnicodeDecodeError:
            return Item(where, error="its path is not UTF-8")
        image, number = values[self.image], values.get(self.id)
        name = None if self.is_path else values.get(self.name)
        if isinstance(image, dict):
            name = name or image.get("path")
            image = image.get("bytes")
            if image is None and name:
                image = name  # its bytes are in that file
        if image is None or image == "":
            return Item(name or where, id=number, error="no photo in this row (null)")
        if isinstance(image, bytes):
            return Item(name or where, image, number)
        if "://" in image[:10]:
            return Item(image, id=number, error="a web address: download the photo first")
        return list_item(image, number, self.finder)


def _image_column(columns: dict[str, pa.DataType], chosen: str | None) -> str:
    """Return the column that holds images.

    Raises:
        DataError: None does, or the chosen one is missing or holds something else.
    """
    listed = ", ".join(columns)
    if chosen is not None:
        if chosen not in columns:
            raise DataError(f"no column {chosen!r}; its columns are {listed}")
        if _kind(columns[chosen]) not in ("path", "bytes", "struct"):
            raise DataError(
                f"column {chosen!r} holds {columns[chosen]}: neither paths, nor image bytes, "
                "nor structs of bytes and path"
            )
        return chosen
    found = _first(columns, _BYTES_KEYS, "bytes", "struct") or _first(columns, NAME_KEYS, "path")
    if found is not None:
        return found
    if url := _first(columns, _URL_KEYS, "path"):
        raise DataError(
            f"column {url!r} holds web addresses: download the photos first (img2dataset does), "
            "or name a column of paths or bytes with --column"
        )
    raise DataError(f"no column of photos found: name one with --column, of {listed}")


def _first(columns: dict[str, pa.DataType], names: tuple[str, ...], *kinds: str) -> str | None:
    """Return the first column with one of the names (in any case) and a suitable kind."""
    for name in names:
        for column, kind in columns.items():
            if column.lower() == name and _kind(kind) in kinds:
                return column
    return None


def _kind(data_type: pa.DataType) -> str:
    """Return the kind of a type: `path`, `bytes`, `struct` (of these), `number` or nothing."""
    from pyarrow import types

    if types.is_dictionary(data_type):
        data_type = data_type.value_type
    text = (types.is_string, types.is_large_string, types.is_string_view)
    raw = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    if any(test(data_type) for test in text):
        return "path"
    if any(test(data_type) for test in raw):
        return "bytes"
    if types.is_integer(data_type):
        return "number"
    if types.is_struct(data_type):
        fields = {field.name: _kind(field.type) for field in data_type}
        if fields.get("bytes") == "bytes":
            return "struct"
    return ""


def _one_line(error: Exception) -> str:
    """Return the first line of pyarrow's message, or the file system's own words."""
    if isinstance(error, OSError) and error.strerror and error.errno:
        return error.strerror
    return next(iter(str(error).splitlines()), type(error).__name__)


def write_parquet(rows: Path, target: Path) -> None:
    r"""Make a Parquet table of a JSON Lines file of results.

    A Parquet file is unreadable before its footer is written, so it cannot grow durably: results
    are collected as JSON Lines, and become the table at the end, some megabytes at a time.

    The columns are the fields of the rows: `image`, `caption`, `score`, `words`, `log_probs`,
    `finished`, `error`, and where any row has them `id` (64-bit integers, or text if any id is
    text), `candidates` (structs of `caption` and `score`) and `attention` (words × rows × columns
    of fp32). A field that a row lacks is null; bytes of a file name that are not UTF-8 are escaped
    as `\udcNN`.

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


def _schema(rows: Path) -> pa.Schema:
    """Return the columns that the rows need."""
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
    """Yield the rows, one row group at a time."""
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
    """Return text as valid UTF-8, with lone surrogates escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
