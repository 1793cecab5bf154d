"""The output of a run on Ray: a folder of part files, one for each unit, each written whole.

A part is called ``part-000012-9f3a5c21.jsonl``: its number tells the order, the digits behind it
what the unit consists of. So a part that is there is done, and one that belongs to other photos or
settings is noticed. All parts one after the other are the rows in the order of the photos.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from captioner.batch.formats import JsonLinesFormat
from captioner.batch.journal import Mode, RowFile
from captioner.batch.parquet import import_pyarrow
from captioner.batch.parquet_sink import write_parquet
from captioner.errors import CaptionerError, ConfigError
from captioner.utils.files import replacing

FORMATS = ("jsonl", "parquet")


def part_name(number: int, contents: Iterable[str]) -> str:
    """The name of a unit's part, without its ending.

    Args:
        number: Of the unit.
        contents: What it consists of: the settings of the run, the names of its photos, ...
    """
    digest = hashlib.sha256()
    for text in contents:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return f"part-{number:06}-{digest.hexdigest()[:8]}"


class PartFolder:
    """A folder that takes parts, from one process at a time.

    Args:
        folder: Made if it is absent.
        form: One of `FORMATS`.
        mode: What to do with parts that are there.

    Raises:
        ConfigError: The format does not go.
        CaptionerError: It cannot be written, is in use, or has parts and ``mode`` is ``new``.
    """

    def __init__(self, folder: Path, form: str, mode: Mode):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"-o {folder} is a file: --engine ray writes a folder of part files")
        if form == "parquet":
            import_pyarrow()  # its absence should be told before the work
        self.folder = folder
        self.form = form
        self.mode = mode
        if mode == "new" and (found := self._found()):
            raise CaptionerError(
                f"{folder} has {len(found):,} part files already: add --resume to go on with them, "
                "or --overwrite"
            )
        self._lock = RowFile(folder / ".lock", JsonLinesFormat(), "overwrite")

    def begin(self, names: Sequence[str]) -> set[str]:
        """Tell which parts there will be; returns those that an earlier run has done.

        Raises:
            CaptionerError: There are parts of other photos or settings.
        """
        found = self._found()
        if self.mode != "resume":
            for path in found.values():
                path.unlink()
            return set()
        expected = {f"{name}.{self.form}" for name in names}
        if strange := sorted(found.keys() - expected):
            raise CaptionerError(
                f"{self.folder / strange[0]} is not a part of these results: resume with the same "
                "photos in the same order and the same options, or add --overwrite"
            )
        return {name for name in names if f"{name}.{self.form}" in found}

    def kept(self, name: str) -> Iterator[str | None]:
        """The errors in a part of an earlier run, None for each photo that has a caption.

        Raises:
            CaptionerError: The part cannot be read.
        """
        path = self._path(name)
        try:
            if self.form == "parquet":
                pa, pq = import_pyarrow()
                try:
                    yield from pq.read_table(path, columns=["error"]).column("error").to_pylist()
                except pa.ArrowException as error:
                    raise ValueError(error) from None
            else:
                with open(path, encoding="utf-8", newline="\n") as rows:
                    for row in rows:
                        yield JsonLinesFormat().decode(row).error
        except (OSError, ValueError) as error:
            raise CaptionerError(
                f"cannot read {path} ({error}): delete it, and --resume makes it anew"
            ) from None

    def write(self, name: str, rows: Iterable[str]) -> None:
        """Write a part.

        Args:
            name: From `part_name`.
            rows: Its rows as JSON, in order.

        Raises:
            CaptionerError: The disk is full or gone.
        """
        try:
            with replacing(self._path(name)) as temporary:
                lines = temporary if self.form == "jsonl" else temporary.with_suffix(".jsonl")
                try:
                    with open(lines, "w", encoding="utf-8", newline="\n") as file:
                        file.writelines(row + "\n" for row in rows)
                    if self.form == "parquet":
                        write_parquet(lines, temporary)
                finally:
                    if lines != temporary:
                        lines.unlink(missing_ok=True)
        except OSError as error:
            raise CaptionerError(
                f"cannot write {self._path(name)}: {error.strerror or error}; "
                "the parts before it are kept"
            ) from None

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.path.unlink(missing_ok=True)
        self._lock.close(complete=False)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.{self.form}"

    def _found(self) -> dict[str, Path]:
        """The parts that are there, of any format."""
        return {path.name: path for path in sorted(self.folder.glob("part-*"))}


class Collector:
    """Puts the rows of units together, each once, in whatever order they come."""

    def __init__(self) -> None:
        self._rows: defaultdict[int, dict[int, str]] = defaultdict(dict)
        self._counts: dict[int, int] = {}
        self._complete: set[int] = set()

    def is_new(self, unit: int, row: int) -> bool:
        """Whether this row has not come yet."""
        return unit not in self._complete and row not in self._rows[unit]

    def add(self, unit: int, row: int, text: str | None) -> list[str] | None:
        """Take a row, or with ``text=None`` the number of rows; the whole unit once it is there."""
        if unit in self._complete:
            return None
        if text is None:
            self._counts[unit] = row
        else:
            self._rows[unit][row] = text
        rows = self._rows[unit]
        if len(rows) != self._counts.get(unit):
            return None
        self._complete.add(unit)
        del self._rows[unit]
        return [rows[at] for at in sorted(rows)]
