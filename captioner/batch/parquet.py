"""Photos in Parquet tables: a column of paths, of image bytes, or of ``{bytes, path}`` structs.

The last is how Hugging Face datasets store images. A table is read a few rows at a time, row group
by row group, so memory stays flat however large the file is: a page of a column is held at a time,
which with some writers is a thousand photos.
"""

from __future__ import annotations

from collections.abc import Iterator
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
_ROWS = 16  # read at a time: photos of ten megabytes are no rarity
_BUFFER = 1 << 20  # bytes of a column that are read ahead; by default its whole row group is


def read_parquet(
    path: str, image_root: str | None = None, column: str | None = None
) -> Iterator[Item]:
    """The photos of a table, in its order.

    A photo that is listed by its path is called by that; one whose bytes are in the table by what
    the table's path column, or the struct's ``path``, calls it, else ``file.parquet#row``, counted
    from 0. A row group that is damaged gives one error and is skipped.

    Args:
        path: The table.
        image_root: What relative paths are relative to; None tries the table's own folder, then
            the working directory.
        column: The column with the photos; None takes the first whose name is a usual one and
            whose type fits, image bytes before paths.

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
    """As many empty items as `read_parquet` gives photos, by the table's footer alone."""
    pa, pq = import_pyarrow()
    try:
        with open(path, "rb") as file:
            rows = pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException):
        rows = 1  # the error
    row = Item("")
    for _ in range(rows):
        yield row


def import_pyarrow() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``.

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
    """Finds the columns of a table and makes items of its rows.

    Raises:
        DataError: No column holds photos.
    """

    def __init__(self, path: str, schema: pa.Schema, image_root: str | None, column: str | None):
        self.path = path
        self.finder = ImageFinder(path, image_root, cwd=True)
        columns = {name: schema.field(name).type for name in schema.names}
        self.photo = _photo_column(columns, column)
        self.is_path = _kind(columns[self.photo]) == "path"
        self.name = self.photo if self.is_path else _first(columns, NAME_KEYS, "path")
        self.id = _first(columns, ID_KEYS, "path", "number")
        used = (self.photo, self.name, self.id)
        self.columns = list(dict.fromkeys(name for name in used if name is not None))

    def read_group(self, table: pq.ParquetFile, group: int, start: int, end: int) -> Iterator[Item]:
        """The photos of rows ``start`` to ``end``, which are a row group."""
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
        """The photo of one row."""
        try:
            values = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
        except UnicodeDecodeError:
            return Item(where, error="its path is not UTF-8")
        photo, number = values[self.photo], values.get(self.id)
        name = None if self.is_path else values.get(self.name)
        if isinstance(photo, dict):
            name = name or photo.get("path")
            photo = photo.get("bytes")
            if photo is None and name:
                photo = name  # its bytes were left where they are
        if photo is None or photo == "":
            return Item(name or where, id=number, error="no photo in this row (null)")
        if isinstance(photo, bytes):
            return Item(name or where, photo, number)
        if "://" in photo[:10]:
            return Item(photo, id=number, error="a web address: download the photo first")
        return list_item(photo, number, self.finder)


def _photo_column(columns: dict[str, pa.DataType], chosen: str | None) -> str:
    """The column that holds photos.

    Raises:
        DataError: None does, or the one that was asked for is absent or holds something else.
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
    raise DataError(f"no column of photos that I know: name one with --column, of {listed}")


def _first(columns: dict[str, pa.DataType], names: tuple[str, ...], *kinds: str) -> str | None:
    """The first column of a usual name, in any case of letters, and of a kind that fits."""
    for name in names:
        for column, kind in columns.items():
            if column.lower() == name and _kind(kind) in kinds:
                return column
    return None


def _kind(data_type: pa.DataType) -> str:
    """What a type can be: ``path``, ``bytes``, ``struct`` (of these), ``number`` or nothing."""
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
    """What pyarrow says, without what follows the first line, or the file system's own words."""
    if isinstance(error, OSError) and error.strerror and error.errno:
        return error.strerror
    return next(iter(str(error).splitlines()), type(error).__name__)
