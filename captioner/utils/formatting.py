"""Numbers as tables and JSON show them; NaN means undefined."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def number(value: float, form: str, missing: str = "-") -> str:
    """Return a number in a format such as `.3f`, or `missing` where it is NaN."""
    return missing if math.isnan(value) else format(value, form)


def percent(share: float, decimals: int = 1) -> str:
    """Return a share from 0 to 1 as `12.3 %`, or `-` where it is NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.{decimals}f} %"


def interval(bounds: Iterable[float], form: str, between: str = " .. ") -> str:
    """Return the bounds of an interval as `0.1 .. 0.2`; without bounds, an empty text."""
    return between.join(format(bound, form) for bound in bounds)


def json_value(value: Any) -> Any:
    """Return the value, with None in place of NaN, which JSON cannot hold."""
    return None if isinstance(value, float) and math.isnan(value) else value


def printable(text: str) -> str:
    r"""Return text that every stream can encode: lone surrogates of file names become `\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()
