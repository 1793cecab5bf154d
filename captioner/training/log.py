"""The log of a run: one JSON object a line, appended as the run goes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from captioner.files import replacing


class JsonLinesLog:
    """Appends to ``log.jsonl``; a resumed run goes on in the same file.

    Args:
        path: The file.
        keep_until: When resuming, lines of later steps are dropped, for they are run again.
    """

    def __init__(self, path: Path, keep_until: int | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if keep_until is not None and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) <= keep_until]
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._path = path
        self._start = time.monotonic()

    def write(self, **values: Any) -> None:
        """Append one record; ``seconds`` since the start is added."""
        values["seconds"] = round(time.monotonic() - self._start, 1)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line).get("step", 0))
    except ValueError:  # a line that a crash cut short
        return float("inf")
