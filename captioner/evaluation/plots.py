"""Plots as inline SVG: text that any browser draws sharp, light or dark, without a library.

Colours come from the page's style sheet through classes (`bar`, `line s0` .. `line s3`,
`band`, `axis`); a pointer on a mark shows its figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 560, 250  # of a plot, in SVG units; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 14, 16, 44


def histogram(
    values: Iterable[float],
    *,
    label: str,
    unit: str = "photos",
    whole: bool = False,
    others: Sequence[float] = (),
    others_label: str = "",
) -> str:
    """Bars of how often values occur.

    Args:
        values: At least one; those that are not finite are left out.
        label: Of the horizontal axis.
        unit: What is counted.
        whole: The values are whole numbers, with a bar each (up to 40).
        others: Values of a second set, drawn as a line; the highest hundredth may be cut off.
        others_label: What they are.

    Returns:
        An `<svg>` element, or an empty text if there is no value.
    """
    data = np.asarray([v for v in values if math.isfinite(v)], dtype=float)
    if not data.size:
        return ""
    second = np.asarray(others, dtype=float)
    if second.size:  # the longest few of a hundred would squeeze all others
        second = second[second <= max(data.max(), np.quantile(second, 0.99))]
    edges = _edges(np.concatenate((data, second)), whole)
    shares = np.histogram(data, edges)[0] / data.size
    second_shares = np.histogram(second, edges)[0] / max(1, second.size)
    x = Scale(edges[0], edges[-1], _LEFT, WIDTH - _RIGHT)
    y = Scale(0, max(shares.max(), second_shares.max()), HEIGHT - _BOTTOM, _TOP)
    parts = _y_axis(y, [(v, f"{100 * v:g} %") for v in round_ticks(0, y.high)], f"share of {unit}")
    for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
        if share:
            where = f"{round(low + 0.5)}" if whole else f"{low:g} to {high:g}"
            count = f"{where}: {round(share * data.size):,} ({100 * share:.1f} %)"
            parts.append(_bar(x(low) + 1, x(high) - 1, y(share), y(0), count))
    if second.size:
        steps = [f"M{x(edges[0]):.1f} {y(0):.1f}"]
        for low, high, share in zip(edges[:-1], edges[1:], second_shares, strict=True):
            steps.append(f"L{x(low):.1f} {y(share):.1f}L{x(high):.1f} {y(share):.1f}")
        steps.append(f"L{x(edges[-1]):.1f} {y(0):.1f}")
        title = f"<title>{escape(others_label)}</title>"
        parts.append(f'<path class="line s1" d="{"".join(steps)}">{title}</path>')
    shift = 0.5 if whole else 0.0
    ticks = [
        t for t in round_ticks(edges[0] + shift, edges[-1] - shift) if not whole or t == int(t)
    ]
    parts += _x_axis(x, [(t, f"{t:g}") for t in ticks], label)
    mean = float(data.mean())
    parts.append(
        f'<line class="mean" x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="{_TOP}" y2="{y(0):.1f}">'
        f"<title>mean {mean:.3g}</title></line>"
    )
    return _svg(parts, f"Histogram: {label}")


def curves(
    x_values: Sequence[float],
    series: Mapping[str, Sequence[float]],
    bands: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
) -> str:
    """Lines over a logarithmic axis of shares, with their intervals as bands.

    Args:
        x_values: Rising, above 0; each gets a tick, in percent.
        series: One value per `x_values` and line.
        bands: By the same names, (low, high) per value.
        x_label: Of the horizontal axis.
        y_label: Of the vertical axis.

    Returns:
        An `<svg>` element.
    """
    bounds = [bound for pairs in bands.values() for pair in pairs for bound in pair]
    every = [v for values in series.values() for v in values] + bounds + [0.0]
    x = Scale(math.log(x_values[0]), math.log(x_values[-1]), _LEFT + 10, WIDTH - _RIGHT - 10)
    y = Scale(min(every), max(every), HEIGHT - _BOTTOM, _TOP)
    places = [x(math.log(value)) for value in x_values]
    parts = _y_axis(y, [(v, f"{v:g}") for v in round_ticks(y.low, y.high)], y_label)
    parts += [
        f'<polygon class="band s{n}" points="{_points(places, y, bands[name])}"/>'
        for n, name in enumerate(series)
    ]
    for n, (name, values) in reversed(list(enumerate(series.items()))):  # the first on top
        line = " ".join(f"{px:.1f},{y(v):.1f}" for px, v in zip(places, values, strict=True))
        parts.append(f'<polyline class="line s{n}" points="{line}"/>')
        for px, share, value, (low, high) in zip(
            places, x_values, values, bands[name], strict=True
        ):
            title = f"{name}, {100 * share:g} %: {value:.3f} ({low:.3f} to {high:.3f})"
            parts.append(
                f'<circle class="dot s{n}" cx="{px:.1f}" cy="{y(value):.1f}" r="3.5">'
                f"<title>{escape(title)}</title></circle>"
            )
    ticks = [(math.log(value), f"{100 * value:g} %") for value in x_values]
    return _svg(parts + _x_axis(x, ticks, x_label), f"{y_label} by {x_label}")


class Scale:
    """A straight line from values to places."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = float(low), float(high if high > low else low + 1)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return float(self._start + share * (self._end - self._start))


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Bin edges: round numbers, or half-integers around whole numbers."""
    low, high = float(values.min()), float(values.max())
    if whole:
        step = float(math.ceil((high - low + 1) / 40))
        return np.arange(math.floor(low) - 0.5, math.ceil(high) + step, step)
    step = _step((high - min(0.0, low)) or 1.0, 24)
    first = math.floor(min(0.0, low) / step)
    count = max(1, math.floor(high / step) - first + 1)
    return np.round((first + np.arange(count + 1)) * step, 10)


def _step(span: float, most: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that parts a span into at most so many."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(f * power for f in (1, 2, 2.5, 5, 10, 20) if span / (f * power) <= most)


def round_ticks(low: float, high: float) -> list[float]:
    """Round values from low to high for an axis, six at most or so."""
    step = _step(high - low or 1.0, 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]


def _bar(left: float, right: float, top: float, bottom: float, title: str) -> str:
    """A bar with rounded upper corners."""
    r = max(0.0, min(3.0, (right - left) / 2, bottom - top))
    path = (
        f"M{left:.1f} {bottom:.1f}V{top + r:.1f}q0 {-r:.1f} {r:.1f} {-r:.1f}"
        f"H{right - r:.1f}q{r:.1f} 0 {r:.1f} {r:.1f}V{bottom:.1f}z"
    )
    return f'<path class="bar" d="{path}"><title>{escape(title)}</title></path>'


def _points(places: list[float], y: Scale, band: Sequence[tuple[float, float]]) -> str:
    """The outline of a band: along its upper bounds and back along the lower ones."""
    upper = [f"{px:.1f},{y(high):.1f}" for px, (_, high) in zip(places, band, strict=True)]
    lower = [f"{px:.1f},{y(low):.1f}" for px, (low, _) in zip(places, band, strict=True)]
    return " ".join(upper + lower[::-1])


def _y_axis(y: Scale, ticks: list[tuple[float, str]], label: str) -> list[str]:
    parts = []
    for value, text in ticks:
        at = y(value)
        kind = "axis" if value == 0 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(
        f'<text class="label" transform="translate(14 {middle:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(label)}</text>'
    )
    return parts


def _x_axis(x: Scale, ticks: list[tuple[float, str]], label: str) -> list[str]:
    parts = [
        f'<text x="{x(value):.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
        f"{escape(text)}</text>"
        for value, text in ticks
    ]
    middle = (WIDTH - _RIGHT + _LEFT) / 2
    parts.append(
        f'<text class="label" x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(label)}</text>"
    )
    return parts


def _svg(parts: list[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )
