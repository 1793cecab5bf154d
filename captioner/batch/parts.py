"""The results of shards: a part file each, and the output that is merged of them.

The parts of ``out.csv`` are ``out.csv.shards/0.jsonl``, ``1.jsonl``, ...: JSON Lines, whatever the
format of the output, each row with the index of its photo in the whole run. A part begins with a
line that tells the settings of the run and ends, once its shard is done, with a line that tells how
many photos the whole run has. So a part says itself that it is complete, whichever machine wrote it
and whatever its clock; and the output is merged only if all parts are complete, agree on the
settings, and have every photo exactly once.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from captioner.batch.formats import CocoFormat, JsonLinesFormat, Kept, to_json
from captioner.batch.item import Item, Result, escaped
from captioner.batch.journal import Mode, RowFile
from captioner.batch.parquet import import_pyarrow
from captioner.batch.row_sinks import RowSink
from captioner.batch.runner import Summary, deliver
from captioner.batch.sharding import Deal
from captioner.batch.writers import format_of, open_sink
from captioner.errors import CaptionerError, ConfigError
from captioner.outputs import Caption
from captioner.utils.files import replacing

_END = b'{"photos": '
"""How the last line of a complete part begins; no other line does."""


class PartFormat(JsonLinesFormat):
    """JSON Lines with the index of each photo, after a line of settings.

    Args:
        settings: Of the run and of this shard.
        attention: Add the attention maps.
    """

    def __init__(self, settings: dict[str, Any], attention: bool):
        super().__init__(attention)
        self.header = to_json(settings) + "\n"

    def row(self, item: Item, result: Result) -> dict[str, Any]:
        """See `JsonLinesFormat.row`."""
        return {"index": item.index, **super().row(item, result)}

    def decode(self, record: str) -> Kept:
        """See `Format.decode`."""
        row = json.loads(record)
        return Kept(self.name(Item(row["image"], index=row["index"])), row.get("error"))

    def name(self, item: Item) -> str:
        """The name and the place, so that photos of another order are noticed."""
        assert item.index is not None  # `Deal` has seen it
        return f"{item.name} (photo {item.index + 1})"

    def split(self, file: IO[bytes]) -> Iterator[bytes]:
        """See `Format.split`; the last line of a complete part counts as a torn end."""
        for line in super().split(file):
            if line.startswith(_END):
                return
            yield line


class PartSink(RowSink):
    """The part of one shard.

    Args:
        file: Where the rows go.
        form: Of the output that the parts will become.
        deal: Of the run; knows at the end how many photos there were.
    """

    def __init__(self, file: RowFile, form: str, deal: Deal):
        super().__init__(file)
        self._coco = CocoFormat() if form == "coco" else None
        self._deal = deal

    def refuse(self, item: Item) -> str | None:
        """See `Sink.refuse`."""
        return self._coco.refuse(item) if self._coco is not None else None

    def close(self, complete: bool) -> None:
        """See `Sink.close`."""
        if complete and self._next is None:
            self.file.flush()  # first the rows, then the line that vouches for them
            self.file.write(f"{_END.decode()}{self._deal.total}}}\n")
        super().close(complete)


def open_part(
    output: str | None, form: str | None, deal: Deal, settings: dict[str, Any], *, mode: Mode
) -> PartSink:
    """The sink of a shard.

    Args:
        output: What the parts will become.
        form: Its format; None takes it from the file's ending.
        deal: Of the run.
        settings: What must be the same for all shards, as JSON values; among them ``captions`` and
            ``attention``, which `merge_parts` needs.
        mode: What to do if the output or the part is there already.

    Raises:
        ConfigError: There is no output file, or not of a known format.
        CaptionerError: The output is there already, was begun with other settings, or cannot be
            written.
    """
    if output is None:
        raise ConfigError("shards are merged into a file: add -o")
    path, form = Path(output), format_of(output, form)
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise ConfigError(f"-o {output} is no regular file: shards need one")
    if form == "parquet":
        import_pyarrow()  # its absence should be told before the work
    shard, folder = deal.shard, _folder(path)
    if mode != "overwrite" and path.exists() and path.stat().st_size and not folder.exists():
        raise CaptionerError(f"{path} exists already: --overwrite writes it anew")
    settings = {"shards": shard.count, "format": form, "batch_size": deal.batch_size, **settings}
    if mode == "overwrite":
        for part in _parts(folder):
            if int(part.stem) >= shard.count:  # of an earlier run in more shards
                part.unlink(missing_ok=True)
    else:
        _check_settings(folder, settings)
    records = PartFormat({"shard": shard.index, **settings}, settings["attention"])
    file = RowFile(_part(folder, shard.index), records, mode)
    if mode == "overwrite":
        file.flush()  # from now on the old part counts for nothing
    return PartSink(file, form, deal)


def is_merged(output: str | None) -> bool:
    """Whether there is an output and no part of it any more."""
    return output is not None and os.path.isfile(output) and not _folder(Path(output)).exists()


def state_of_parts(output: str) -> str:
    """For people: how many shards are done, and what to do next."""
    folder = _folder(Path(output))
    headers = [header for part in _parts(folder) if (header := _header(part))]
    count = headers[0]["shards"] if headers else 0
    done = sum(_total(_part(folder, index)) is not None for index in range(count))
    if done == count:
        return f"all {count} shards are done: captioner merge {escaped(output)}"
    return f"{done} of {count} shards are done"


def merge_parts(output: str, errors: str | None = None) -> Summary:
    """Make the output of its parts, in the order of the photos, and remove them.

    The output appears whole, replacing what was there, or not at all.

    Args:
        output: As the shards were told.
        errors: A file that takes the failures, as ``captioner caption --errors`` writes it.

    Returns:
        How many photos have captions, and what failed.

    Raises:
        CaptionerError: A part is missing, incomplete, damaged or of another run; or the output
            cannot be written. The parts are kept.
    """
    path = Path(output)
    parts = _open_parts(path)
    merged = parts.folder / path.name  # in the meantime; being locked, it also keeps others away
    settings = parts.settings
    looks = {"captions": settings["captions"], "attention": settings["attention"]}
    summary = Summary()
    try:
        with contextlib.ExitStack() as stack:
            failures = None
            if errors is not None:
                temporary = stack.enter_context(replacing(errors))
                failures = RowFile(temporary, JsonLinesFormat())
                stack.callback(failures.close)
            sink = open_sink(str(merged), settings["format"], mode="overwrite", **looks)
            try:
                for item, result in parts.results():
                    deliver(item, result, sink, failures, summary)
            except BaseException:
                sink.close(complete=False)
                raise
            sink.close(complete=True)
            os.replace(merged, path)
    except (CaptionerError, OSError) as error:
        raise CaptionerError(f"{error}; all results are still in {parts.folder}") from None
    with contextlib.suppress(OSError):  # leftovers do no harm
        for file in parts.folder.iterdir():
            file.unlink()
        parts.folder.rmdir()
    return summary


class _Parts(NamedTuple):
    """Parts that are all complete and belong together.

    Attributes:
        folder: Where they are.
        settings: What they agree on.
        photos: Of the whole run.
    """

    folder: Path
    settings: dict[str, Any]
    photos: int

    def results(self) -> Iterator[tuple[Item, Result]]:
        """All results, in the order of the run.

        Raises:
            CaptionerError: A part is damaged, or the shards did not have the same photos.
        """
        parts = [_rows(_part(self.folder, index)) for index in range(self.settings["shards"])]
        due = 0
        for row in heapq.merge(*parts, key=itemgetter("index")):
            if row["index"] != due:
                break
            due += 1
            yield Item(row["image"], id=row.get("id")), _result(row)
        if due != self.photos:
            raise CaptionerError(
                f"the parts in {self.folder} do not fit together at photo {due + 1}: "
                "caption with --overwrite"
            )


def _open_parts(path: Path) -> _Parts:
    """Check the parts of an output.

    Raises:
        CaptionerError: They are not complete, or do not belong together.
    """
    folder = _folder(path)
    headers = {part: header for part in _parts(folder) if (header := _header(part)) is not None}
    if not headers:
        raise CaptionerError(f"{path} has no parts to merge: there are none in {folder}")
    first = next(iter(headers.values()))
    for part in headers:
        if differing := _differing(headers[part], first):
            raise CaptionerError(
                f"{part} is of another run ({', '.join(differing)} differs): "
                "caption with --overwrite"
            )
    totals = [_total(_part(folder, index)) for index in range(first["shards"])]
    if lacking := [str(index) for index, total in enumerate(totals) if total is None]:
        raise CaptionerError(
            f"{path} cannot be merged: of {len(totals)} shards these are not done: "
            f"{', '.join(lacking)}; the same command with --resume goes on"
        )
    photos = totals[0]
    if photos is None or set(totals) != {photos}:
        counts = ", ".join(f"{total:,}" for total in totals if total is not None)
        raise CaptionerError(
            f"{path} cannot be merged: its shards were given different photos ({counts}): "
            "caption with --overwrite"
        )
    return _Parts(folder, first, photos)


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Compare settings with those of the parts that are there.

    Raises:
        CaptionerError: They differ.
    """
    for part in _parts(folder):
        header = _header(part)
        if header is None:
            continue  # begun just now
        if header["shards"] != settings["shards"]:
            raise CaptionerError(
                f"{folder} has parts of {header['shards']} shards, not {settings['shards']}: "
                "resume with as many, or add --overwrite"
            )
        if differing := _differing(header, settings):
            raise CaptionerError(
                f"{part} was made with other settings ({', '.join(differing)}): "
                "resume with the same, or add --overwrite"
            )


def _differing(header: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Names of the settings that differ; which shard it is does not count."""
    names = (header.keys() | settings.keys()) - {"shard"}
    return sorted(name for name in names if header.get(name) != settings.get(name))


def _folder(path: Path) -> Path:
    return path.with_name(path.name + ".shards")


def _part(folder: Path, index: int) -> Path:
    return folder / f"{index}.jsonl"


def _parts(folder: Path) -> list[Path]:
    """The parts that are there, in the order of their shards."""
    parts = (part for part in folder.glob("*.jsonl") if part.stem.isdecimal())
    return sorted(parts, key=lambda part: int(part.stem))


def _header(part: Path) -> dict[str, Any] | None:
    """The settings in a part's first line, None if it has none yet."""
    with contextlib.suppress(OSError, ValueError), open(part, "rb") as file:
        line = file.readline()
        if line.endswith(b"\n"):
            header = json.loads(line)
            return header if isinstance(header, dict) and "shards" in header else None
    return None


def _total(part: Path) -> int | None:
    """The number in a part's last line, None if the part is not complete."""
    with contextlib.suppress(OSError, ValueError), open(part, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - 64, 0))
        line = file.read().rpartition(_END)[2]
        if line.endswith(b"}\n"):
            return int(line[:-2])
    return None


def _rows(part: Path) -> Iterator[dict[str, Any]]:
    """The rows of a complete part.

    Raises:
        CaptionerError: It is damaged.
    """
    with open(part, "rb") as file:
        file.readline()
        for line in file:
            if line.startswith(_END):
                return
            try:
                row = json.loads(line)
                _ = row["index"], row["image"]
            except (ValueError, KeyError, TypeError):
                raise CaptionerError(f"{part} is damaged: caption with --overwrite") from None
            yield row


def _result(row: dict[str, Any]) -> Result:
    """What `JsonLinesFormat.row` wrote of a result, as a result again."""
    if "error" in row:
        error: str = row["error"]
        return error
    first = {name: row[name] for name in ("caption", "score", "words", "log_probs", "finished")}
    caption = _caption(row["image"], np.array(row.get("attention", [])), **first)
    candidates = [_caption(row["image"], **other) for other in row.get("candidates", [])]
    return replace(caption, candidates=tuple(candidates))


def _caption(
    source: str,
    attention: np.ndarray | None = None,
    *,
    caption: str,
    score: float,
    words: list[str] | None = None,
    log_probs: list[float] | None = None,
    finished: bool = True,
) -> Caption:
    return Caption(
        text=caption,
        score=score,
        words=words or [],
        log_probs=log_probs or [],
        finished=finished,
        attention=np.array([]) if attention is None else attention,
        source=source,
    )
