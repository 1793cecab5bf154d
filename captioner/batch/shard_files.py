"""The results of shards: one file per shard, and the output that is merged from them.

The shards of `out.csv` write `out.csv.shards/0.jsonl`, `1.jsonl`, ...: JSON Lines whatever the
format of the output, each row with the index of its image in the whole run. A shard file begins
with a line of the run's settings and ends, once the shard is done, with a line that holds the
number of images of the whole run. So the file itself tells whether it is complete, whichever
machine wrote it, and the output is merged only if all shard files are complete, agree on the
settings, and together hold every image exactly once.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import os
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from captioner.batch.formats import (
    CocoFormat,
    JsonLinesFormat,
    PreviousResult,
    format_of,
    to_json,
    to_row,
)
from captioner.batch.item import Item, Result, escaped
from captioner.batch.journal import Journal, Mode
from captioner.batch.parquet import import_pyarrow
from captioner.batch.runner import Summary
from captioner.batch.sharding import ShardAssignment
from captioner.batch.writers import RowWriter, open_file
from captioner.errors import CaptionerError, ConfigError
from captioner.utils.files import replacing

logger = logging.getLogger(__name__)

_END = b'{"photos": '
"""Start of the last line of a complete shard file, and of no other line."""


class ShardFormat(JsonLinesFormat):
    """JSON Lines with the index of each image, after a line of settings.

    Args:
        settings: Of the run and of this shard.
    """

    def __init__(self, settings: dict[str, Any]):
        self.header = to_json(settings) + "\n"

    def decode(self, record: str) -> PreviousResult:
        """See `Format.decode`."""
        row = json.loads(record)
        item = Item(row["image"], index=row["index"])
        return PreviousResult(self.name(item), row.get("error"))

    def name(self, item: Item) -> str:
        """Return the name and the index, so that images in another order are noticed."""
        assert item.index is not None  # set by `ShardAssignment`
        return f"{item.name} (photo {item.index + 1})"

    def split(self, file: IO[bytes]) -> Iterator[bytes]:
        """See `Format.split`; the last line of a complete file counts as an incomplete record."""
        for line in super().split(file):
            if line.startswith(_END):
                return
            yield line


class ShardWriter(RowWriter):
    """The file of one shard.

    Args:
        journal: The file.
        form: Format of the output that will be merged.
        assignment: Of the run; knows at the end how many images there were.
        attention: Add the attention maps.
    """

    def __init__(self, journal: Journal, form: str, assignment: ShardAssignment, attention: bool):
        super().__init__(journal, attention)
        self._coco = CocoFormat() if form == "coco" else None
        if self._coco is not None:  # two images with one id may be in different shards
            assignment.observe = self.refuse
        self._assignment = assignment

    def refuse(self, item: Item) -> str | None:
        """See `Writer.refuse`."""
        return None if self._coco is None else self._coco.refuse(item)

    def write(self, item: Item, result: Result) -> None:
        """See `Writer.write`."""
        self.write_row({"index": item.index, **to_row(item, result, attention=self._attention)})

    def close(self, complete: bool) -> None:
        """See `Writer.close`."""
        if complete and self._next is None:
            self.journal.flush()  # all rows must be on the disk before the line that counts them
            self.journal.write(f"{_END.decode()}{self._assignment.total}}}\n")
        super().close(complete)


def open_shard(
    output: str | None,
    form: str | None,
    assignment: ShardAssignment,
    settings: dict[str, Any],
    *,
    mode: Mode,
) -> ShardWriter:
    """Open the file of a shard.

    Args:
        output: The file that will be merged from the shards.
        form: Its format; None takes it from the file's ending.
        assignment: Of the run.
        settings: JSON values that must be the same for all shards; among them `captions` and
            `attention`, which `merge_shards` needs.
        mode: What to do if the output or the shard file exists.

    Raises:
        ConfigError: There is no output file, or its format is unknown.
        CaptionerError: The output exists, was begun with other settings, or cannot be written.
    """
    if output is None:
        raise ConfigError("shards are merged into a file: add -o")
    path, form = Path(output), format_of(output, form)
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise ConfigError(f"-o {output} is no regular file: shards need one")
    if form == "parquet":
        import_pyarrow()  # complain before the work starts
    shard, folder = assignment.shard, _folder(path)
    if mode != "overwrite" and path.exists() and path.stat().st_size and not folder.exists():
        raise CaptionerError(f"{path} exists already: --overwrite writes it anew")
    settings = {
        "shards": shard.count,
        "format": form,
        "batch_size": assignment.batch_size,
        **settings,
    }
    if mode == "overwrite":
        for file in _files(folder):
            if int(file.stem) >= shard.count:  # of an earlier run with more shards
                file.unlink(missing_ok=True)
    else:
        _check_settings(folder, settings)
    format = ShardFormat({"shard": shard.index, **settings})
    journal = Journal(_file(folder, shard.index), format, mode)
    if mode == "overwrite":
        journal.flush()  # from now on the old content is gone
    return ShardWriter(journal, form, assignment, settings["attention"])


def is_merged(output: str | None) -> bool:
    """Return whether an output exists and its shard files are gone."""
    return output is not None and os.path.isfile(output) and not _folder(Path(output)).exists()


def state_of_shards(output: str) -> str:
    """Return a line that tells how many shards are done, and what to do next."""
    folder = _folder(Path(output))
    headers = [header for file in _files(folder) if (header := _header(file))]
    count = headers[0]["shards"] if headers else 0
    done = sum(_total(_file(folder, index)) is not None for index in range(count))
    if done == count:
        return f"all {count} shards are done: captioner merge {escaped(output)}"
    return f"{done} of {count} shards are done"


def merge_shards(output: str, errors: str | None = None) -> Summary:
    """Merge shard files into the output, in the order of the images, and remove them.

    The output appears whole, replacing an existing file, or not at all.

    Args:
        output: As given to the shards.
        errors: A file that takes the failures, as `captioner caption --errors` writes it.

    Returns:
        The number of images with a caption, and the failures.

    Raises:
        CaptionerError: A shard file is missing, incomplete, damaged or of another run, or the
            output cannot be written. The shard files are kept.
    """
    path = Path(output)
    folder, settings, total = _check_complete(path)
    # Not the output's own name, which may be that of a shard file (`-o 0.jsonl`). It is locked
    # while it is open, which also keeps another merge away.
    merged = folder / f"merged.{settings['format']}"
    summary = Summary()
    try:
        with contextlib.ExitStack() as stack:
            failures = None
            if errors is not None:
                temporary = stack.enter_context(replacing(errors))
                failures = Journal(temporary, JsonLinesFormat())
                stack.callback(failures.close)
            writer = open_file(
                merged, settings["format"], mode="overwrite", captions=settings["captions"]
            )
            try:
                for row in _merged_rows(folder, settings["shards"], total):
                    error = row.get("error")
                    if error is not None and not writer.shows_errors:
                        logger.error("%s: %s", escaped(row["image"]), error)
                    if error is not None and failures is not None:
                        failures.write(to_json(row) + "\n")
                    writer.write_row(row)
                    summary.add(error)
            except BaseException:
                writer.close(complete=False)
                raise
            writer.close(complete=True)
            os.replace(merged, path)
    except (CaptionerError, OSError) as error:
        raise CaptionerError(f"{error}; all results are still in {folder}") from None
    with contextlib.suppress(OSError):  # leftovers do no harm
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return summary


def _merged_rows(folder: Path, shards: int, total: int) -> Iterator[dict[str, Any]]:
    """Yield all rows in the order of the run, without their index.

    Raises:
        CaptionerError: A file is damaged, or the shards did not have the same images.
    """
    files = [_rows(_file(folder, index)) for index in range(shards)]
    due = 0
    for row in heapq.merge(*files, key=itemgetter("index")):
        if row.pop("index") != due:
            break
        due += 1
        yield row
    if due != total:
        raise CaptionerError(
            f"the parts in {folder} do not fit together at photo {due + 1}: "
            "caption with --overwrite"
        )


def _check_complete(path: Path) -> tuple[Path, dict[str, Any], int]:
    """Check the shard files of an output.

    Returns:
        Their folder, the settings that they agree on, and the number of images of the run.

    Raises:
        CaptionerError: They are not complete, or do not belong together.
    """
    folder = _folder(path)
    headers = {file: header for file in _files(folder) if (header := _header(file)) is not None}
    if not headers:
        raise CaptionerError(f"{path} has no parts to merge: there are none in {folder}")
    first = next(iter(headers.values()))
    for file, header in headers.items():
        if differing := _differing(header, first):
            raise CaptionerError(
                f"{file} is of another run ({', '.join(differing)} differs): "
                "caption with --overwrite"
            )
    totals = [_total(_file(folder, index)) for index in range(first["shards"])]
    if lacking := [str(index) for index, total in enumerate(totals) if total is None]:
        raise CaptionerError(
            f"{path} cannot be merged: of {len(totals)} shards these are not done: "
            f"{', '.join(lacking)}; the same command with --resume goes on"
        )
    total = totals[0]
    if total is None or set(totals) != {total}:
        counts = ", ".join(f"{total:,}" for total in totals if total is not None)
        raise CaptionerError(
            f"{path} cannot be merged: its shards were given different photos ({counts}): "
            "caption with --overwrite"
        )
    return folder, first, total


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Compare settings with those of the shard files that exist.

    Raises:
        CaptionerError: They differ.
    """
    for file in _files(folder):
        header = _header(file)
        if header is None:
            continue  # begun just now
        if header["shards"] != settings["shards"]:
            raise CaptionerError(
                f"{folder} has parts of {header['shards']} shards, not {settings['shards']}: "
                "resume with as many, or add --overwrite"
            )
        if differing := _differing(header, settings):
            raise CaptionerError(
                f"{file} was made with other settings ({', '.join(differing)}): "
                "resume with the same, or add --overwrite"
            )


def _differing(header: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return the names of the settings that differ, except the number of the shard."""
    names = (header.keys() | settings.keys()) - {"shard"}
    return sorted(name for name in names if header.get(name) != settings.get(name))


def _folder(path: Path) -> Path:
    return path.with_name(path.name + ".shards")


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index}.jsonl"


def _files(folder: Path) -> list[Path]:
    """Return the shard files that exist, in the order of their shards."""
    files = (file for file in folder.glob("*.jsonl") if file.stem.isdecimal())
    return sorted(files, key=lambda file: int(file.stem))


def _header(path: Path) -> dict[str, Any] | None:
    """Return the settings in the first line of a shard file, None if it has none yet."""
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        line = file.readline()
        if line.endswith(b"\n"):
            header = json.loads(line)
            return header if isinstance(header, dict) and "shards" in header else None
    return None


def _total(path: Path) -> int | None:
    """Return the number in the last line of a shard file, None if the file is not complete."""
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - 64, 0))
        line = file.read().rpartition(_END)[2]
        if line.endswith(b"}\n"):
            return int(line[:-2])
    return None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a complete shard file.

    Raises:
        CaptionerError: It is damaged.
    """
    with open(path, "rb") as file:
        file.readline()
        for line in file:
            if line.startswith(_END):
                return
            try:
                row = json.loads(line)
                _ = row["index"], row["image"]
            except (ValueError, KeyError, TypeError):
                raise CaptionerError(f"{path} is damaged: caption with --overwrite") from None
            yield row
